"""Puts tables into the pages, each between two marks that name it: from committed rows, and from the code itself.

python -m docs.make_tables
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from docs import make_backends, make_measured, make_models, make_plots, make_training, make_versions
from docs.make_backends import table
from docs.make_plots import _is_number, rows_of

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


def packing() -> str:
    """How full rows are, for each distribution of lengths and each capacity."""
    rows = rows_of("packing")
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = ["lengths | capacity | " + " | ".join(f"{way}: fill" + ", s" * (way != ways[0]) for way in ways)]
    for kind, capacity in dict.fromkeys((row["lengths"], row["capacity"]) for row in rows):
        found = [row for row in rows if (row["lengths"], row["capacity"]) == (kind, capacity)]
        cells = [", ".join(filter(None, (f"{float(row['fill']):.4f}", row["seconds"]))) for row in found]
        lines.append(" | ".join([kind, f"{int(capacity):,}", *cells]))
    return table(lines)


def padding_module() -> str:
    """The module's time over that of a full batch by the share that is real, in brackets the GPU's own, and its plot; nothing before it
    is measured."""
    rows = rows_of("padding_module")
    if not rows:
        return ""
    shares = list(dict.fromkeys(row["share"] for row in rows))
    lines = [" | ".join(["width, batch", "", *(f"{float(share):.0%} real" for share in shares)])]
    for kind in dict.fromkeys(
        (row["width"], row["batch"], row["length"], row["mode"], row["contender"]) for row in rows
    ):
        width, batch, length, mode, contender = kind
        if contender == "full":
            continue
        found = {row["share"]: row for row in rows if kind == tuple(row[name] for name in _PADDING_KIND)}
        words = make_plots.PACKING[contender][0]
        cells = [_of_full(found.get(share)) for share in shares]
        lines.append(" | ".join([f"{width}, {batch} × {length}, {mode}", words, *cells]))
    picture = "![Time of the module against the share of positions that is real](pictures/padding_module.png)"
    return f"{picture}\n\n{table(lines)}"


def _of_full(row: make_plots.Row | None) -> str:
    if row is None:
        return "–"
    return f"{make_plots._cell(row['row_of_full'])} ({make_plots._cell(row['gpu_of_full'])})"


_PADDING_KIND = ("width", "batch", "length", "mode", "contender")


def in_short() -> str:
    """The GPU in the README: whole models, attention, block masks."""
    lines = [" | with torch alone | with maskloom | times faster"]
    lines += [f"{what} | {compared(theirs, ours, way)}" for what, theirs, ours, way in make_models.in_short()]
    padded = make_backends.measured("padded")
    for (shape, mask, contender), row in padded.items():
        ours = padded.get((shape, mask, "attend, auto"))
        if ours is not None and (mask, contender) in ATTENTION:
            what = f"attention, `{mask}`, {rows_in_words(shape)}, {float(row['real']):.0%} real"
            lines.append(f"{what} | {compared(row['step_ms'], ours['step_ms'], contender)}")
    for row in rows_of("blocks_gpu"):
        length = int(row["length"])
        if (row["mask"], length) in BLOCKS:
            what = f"block mask, `{row['mask']}`, batch {row['batch']}, {make_plots._short(length)}"
            way = "compiled" if row["torch_compiled_ms"] else "eager"
            lines.append(f"{what} | {compared(row[f'torch_{way}_ms'], row['ours_ms'], way)}")
    return table(lines)


def rows_in_words(shape: str) -> str:
    """``B8 H16 N4096 D128`` as 8 rows of 4k."""
    return f"{make_backends.batch_of(shape)} rows of {make_backends.length_of(shape)}"


ATTENTION = [("causal & padding", "sdpa, dense mask"), ("causal & lengths", "torch varlen, packed")]
BLOCKS = [("causal & padding", 1 << 14), ("causal & padding", 1 << 17), ("causal", 1 << 20)]


def compared(theirs: str, ours: str, what: str) -> str:
    """Milliseconds of both, and how many times less ours are."""
    found = [f"{float(time):.2f} ms" if _is_number(time) else time or "–" for time in (theirs, ours)]
    faster = f"{float(theirs) / float(ours):.1f}" if _is_number(theirs) and _is_number(ours) else "–"
    return f"{found[0] if theirs == '' else f'{found[0]}, {what}'} | {found[1]} | {faster}"


def block_masks_cpu() -> str:
    """Block masks on the CPU."""
    return make_plots.blocks_table(rows_of("blocks"), ways=True)


def block_masks() -> str:
    """Block masks on the GPU."""
    rows = rows_of("blocks_gpu")
    older = "\n\nThese rows are older than the keeping of programs, which spares the run that records a mask."
    return make_plots.blocks_table(rows) + older * any("ours_host_ms" not in row for row in rows)


def attention_cpu() -> str:
    """Attention on the CPU: each way, its times and its memory."""
    lines = [" | N | forward | forward and backward | MiB"]
    for row in rows_of("attention_cpu"):
        length = re.search(r"N(\d+)", row["shape"])
        times = [row[name] for name in ("forward_ms", "forward_backward_ms", "peak_mib")]
        lines.append(" | ".join([f"`{row['contender']}`", length[1] if length else "–", *times]))
    return table(lines)


def blocks_beside_torch(name: str, lengths: Sequence[int]) -> str:
    """Milliseconds to build block masks of these lengths: maskloom's, and torch's in both ways, first calls too."""
    columns = {
        "ours_ms": "maskloom",
        "torch_eager_ms": "torch, eager",
        "torch_compiled_ms": "torch, compiled",
        "torch_compiled_first_call_ms": "its first call",
    }
    rows = sorted(rows_of(name), key=lambda row: int(row["length"]))
    lines = [" | ".join(["N", "mask", *columns.values()])]
    for row in rows:
        if int(row["length"]) in lengths:
            times = [make_plots._cell(row[column]) for column in columns]
            lines.append(" | ".join([make_plots._short(int(row["length"])), make_plots._name(row), *times]))
    return table(lines)


def aims_of_blocks() -> str:
    """What was aimed at for block masks on the GPU, and what came of it, from the least to the most."""
    lines = ["aim | measured"]
    for aim, masks, lengths, column, by in AIMS_OF_BLOCKS:
        rows = [row for row in rows_of("blocks_gpu") if row["mask"] in masks and int(row["length"]) in lengths]
        found = [
            float(row[column]) / (float(row[by]) if by else 1)
            for row in rows
            if _is_number(row[column]) and (not by or _is_number(row[by]))
        ]
        lines.append(
            f"{aim} | {' to '.join(dict.fromkeys(f'{end(found):.2f}' for end in (min, max))) if found else '–'}"
        )
    return table(lines)


EVERY = list(make_plots.COLOURS)
SHORT, AT_4K, AT_128K, AT_1M = range((1 << 14) + 1), [1 << 12], [1 << 17], [1 << 20]
AIMS_OF_BLOCKS: list[tuple[str, Sequence[str], Sequence[int], str, str]] = [
    ("at most 1 ms up to 16k", EVERY, SHORT, "ours_ms", ""),
    ("at most 3 ms at 128k, batch 8", EVERY[1:2], AT_128K, "ours_ms", ""),
    ("at most 16 ms at 1M", EVERY, AT_1M, "ours_ms", ""),
    ("first call in a process, at most 1000 ms", EVERY, SHORT, "ours_first_call_ms", ""),
    (
        "peak memory by the finished tables, at most 1.5, from 128k on",
        EVERY,
        AT_128K + AT_1M,
        "ours_peak_mb",
        "tables_mb",
    ),
    ("the same below, where tables have few MiB", EVERY, range(1 << 17), "ours_peak_mb", "tables_mb"),
    ("times faster than torch, compiled: at least 1 at 4k", EVERY, AT_4K, "torch_compiled_ms", "ours_ms"),
    ("at least 100 at 128k, batch 8", EVERY[1:2], AT_128K, "torch_compiled_ms", "ours_ms"),
    ("at least 100 at 1M, window and documents", EVERY[2:], AT_1M, "torch_compiled_ms", "ours_ms"),
    ("at least 50 at 1M, causal", EVERY[:1], AT_1M, "torch_compiled_ms", "ours_ms"),
    ("times faster than torch, eager", EVERY, range(1 << 21), "torch_eager_ms", "ours_ms"),
]


def context_parallel() -> str:
    """One sequence on several GPUs: each strategy beside one GPU."""
    lines = ["mask | positions | GPUs | | strategy | step, ms | times one GPU | received, MiB | tiles, most over mean"]
    for row in rows_of_if_measured("context_parallel"):
        received = f"{int(row['received']) / 2**20:.0f}" if row["received"] else "–"
        times = [f"{float(row[name]):.2f}" if row[name] else "–" for name in ("step_ms", "speedup")]
        lines.append(
            f"{row['mask']} | {int(row['length']):,} | {row['ranks']} | {row['contender']} | {row['strategy'] or '–'} | "
            f"{' | '.join(times)} | {received} | {row['balance'] or '–'}"
        )
    return table(lines) if len(lines) > 1 else "No rows are committed yet."


def rows_of_if_measured(name: str) -> list[dict[str, str]]:
    """The committed rows; none where there is no such file."""
    return rows_of(name) if (DOCS.parent / "benchmarks" / "results" / f"{name}.csv").exists() else []


def context_parallel_parts() -> str:
    """What each of two ranks computes, beside one GPU, for each mask and strategy."""
    rows = rows_of("context_parallel_parts")
    lines = ["mask | one GPU | a plan of one rank | " + " | ".join(f"{name}, ranks 0 and 1" for name in _STRATEGIES)]
    for mask in dict.fromkeys(row["mask"] for row in rows):
        found = [(row["strategy"], row["step_ms"]) for row in rows if row["mask"] == mask]
        cells = [
            ", ".join(f"{float(ms):.2f}" for name, ms in found if name == way)
            for way in ("whole", "mesh of one", *_STRATEGIES)
        ]
        lines.append(" | ".join([mask, *(cell or "–" for cell in cells)]))
    return table(lines)


_STRATEGIES = ("heads", "gather", "needed")

PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "backends.md": {**make_backends.GUIDE, "whole_model": make_models.whole_model},
    "decoding.md": {"decoding": make_models.decoding},
    "notes/backends.md": make_backends.NOTES,
    "blocks.md": {
        "cpu": lambda: blocks_beside_torch("blocks", [1 << 10, 1 << 13]),
        "gpu": lambda: blocks_beside_torch("blocks_gpu", [1 << 12, 1 << 17, 1 << 20]),
    },
    "notes/blocks.md": {"blocks_cpu": block_masks_cpu, "blocks_gpu": block_masks, "aims": aims_of_blocks},
    "notes/compile.md": {"compile": compiling},
    "padded_or_packed.md": {"packing": packing, "padding_module": padding_module},
    "several_gpus.md": {
        "context_parallel": context_parallel,
        "context_parallel_parts": context_parallel_parts,
        "train_lm_ranks": make_training.ranks,
    },
    "versions.md": make_versions.TABLES,
    "train_a_model.md": {"train_lm": make_training.learnt, "train_lm_gpu": make_training.measured},
    "measured.md": {
        **make_measured.TABLES,
        "gpu": in_short,
        "whole_model": make_models.whole_model,
        "beside_torch": make_backends.beside_torch,
        "short": make_backends.short,
        "aims": make_backends.aims,
        "block_masks": lambda: blocks_beside_torch("blocks_gpu", [1 << 12, 1 << 17, 1 << 20]),
        "block_masks_cpu": lambda: blocks_beside_torch("blocks", [1 << 10, 1 << 13]),
        "aims_of_blocks": aims_of_blocks,
        "decoding": make_models.decoding,
        "attention_cpu": attention_cpu,
        "compile": compiling,
        "context_parallel": context_parallel,
        "padding_module": padding_module,
    },
    "../README.md": {"gpu": in_short, "attention_cpu": attention_cpu},
}

if __name__ == "__main__":
    main()
