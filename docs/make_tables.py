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
    lines = ["| with torch alone | with maskloom | times faster"]
    attention = [
        row for row in rows_of("attention_gpu") if (row["section"], row["mask"]) == ("padded", "causal & padding")
    ]
    plain = {row["shape"]: row for row in attention if row["contender"] == "sdpa, dense mask"}
    for row in attention:
        if row["contender"] == "attend, auto":
            batch, theirs = f"{row['shape']}, {float(row['real']):.0%} real", float(plain[row["shape"]]["step_ms"])
            lines.append(f"attention, forward and backward, {batch} | {compared(theirs, row['step_ms'], 'dense mask')}")
    for row in rows_of("blocks_gpu"):
        length = int(row["length"])
        if (row["mask"], length) in BLOCKS:
            what = f"block mask, `{row['mask']}`, batch {row['batch']}, {make_plots._short(length)}"
            lines.append(f"{what} | {compared(row['torch_eager_ms'], row['ours_ms'], 'eager')}")
    for row in rows_of("compile"):
        graphs = f"{row['graphs']} graph" + "s" * (row["graphs"] != "1")
        lines.append(f"compiling, 28 lengths from cold, {row['backend']} | – | {row['seconds']} s, {graphs} | –")
    return table(lines)


BLOCKS = [("causal & padding", 1 << 14), ("causal & padding", 1 << 17), ("causal", 1 << 20)]


def compared(theirs: float | str, ours: str, what: str) -> str:
    """Milliseconds of both, and how many times less ours are."""
    if theirs == "":
        return f"– | {float(ours):.2f} ms | –"
    return f"{float(theirs):.2f} ms, {what} | {float(ours):.2f} ms | {float(theirs) / float(ours):.1f}"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "backends.md": make_backends.TABLES,
    "blocks.md": {"blocks_gpu": lambda: make_plots.gpu_table(rows_of("blocks_gpu"))},
    # "notes/compile.md": {"compile": compiling},
    # "../README.md": {"gpu": in_short},
}

if __name__ == "__main__":
    main()
