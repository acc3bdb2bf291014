"""Which attention each backend can do, and how far its results are from the truth: the grid behind docs/notes/backends.md.

    python benchmarks/grid.py --backend triton --shard 0/8 --out benchmarks/results/grid.csv

Output and gradients are compared with the float64 reference; right means no further from it than tests/evidence.py allows: on a
GPU three times as far as the plain reference in the same dtype, and half a rounding step. Log-sum-exp likewise, where it is
asked for.
One base case varies along one axis at a time; tests/pairs.py lets any two meet. A shard is every n-th case, so that processes can share the work;
``--only-missing`` leaves out what the file has rows of.
"""

import argparse
import csv
import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

from rows import append
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.attention.backends.base import BackendName
from maskloom.attention.backends.choose import BACKENDS
from maskloom.masks.algebra import Mask
from tests.evidence import gather, gather_lse
from tests.pairs import BATCH, DTYPES, HEAD_DIMS, HEADS, MASKS, Heads, mask_of

EVERY_LENGTH = [(1, 1), (2, 2), (127, 127), (128, 128), (129, 129), (1000, 1000), (129, 1000), (1000, 129), (1, 1000)]
SOME_LENGTHS = [(129, 129), (1000, 1000)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


GROUPED = Heads(4, 2)


@dataclass(frozen=True)
class Case:
    """One kind of attention, at several lengths."""

    backend: BackendName
    mask: str = "causal & lengths"
    dtype: torch.dtype = torch.bfloat16
    heads: Heads = GROUPED
    head_dim: int = 64
    lse: bool = False
    lengths: tuple[tuple[int, int], ...] = tuple(SOME_LENGTHS)


def cases(backend: BackendName) -> list[Case]:
    """The base case at every length, then each axis by itself."""
    base = Case(backend, mask="documents & causal" if backend == "varlen" else "causal & lengths")
    every = [
        replace(base, lengths=tuple(EVERY_LENGTH)),
        replace(base, dtype=torch.float32, lengths=tuple(EVERY_LENGTH)),
    ]
    every += [replace(base, head_dim=size, dtype=dtype) for dtype, size in itertools.product(DTYPES[:3:2], HEAD_DIMS)]
    every += [replace(base, mask=mask, dtype=dtype) for mask, dtype in itertools.product(MASKS, DTYPES)]
    every += [replace(base, heads=heads) for heads in HEADS]
    every += [replace(base, lse=True, head_dim=size) for size in (64, 128)]
    return list(dict.fromkeys(every))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th case from the i-th on")
    parser.add_argument("--only-missing", action="store_true", help="what the file has no row of")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grid.csv"))
    arguments = parser.parse_args()
    shard, shards = map(int, arguments.shard.split("/"))
    everything = [case for backend in arguments.backend for case in cases(backend)]
    done = rows_in(arguments.out) if arguments.only_missing else []
    for case in everything[shard::shards]:
        for q_len, kv_len in case.lengths:
            which = described(case, q_len, kv_len)
            if which in done:
                continue
            verdict, ratio = tried(case, q_len, kv_len)
            row = {**which, "verdict": verdict, "error_to_plain": "" if ratio is None else f"{ratio:.2f}"}
            append(arguments.out, row)
            if verdict != "right":
                print(*row.values(), sep=" | ", flush=True)


def described(case: Case, q_len: int, kv_len: int) -> dict[str, str]:
    """The cells of a row that say what was tried."""
    cells = {
        "backend": case.backend,
        "mask": case.mask,
        "dtype": str(case.dtype).removeprefix("torch."),
        "heads": f"{case.heads.query}/{case.heads.key}",
        "head_dim": case.head_dim,
        "queries": q_len,
        "keys": kv_len,
        "lse": case.lse,
    }
    return {name: str(cell) for name, cell in cells.items()}


def rows_in(path: Path) -> list[dict[str, str]]:
    """What was tried in the rows of a file."""
    if not path.exists():
        return []
    names = described(Case("reference"), 1, 1)
    with path.open(newline="") as file:
        return [{name: row[name] for name in names} for row in csv.DictReader(file)]


def tried(case: Case, q_len: int, kv_len: int) -> tuple[str, float | None]:
    """What came of it, and the largest error relative to that of the plain reference in the same dtype."""
    generator = torch.Generator().manual_seed(q_len * kv_len)
    shapes = [(BATCH, case.heads.query, q_len), *[(BATCH, case.heads.key, kv_len)] * 2]
    tensors = [torch.randn(*shape, case.head_dim, generator=generator).to(DEVICE, case.dtype) for shape in shapes]
    try:
        mask = mask_of(case.mask, q_len, kv_len, case.heads.query, DEVICE)
        table = mask.dense(q_len, kv_len, batch=BATCH, heads=case.heads.query, device=DEVICE)
        found = gather(lambda *qkv: attended(case, mask, *qkv), *tensors, table=table)
        of_lse = gather_lse(lambda *qkv: lse_of(case, mask, *qkv), *tensors, table=table) if case.lse else []
    except (ValueError, TypeError) as error:
        return f"refused: {str(error).split(': ', 1)[-1]}", None
    except Exception as error:  # a backend that breaks is what this is to find
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}", None
    try:
        for evidence in (found, *of_lse):
            evidence.check()
    except AssertionError as error:
        return f"wrong: {error}", None
    ratios = [ours / found.plain[name] for name, ours in found.ours.items() if found.plain[name] > 1e-12]
    return "right", max(ratios, default=None)


def attended(case: Case, mask: Mask, *tensors: torch.Tensor) -> torch.Tensor:
    return loom.attend(*tensors, mask, backend=case.backend)


def lse_of(case: Case, mask: Mask, *tensors: torch.Tensor) -> torch.Tensor:
    return loom.attend(*tensors, mask, backend=case.backend, return_aux=AuxRequest(lse=True))[1].lse


if __name__ == "__main__":
    main()
