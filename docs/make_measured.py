"""Tables of the page of measurements that no other page has, from committed rows."""

import re
from collections.abc import Iterable

from docs.make_backends import table
from docs.make_plots import RESULTS, _is_number, rows_of

_FIRST_CALLS = {
    "attend, new mask": "`attend` with a new mask of a structure that it knows",
    "attend, new structure": "`attend` with a new structure",
    "attend, ready mask, one query": "`attend` of one query, with a ready mask",
    "block_mask, causal, 1024": "`block_mask` of `causal`",
    "torch eager, causal, 1024": "torch's `create_block_mask` of `causal`, eager",
    "block_mask, documents, 1024": "`block_mask` of documents",
    "torch eager, documents, 1024": "torch's `create_block_mask` of documents, eager",
}


def first_calls() -> str:
    """What first calls cost the host, in milliseconds."""
    found = {row["what"]: float(row["us"]) / 1000 for row in rows_of("first_call")}
    return table(["what | ms", *(f"{words} | {found[what]:.2f}" for what, words in _FIRST_CALLS.items())])


def small_calls() -> str:
    """What small calls cost on a GPU, in milliseconds."""
    found = [row for row in rows_of("small_calls") if row["state"] == "after"]
    lines = ["what | shape | ms"]
    for row in found:
        what = (
            f"{row['what']}, by CUDA graphs"
            if row["graphs"] == "True" and row["what"].startswith("block_mask")
            else row["what"]
        )
        lines.append(f"{what} | {row['shape']} | {float(row['ms']):.2f}")
    return table(lines)


def pictures() -> str:
    """What a picture costs beside attention-gym's, until its PNG is written."""
    found = {(row["what"], int(row["length"])): row for row in rows_of("pictures")}
    lengths = sorted({length for _, length in found})
    lines = [" | ".join(["", *(f"{length:,} tokens" for length in lengths)])]
    for what in dict.fromkeys(what for what, _ in found):
        cells = [found.get((what, length)) for length in lengths]
        lines.append(" | ".join([f"`{what}`", *(_cost(row) if row else "–" for row in cells)]))
    return table(lines)


def _cost(row: dict[str, str]) -> str:
    ms, mib = float(row["ms"]), float(row["mib"])
    return f"{ms / 1000:.2f} s, {mib:.0f} MiB" if mib < 1000 else f"{ms / 1000:.1f} s, {mib / 1024:.1f} GiB"


def importing() -> str:
    """What the import adds to that of torch."""
    lines = ["import torch, ms | import maskloom, ms | modules | % of torch"]
    columns = ("import_torch_ms", "maskloom_ms", "modules", "percent_of_torch")
    lines += [" | ".join(row[column] for column in columns) for row in rows_of("importing")]
    return table(lines)


def transformers_masks() -> str:
    """Block masks of packed rows for models of transformers."""
    lines = ["layer | rows | length | `flex_attention_mask`, compiled, s | maskloom, s | times faster"]
    columns = ("mask", "batch", "length", "flex_attention_mask_s", "maskloom_s", "ratio")
    lines += [" | ".join(row[column] for column in columns) for row in rows_of("transformers_masks")]
    return table(lines)


def transformers_gpu() -> str:
    """A training step of a model of transformers by each of its implementations; the fastest of a row in bold."""
    kinds: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows_of("transformers_gpu"):
        kind = tuple(row[name] for name in ("case", "width", "rows", "length", "form", "real"))
        kinds.setdefault(kind, {})[row["contender"]] = row["ms"]
    ways = list(dict.fromkeys(way for found in kinds.values() for way in found))
    lines = [" | ".join(["step", "width", "batch", "form", "real", *(f"{way}, ms" for way in ways)])]
    for (case, width, rows, length, form, real), found in kinds.items():
        cells = [case, width, f"{rows} × {length}", form, f"{float(real):.0%}"]
        lines.append(" | ".join([*cells, *_times([found.get(way, "") for way in ways])]))
    return table(lines)


def _times(cells: list[str]) -> list[str]:
    """Times in milliseconds, the least in bold, and in words what has none."""
    times = [float(cell) for cell in cells if _is_number(cell)]
    words = {"": "–", "OutOfMemoryError": "out of memory"}
    said = [f"{float(cell):.1f}" if _is_number(cell) else words.get(cell, cell) for cell in cells]
    return [
        f"**{text}**" if _is_number(cell) and float(cell) == min(times) else text
        for text, cell in zip(said, cells, strict=True)
    ]


def exactness() -> str:
    """How many random masks had torch's tables."""
    lines = ["random masks | equal to torch's tables | undefined in torch | wrong"]
    columns = ("cases", "identical", "undefined_in_torch", "wrong")
    lines += [" | ".join(f"{int(row[column]):,}" for column in columns) for row in rows_of("exactness")]
    return table(lines)


def sources() -> str:
    """For each file of rows: machine, versions and commands."""
    lines = ["rows | machine | torch | FlashAttention 4 | made by"]
    for path in sorted(RESULTS.glob("*.csv")):
        rows = rows_of(path.stem)
        said = {name: listed(row[name] for row in rows) for name in ("device", "torch", "flash_attn_4")}
        commands = listed(f"`{program_of(row['command'])}`" for row in rows)
        link = f"[{path.name}](../benchmarks/results/{path.name})"
        lines.append(" | ".join([link, said["device"], said["torch"], said["flash_attn_4"] or "–", commands]))
    return table(lines)


def program_of(command: str) -> str:
    """The program of a command, without launchers and options."""
    found = re.search(r"benchmarks/\w+\.py|docs\.\w+", command)
    return found[0] if found else command


def _program(command: str) -> str:
    """What was run, without its own arguments: ``torchrun --nproc-per-node 2 benchmarks/context_parallel.py``."""
    script = re.match(r".*?\.py\b", command)
    return script[0] if script else command.split(" --")[0]


def listed(values: Iterable[str]) -> str:
    """Each value once, in the order in which they come."""
    return ", ".join(dict.fromkeys(filter(None, values)))


TABLES = {
    "first_calls": first_calls,
    "small_calls": small_calls,
    "importing": importing,
    "pictures": pictures,
    "transformers_masks": transformers_masks,
    "transformers_gpu": transformers_gpu,
    "exactness": exactness,
    "sources": sources,
}
