"""Puts tables into the pages, each between two marks that name it: from committed rows, and from the code itself.

python -m docs.make_tables
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from docs import make_backends, make_plots
from docs.make_backends import table
from docs.make_plots import rows_of

DOCS = Path(__file__).parent


def main() -> None:
    """Write every page that has such tables."""
    for name in PAGES:
        (DOCS / name).write_text(page(name))


def page(name: str) -> str:
    """A page as it is, with its tables made again."""
    return filled((DOCS / name).read_text(), PAGES[name])


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text, with each table between ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, make in tables.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(first) != 1 or text.count(last) != 1:
            raise ValueError(f"the page has no place for the table {name!r}: {first} and {last}, once each")
        before, rest = text.split(first)
        text = f"{before}{first}\n{make()}\n{last}{rest.split(last)[1]}"
    return text


def compiling() -> str:
    """28 lengths from cold."""
    lines = ["backend | graphs | seconds | worst relative error"]
    lines += [
        f"{row['backend']} | {row['graphs']} | {row['seconds']} | {float(row['worst_relative_error']):.4f}"
        for row in rows_of("compile")
    ]
    return table(lines)


def in_short() -> str:
    """The GPU in the README: attention, block masks, compiling."""
    lines = [" | with torch alone | with maskloom | times faster"]
    padded = {(row["shape"], row["mask"], row["contender"]): row for row in rows_of("attention_gpu")}
    for (shape, mask, contender), row in padded.items():
        ours = padded.get((shape, mask, "attend, auto"))
        if ours is not None and (mask, contender) in ATTENTION and row["section"] == "padded":
            what = f"attention, `{mask}`, forward and backward, {shape}, {float(row['real']):.0%} real"
            lines.append(f"{what} | {compared(row['step_ms'], ours['step_ms'], contender)}")
    for row in rows_of("blocks_gpu"):
        length = int(row["length"])
        if (row["mask"], length) in BLOCKS:
            what = f"block mask, `{row['mask']}`, batch {row['batch']}, {make_plots._short(length)}"
            lines.append(f"{what} | {compared(row['torch_eager_ms'], row['ours_ms'], 'eager')}")
    for row in rows_of("compile"):
        graphs = f"{row['graphs']} graph" + "s" * (row["graphs"] != "1")
        lines.append(
            f"compiling, `{row['mask']}`, {row['benchmark']}, {row['backend']} | – | {row['seconds']} s, {graphs} | –"
        )
    return table(lines)


ATTENTION = [("causal & padding", "sdpa, dense mask"), ("causal & lengths", "torch varlen, packed")]
BLOCKS = [("causal & padding", 1 << 14), ("causal & padding", 1 << 17), ("causal", 1 << 20)]


def compared(theirs: str, ours: str, what: str) -> str:
    """Milliseconds of both, and how many times less ours are."""
    if theirs == "":
        return f"– | {float(ours):.2f} ms | –"
    return f"{float(theirs):.2f} ms, {what} | {float(ours):.2f} ms | {float(theirs) / float(ours):.1f}"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "backends.md": make_backends.TABLES,
    "blocks.md": {"blocks_gpu": lambda: make_plots.gpu_table(rows_of("blocks_gpu"))},
    "notes/compile.md": {"compile": compiling},
    "../README.md": {"gpu": in_short},
}

if __name__ == "__main__":
    main()
