"""Which attention each backend can do, and how far its results are from the truth: the grid behind docs/backends.md.

    python benchmarks/grid.py --backend triton --shard 0/8 --out benchmarks/results/grid.csv

Output and gradients are compared with the float64 reference; right means no further from it than tests/evidence.py allows: on a
GPU three times as far as the plain reference in the same dtype, and half a rounding step. Log-sum-exp likewise, where it is
asked for.
One base case varies along one axis at a time. A shard is every n-th case, so that processes can share the work.
"""

import argparse
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rows import append
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.attention.backends import BACKENDS, Backend
from maskloom.masks.algebra import Mask
from tests.evidence import gather

BATCH = 3
EVERY_LENGTH = [(1, 1), (2, 2), (127, 127), (128, 128), (129, 129), (1000, 1000), (129, 1000), (1000, 129), (1, 1000)]
SOME_LENGTHS = [(129, 129), (1000, 1000)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Heads(NamedTuple):
    query: int
    key: int


GROUPED = Heads(4, 2)


@dataclass(frozen=True)
class Case:
    """One kind of attention, at several lengths."""

    backend: Backend
    mask: str = "causal & lengths"
    dtype: torch.dtype = torch.bfloat16
    heads: Heads = GROUPED
    head_dim: int = 64
    lse: bool = False
    lengths: tuple[tuple[int, int], ...] = tuple(SOME_LENGTHS)


def mask_of(name: str, q_len: int, kv_len: int, heads: int) -> Mask:
    longest = max(q_len, kv_len)
    generator = torch.Generator().manual_seed(q_len + kv_len)
    lens = torch.tensor([longest * 7 // 10, longest // 3, longest])
    table = torch.rand(heads, q_len, kv_len, generator=generator) < 0.3
    masks = {
        "causal & lengths": lambda: loom.causal & loom.lengths(lens),
        "(window | sinks) & lengths": lambda: (loom.window(back=40) | loom.sinks(3)) & loom.lengths(lens),
        "documents & causal": lambda: loom.documents(offsets=torch.tensor([0, longest // 3, longest])) & loom.causal,
        "a table for each head": lambda: loom.from_dense(table[None]),
        "everything": lambda: loom.everything,
    }
    return masks[name]().to(DEVICE)


MASKS = ["causal & lengths", "(window | sinks) & lengths", "documents & causal", "a table for each head", "everything"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
HEADS = [Heads(4, 4), GROUPED, Heads(6, 2)]
HEAD_DIMS = [16, 32, 64, 80, 96, 128, 192, 256]


def cases(backend: Backend) -> list[Case]:
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
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th case from the i-th on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grid.csv"))
    arguments = parser.parse_args()
    shard, shards = map(int, arguments.shard.split("/"))
    everything = [case for backend in arguments.backend for case in cases(backend)]
    for case in everything[shard::shards]:
        for q_len, kv_len in case.lengths:
            verdict, ratio = tried(case, q_len, kv_len)
            row = {
                "backend": case.backend,
                "mask": case.mask,
                "dtype": str(case.dtype).removeprefix("torch."),
                "heads": f"{case.heads.query}/{case.heads.key}",
                "head_dim": case.head_dim,
                "queries": q_len,
                "keys": kv_len,
                "lse": case.lse,
                "verdict": verdict,
                "error_to_plain": "" if ratio is None else f"{ratio:.2f}",
            }
            append(arguments.out, row)
            if verdict != "right":
                print(*row.values(), sep=" | ", flush=True)


def tried(case: Case, q_len: int, kv_len: int) -> tuple[str, float | None]:
    """What came of it, and the largest error relative to that of the plain reference in the same dtype."""
    generator = torch.Generator().manual_seed(q_len * kv_len)
    shapes = [(BATCH, case.heads.query, q_len), *[(BATCH, case.heads.key, kv_len)] * 2]
    tensors = [torch.randn(*shape, case.head_dim, generator=generator).to(DEVICE, case.dtype) for shape in shapes]
    try:
        mask = mask_of(case.mask, q_len, kv_len, case.heads.query)
        table = mask.dense(q_len, kv_len, batch=BATCH, heads=case.heads.query, device=DEVICE)
        found = gather(lambda *qkv: attended(case, mask, *qkv), *tensors, table=table)
        if case.lse:
            check_lse(case, mask, table, tensors)
    except (ValueError, TypeError) as error:
        return f"refused: {str(error).split(': ', 1)[-1]}", None
    except Exception as error:  # a backend that breaks is what this is to find
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}", None
    try:
        found.check()
    except AssertionError as error:
        return f"wrong: {error}", None
    ratios = [ours / found.plain[name] for name, ours in found.ours.items() if found.plain[name] > 1e-12]
    return "right", max(ratios, default=None)


def attended(case: Case, mask: Mask, *tensors: torch.Tensor) -> torch.Tensor:
    return loom.attend(*tensors, mask, backend=case.backend)


def check_lse(case: Case, mask: Mask, table: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """The log-sum-exp and, where there is one, its gradient for queries and keys."""
    query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
    _, aux = loom.attend(query, key, value, mask, backend=case.backend, return_aux=AuxRequest(lse=True))
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    _, expected = loom.reference(*exact, table)
    seen = expected > -torch.inf
    assert torch.equal(seen, aux.lse > -torch.inf), "log-sum-exp of hidden queries"
    torch.testing.assert_close(aux.lse[seen].double(), expected[seen], rtol=1e-3, atol=1e-3)
    aux.lse[seen].sum().backward()
    expected[seen].sum().backward()
    for ours, theirs in ((query, exact[0]), (key, exact[1])):
        difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 0.01, f"gradient of the log-sum-exp is off by {difference:.1e}"


if __name__ == "__main__":
    main()
