"""Compiling from cold: 28 lengths through ``attend``, forward and backward, in one fresh process per backend.

    python benchmarks/compile.py --backend TRITON --out benchmarks/results/compile.csv

Needs a CUDA device. Nothing was compiled for the GPU before, but Python had compiled the modules that are imported, as in
every process after the first one of an installation. Each length is checked against the dense reference in float32
before it counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from clocks import caches
from rows import append

import maskloom as loom
from maskloom.attention.backends.compiled import compiled_kinds

MASKS = {
    "causal & lengths": lambda lens: loom.causal & loom.lengths(lens),
    "window & lengths": lambda lens: loom.window(back=255) & loom.lengths(lens),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["TRITON", "FLASH"], default="TRITON")
    parser.add_argument("--mask", choices=list(MASKS), default="causal & lengths")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile.csv"))
    parser.add_argument("--lengths", type=int, default=28, help="how many")
    parser.add_argument(
        "--here", action="store_true", help="in this process, whatever it finds compiled; print the row"
    )
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measured(arguments.backend, arguments.mask, arguments.lengths)))
        return
    row = in_fresh_process(*sys.argv[1:])
    append(arguments.out, row)
    print(*(f"{name}: {value}" for name, value in row.items()), sep="\n")


def in_fresh_process(*arguments: str) -> dict[str, object]:
    """The row that a process measures whose compilers find nothing compiled for the GPU."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        python = os.environ | {"PYTHONPYCACHEPREFIX": f"{empty}/python"}
        python.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(place: str, *lengths: str) -> str:
            return subprocess.run(
                [sys.executable, __file__, "--here", *arguments, *lengths],
                check=True, stdout=subprocess.PIPE, text=True, env=python | caches(f"{empty}/{place}"),
            ).stdout  # fmt: skip

        run("before", "--lengths", "1")  # Python compiles the modules that compiling imports
        lines = run("now").splitlines()
    return json.loads(lines[-1])


def measured(backend: str, mask: str, count: int) -> dict[str, object]:
    """One row, measured in this process."""
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [200 + 37 * step for step in range(count)]
    worst, attend_s = 0.0, 0.0
    for length in lengths:
        lens = torch.randint(1, length + 1, (4,), device="cuda", generator=generator)
        blocks = loom.block_mask(MASKS[mask](lens), length, length)
        tensors = [
            torch.randn(4, 8, length, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
            for _ in range(3)
        ]
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = loom.attend(*tensors, blocks, kernel_options={"BACKEND": backend})
        out.backward(torch.ones_like(out))
        torch.cuda.synchronize()
        attend_s += time.perf_counter() - start
        worst = max(worst, worst_error(out, tensors, blocks.mask_mod))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {
        "benchmark": f"{count} lengths from cold",
        "backend": backend,
        "mask": mask,
        "shape": f"B4 H8 D64 bf16, lengths 200 to {lengths[-1]}, forward and backward",
        "graphs": graphs,
        "kinds": compiled_kinds(),
        "seconds": round(attend_s, 2),
        "worst_relative_error": f"{worst:.5f}",
    }


def worst_error(out: torch.Tensor, tensors: list[torch.Tensor], mask: loom.masks.algebra.Mask) -> float:
    """The largest relative error of the output and the three gradients against the dense reference in float32."""
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected, _ = loom.reference(*exact, mask)
    expected.backward(torch.ones_like(expected))
    grads = [(ours.grad, theirs.grad) for ours, theirs in zip(tensors, exact, strict=True)]
    pairs = [(out.detach(), expected.detach()), *grads]
    errors = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    assert all(error < 0.02 for error in errors), f"wrong result: relative errors {errors}"
    return max(errors)


if __name__ == "__main__":
    main()
