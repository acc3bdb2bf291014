"""Draws the plots of measured tables from committed rows; `docs.make_pictures` writes them, `docs.make_tables` the tables.

A plot or table whose rows are not measured yet is left out.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
COLOURS = {
    "causal": "#17406d",
    "causal & padding": "#c1461f",
    "window 1k": "#2e8b57",
    "16 documents & causal": "#8a5a9e",
}
STYLES = {
    "ours_ms": ("maskloom", "-o"),
    "torch_eager_ms": ("torch, eager", "--s"),
    "torch_compiled_ms": ("torch, compiled", ":^"),
}
CONTENDERS = {
    "sdpa, dense mask": "#9a9a9a",
    "sdpa, cuDNN": "#c9b458",
    "torch varlen, packed": "#2e8b57",
    "attend, triton": "#8a5a9e",
    "attend, auto": "#17406d",
}
BLOCK_COLUMNS = {
    "ours_ms": "ours",
    "ours_inexact_ms": "`exact=False`",
    "ours_host_ms": "it returns after",
    "ours_first_call_ms": "first call",
    "torch_eager_ms": "torch eager",
    "times_faster": "times faster",
    "torch_compiled_ms": "torch compiled",
    "torch_compiled_first_call_ms": "its first call",
    "attn_gym_ms": "attention-gym",
    "ours_peak_mb": "peak MiB",
    "tables_mb": "tables MiB",
    "torch_eager_peak_mb": "torch's peak, eager",
}
PACKING = {
    "host": ("maskloom, lengths known to the host", "-o", "#17406d"),
    "device": ("maskloom, lengths on the device", "--s", "#c1461f"),
    "by hand": ("packed by hand", ":^", "#2e8b57"),
}
WAYS = ("intervals", "witnesses", "evaluation")

Row = dict[str, Any]


def figures() -> dict[str, Callable[[], Figure]]:
    """What this file draws, by the names of its pictures: of what is measured."""
    attention = [row for row in rows_of("attention_gpu") if row["section"] == "padded" and row["step_ms"]]
    drawn: dict[str, tuple[list[Row], Callable[[list[Row]], Figure]]] = {
        "blocks": (rows_of("blocks"), plot),
        "blocks_gpu": (rows_of("blocks_gpu"), plot),
        "attention_gpu": (attention, attention_plot),
        "padding_module": (rows_of("padding_module"), padding_plot),
    }
    return {name: partial(draw, rows) for name, (rows, draw) in drawn.items() if rows}


def rows_of(name: str) -> list[Row]:
    """The rows of a benchmark; none where it was not measured."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def plot(rows: list[Row]) -> Figure:
    """Time to build a block mask against length, ours and torch's."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    measured = {name: style for name, style in STYLES.items() if any(_is_number(row.get(name, "")) for row in rows)}
    for mask, colour in COLOURS.items():
        for column, (_, style) in measured.items():
            lengths, times = _measured([row for row in rows if row["mask"] == mask], column)
            axes.plot(lengths, times, style, color=colour, markersize=4, linewidth=1.5)
        batch = next(row["batch"] for row in rows if row["mask"] == mask)
        axes.plot([], [], "-", color=colour, label=f"{mask}, batch {batch}")
    for label, style in measured.values():
        axes.plot([], [], style, color="0.4", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    ticks = sorted({int(row["length"]) for row in rows})
    axes.set_xticks(ticks, [_short(length) for length in ticks])
    axes.set_xlabel("length, in positions")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"Building a block mask on {_machine(rows[0])}", fontsize=10)
    axes.grid(which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def attention_plot(rows: list[Row]) -> Figure:
    """Useful TFLOP/s of a forward and backward, for each mask and each way to attend, one panel for each shape."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    masks = list(dict.fromkeys(row["mask"] for row in rows))
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    panels = figure.subplots(len(shapes), 1, sharex=True, squeeze=False)[:, 0]
    for axes, shape in zip(panels, shapes, strict=True):
        here = [row for row in rows if row["shape"] == shape]
        for place, mask in enumerate(masks):
            found = {row["contender"]: row for row in here if row["mask"] == mask and row["contender"] in CONTENDERS}
            for number, contender in enumerate(name for name in CONTENDERS if name in found):
                at = place + 0.19 * (number - (len(found) - 1) / 2)
                speed = step_tflops(found[contender])
                axes.bar(at, speed, 0.17, color=CONTENDERS[contender])
                axes.text(at, speed + 6, f"{speed:.0f}", ha="center", fontsize=7, color="0.3")
        real = min(float(row["real"]) for row in here)
        axes.set_title(f"{shape}, {real:.0%} real", fontsize=9, loc="left")
        axes.set_ylabel("useful TFLOP/s")
        axes.set_xticks(range(len(masks)), masks)
        axes.tick_params(axis="x", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    for contender, colour in CONTENDERS.items():
        panels[0].bar(0, 0, color=colour, label=contender)
    figure.suptitle(f"Attention, forward and backward together, on {_machine(rows[0])}", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    return figure


def padding_plot(rows: list[Row]) -> Figure:
    """The module's time over that of a full batch against the share that is real: a panel for each mode and size."""
    kinds = list(dict.fromkeys((row["mode"], row["width"], row["batch"], row["length"]) for row in rows))
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.5, 2.5 * lines + 1), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, kind in zip(panels, kinds, strict=False):
        _padding_panel(axes, [row for row in rows if (row["mode"], row["width"], row["batch"], row["length"]) == kind])
        clock = "" if any(row["row_of_full"] for row in rows if row["mode"] == kind[0]) else ", GPU alone"
        axes.set_title(f"{kind[0]}{clock}, width {kind[1]}, {kind[2]} × {kind[3]}", fontsize=9)
    for axes in panels[len(kinds) :]:
        axes.remove()
    for axes in panels[max(0, len(kinds) - columns) : len(kinds)]:
        axes.set_xlabel("share of positions that is real")
        axes.tick_params(labelbottom=True)
    for axes in panels[::columns]:
        axes.set_ylabel("time, of a full batch's")
    figure.suptitle(f"The module, forward and backward, on {_machine(rows[0])}", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    return figure


def _padding_panel(axes: Axes, rows: list[Row]) -> None:
    for contender, (label, style, colour) in PACKING.items():
        found = sorted(
            (float(row["real"]), float(row["row_of_full"] or row["gpu_of_full"]))
            for row in rows
            if row["contender"] == contender
        )
        points = zip(*found, strict=True) if found else ([], [])
        axes.plot(*points, style, color=colour, markersize=4, label=label)
    axes.plot([0.3, 1], [0.35, 1.05], color="0.6", linewidth=1, label="the share that is real + 0.05")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def step_tflops(row: Row) -> float:
    """Useful TFLOP/s of forward and backward together: the work of both, in the time of a step."""
    work = sum(float(row[f"{part}_tflops"]) * float(row[f"{part}_ms"]) for part in ("forward", "backward"))
    return work / float(row["step_ms"])


def blocks_table(rows: list[Row], *, ways: bool = False) -> str:
    """Rows of block masks as a table in Markdown, short ones first; "–" is not measured, columns of that are left out.

    With ``ways`` it also says which share of the tiles was decided in which way.
    """
    if not rows:
        return ""
    columns = {
        name: title for name, title in BLOCK_COLUMNS.items() if any(_cell(row.get(name, "")) != "–" for row in rows)
    }
    head = ["N", "mask", *columns.values(), *([f"{' / '.join(WAYS)}, %"] if ways else [])]
    lines = [head, ["---"] * len(head)]
    for row in sorted(rows, key=lambda row: int(row["length"])):
        cells = [_short(int(row["length"])), _name(row), *(_cell(row.get(column, "")) for column in columns)]
        shares = [" / ".join(f"{float(row[f'{way}_percent']):.1f}" for way in WAYS)] if ways else []
        lines.append([*cells, *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(rows: list[Row], column: str) -> tuple[list[int], list[float]]:
    """Lengths and times of the rows that have a time."""
    timed = sorted((row for row in rows if _is_number(row[column])), key=lambda row: int(row["length"]))
    return [int(row["length"]) for row in timed], [float(row[column]) for row in timed]


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()


def _cell(cell: str) -> str:
    if not _is_number(cell):
        return cell.replace("none", "") or "–"
    if cell.isdigit():
        return cell
    number = float(cell)
    return f"{number:.{0 if number >= 100 else 2 if number >= 0.01 else 3}f}"


def _name(row: Row) -> str:
    return row["mask"] if row["batch"] == "1" else f"{row['mask']}, batch {row['batch']}"


def _short(length: int) -> str:
    return f"{length >> 20}M" if length >= 1 << 20 else f"{length >> 10}k"


def _machine(row: Row) -> str:
    threads = ", one thread" if row.get("threads") == "1" else ""
    return f"{row['device']}, torch {row['torch']}{threads}"
