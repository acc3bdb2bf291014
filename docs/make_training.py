"""Pictures and tables of the example that trains, from committed rows; `docs.make_pictures` writes the pictures."""

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from docs.make_backends import table
from docs.make_plots import Row, rows_of
from examples import plot_curves

LAYOUTS = ("packed", "padded", "sdpa-dense")
SHARE = 0.75


def figures() -> dict[str, Callable[[], Figure]]:
    """What this file draws, by the names of its pictures: of what is measured."""
    drawn: dict[str, Callable[[Sequence[Row]], Figure]] = {"train_lm": curves, "train_lm_gpu": speeds}
    return {name: partial(draw, rows) for name, draw in drawn.items() if (rows := rows_of(name))}


def curves(rows: Sequence[Row]) -> Figure:
    """The curves of each layout, and the line that is to be reached."""
    figure = plot_curves.curves({layout: [row for row in rows if row["layout"] == layout] for layout in LAYOUTS})
    axes, unigram = figure.axes[1], float(rows[0]["unigram"])
    for height, words in ((unigram, "entropy of single bytes"), (SHARE * unigram, f"{SHARE:g} of it")):
        axes.axhline(height, color="0.55", linewidth=0.9)
        axes.text(1, height + 0.02, words, transform=axes.get_yaxis_transform(), ha="right", color="0.35", fontsize=8)
    return figure


def speeds(rows: Sequence[Row]) -> Figure:
    """Real tokens per second of each contender."""
    figure = Figure(figsize=(8, 0.42 * len(rows) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row['contender']} ({float(row['real']):.0%} real)" for row in rows]
    heights = [int(row["tokens_per_s"]) / 1000 for row in rows]
    colours = ["#17406d" if "attend" in row["contender"] else "#9a9a9a" for row in rows]
    axes.barh(range(len(rows)), heights, 0.7, color=colours)
    for place, height in enumerate(heights):
        axes.text(height, place, f" {height:.0f}", va="center", fontsize=8, color="0.3")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("thousands of real tokens per second")
    axes.set_title(f"Training on {rows[0]['device']}, torch {rows[0]['torch']}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def learnt() -> str:
    """The last validation loss of each layout, beside the entropy of single tokens."""
    lines = ["layout | steps | real tokens | positions with a token | validation loss | of the entropy of single bytes"]
    rows = rows_of("train_lm")
    for layout in LAYOUTS:
        found = [row for row in rows if row["layout"] == layout]
        if found:
            last, loss = found[-1], float(found[-1]["validation"])
            real = sum(float(row["real"]) for row in found) / len(found)
            share = loss / float(last["unigram"])
            lines.append(
                f"`{layout}` | {last['step']} | {int(last['tokens']):,} | {real:.0%} | {loss:.3f} | {share:.3f}"
            )
    return table(lines)


def ranks() -> str:
    """Real tokens per second of the example on two GPUs, for each way to share the work."""
    rows = rows_of("train_lm_ranks")
    lines = [
        "rows of | blocks | processes | real tokens per second | times one process | a loss differs by at most, nats a token"
    ]
    for row in rows:
        way = row["way"] if row["way"] == "one process" else f"2, `{row['way']}`"
        speed = f"{int(row['tokens_per_s']):,} | {float(row['speedup']):.2f}"
        blocks = "compiled" if row["compiled"] == "True" else "eager"
        lines.append(f"{int(row['capacity']):,} | {blocks} | {way} | {speed} | {float(row['curve']):.4f}")
    return table(lines) if rows else "Not measured yet."


def measured() -> str:
    """Real tokens per second on a GPU, for each layout and attention."""
    rows = rows_of("train_lm_gpu")
    if not rows:
        return "Not measured yet."
    lines = [
        "batch and attention | positions with a token | real tokens per second | of the first | GiB beside the weights | runs on"
    ]
    for row in rows:
        memory = f"{int(row['memory_mib']) / 1024:.1f}"
        speed = f"{int(row['tokens_per_s']):,}"
        lines.append(
            f"{row['contender']} | {float(row['real']):.0%} | {speed} | {float(row['of_first']):.2f} | {memory} | {row['backends']}"
        )
    return table(lines)
