"""What it costs that queries, keys and values are parts of one projection: attention over such views, and over tensors of their own.

    python benchmarks/fused_projection.py --out benchmarks/results/fused_projection.csv

bf16, 16 heads of 128, on a GPU. ``forward_ms`` and ``ms``, of a forward and backward, are the GPU's own time, medians of turns that all
share. ``layout`` is ``one projection``, whose tokens are 3 · H · D apart, or ``of their own``. "torch's compiled FlexAttention" is compiled with
dynamic sizes, as maskloom's kernels are, over a block mask that was built before.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clocks import once_device_ms
from rows import append
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

import maskloom as loom

HEADS, HEAD_DIM = 16, 128
LAYOUTS = ("one projection", "of their own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    for name, mask, batch, length in cases():
        for row in measured(name, mask, batch, length, given.repeats):
            append(given.out, row)
            print(*row.values(), sep="  ", flush=True)


def cases() -> list[tuple[str, loom.Mask, int, int]]:
    documents = loom.documents(offsets=torch.linspace(0, 32768, 33).long().cuda(), length=32768)
    lens = torch.linspace(2048, 4096, 8).long().cuda()
    return [
        ("causal & lengths", loom.causal & loom.lengths(lens), 8, 4096),
        ("causal & 32 documents", loom.causal & documents, 1, 32768),
    ]


def inputs(layout: str, batch: int, length: int) -> list[Tensor]:
    if layout == "of their own":
        shape = batch, HEADS, length, HEAD_DIM
        return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    outputs = torch.randn(batch, length, 3 * HEADS * HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    parts = outputs.split(HEADS * HEAD_DIM, -1)
    return [part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2).requires_grad_() for part in parts]


def measured(name: str, mask: loom.Mask, batch: int, length: int, repeats: int) -> list[dict[str, Any]]:
    flex: Any = torch.compile(flex_attention, dynamic=True)
    blocks = loom.block_mask(mask, length, length)
    contenders: dict[str, Callable[..., Tensor]] = {
        "attend, triton": lambda *qkv: loom.attend(*qkv, mask, backend="triton"),
        "attend, flash": lambda *qkv: loom.attend(*qkv, mask, backend="flash"),
        "torch's compiled FlexAttention": lambda *qkv: flex(*qkv, block_mask=blocks),
    }
    gradient = torch.randn(batch, length, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    runs: dict[tuple[str, str, str], Callable[[], object]] = {}
    outs: list[Tensor] = []
    for layout in LAYOUTS:
        for contender, attend in contenders.items():
            torch.manual_seed(0)
            qkv = inputs(layout, batch, length)
            runs[contender, layout, "forward_ms"] = lambda qkv=qkv, attend=attend: attend(*qkv)
            runs[contender, layout, "ms"] = lambda qkv=qkv, attend=attend: torch.autograd.grad(
                attend(*qkv), qkv, gradient
            )
            for _ in range(3):
                runs[contender, layout, "ms"]()
            if layout == LAYOUTS[0]:
                outs.append(attend(*qkv).detach().float())
    for out in outs[1:]:
        assert float((out - outs[0]).norm() / outs[0].norm()) < 5e-3
    times: dict[tuple[str, str, str], list[float]] = {run: [] for run in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(once_device_ms(run, device="cuda"))
    return [
        {"mask": name, "batch": batch, "length": length, "contender": contender, "layout": layout}
        | {clock: round(statistics.median(times[contender, layout, clock]), 4) for clock in ("forward_ms", "ms")}
        for contender in contenders
        for layout in LAYOUTS
    ]


if __name__ == "__main__":
    main()
