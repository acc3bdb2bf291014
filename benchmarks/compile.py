"""Compiling from cold: 28 lengths through ``attend``, forward and backward, in one fresh process per backend.

    python benchmarks/compile.py --backend TRITON --out benchmarks/results/compile.csv

Needs a CUDA device. Each length is checked against the dense reference in float32 before it counts.
"""

import argparse
import time
from pathlib import Path

import torch
from rows import append

import maskloom as loom
from maskloom.attention.compiled import compiled_kinds

MASKS = {
    "causal & lengths": lambda lens: loom.causal & loom.lengths(lens),
    "window & lengths": lambda lens: loom.window(back=255) & loom.lengths(lens),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["TRITON", "FLASH"], default="TRITON")
    parser.add_argument("--mask", choices=list(MASKS), default="causal & lengths")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile.csv"))
    arguments = parser.parse_args()

    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [200 + 37 * step for step in range(28)]
    worst, attend_s = 0.0, 0.0
    for length in lengths:
        lens = torch.randint(1, length + 1, (4,), device="cuda", generator=generator)
        blocks = loom.block_mask(MASKS[arguments.mask](lens), length, length)
        tensors = [
            torch.randn(4, 8, length, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
            for _ in range(3)
        ]
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = loom.attend(*tensors, blocks, kernel_options={"BACKEND": arguments.backend})
        out.backward(torch.ones_like(out))
        torch.cuda.synchronize()
        attend_s += time.perf_counter() - start
        worst = max(worst, worst_error(out, tensors, blocks.mask_mod))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    row = {
        "benchmark": "28 lengths from cold",
        "backend": arguments.backend,
        "mask": arguments.mask,
        "shape": "B4 H8 D64 bf16, lengths 200 to 1199, forward and backward",
        "graphs": graphs,
        "kinds": compiled_kinds(),
        "seconds": round(attend_s, 2),
        "worst_relative_error": f"{worst:.5f}",
    }
    append(arguments.out, row)
    print(*(f"{name}: {value}" for name, value in row.items()), sep="\n")


def worst_error(out: torch.Tensor, tensors: list[torch.Tensor], mask: loom.masks.algebra.Mask) -> float:
    """The largest relative error of the output and the three gradients against the dense reference in float32."""
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected, _ = loom.reference(*exact, mask)
    expected.backward(torch.ones_like(expected))
    pairs = [(out, expected), *((ours.grad, theirs.grad) for ours, theirs in zip(tensors, exact, strict=True))]
    errors = [float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    assert all(error < 0.02 for error in errors), f"wrong result: relative errors {errors}"
    return max(errors)


if __name__ == "__main__":
    main()
