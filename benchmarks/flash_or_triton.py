"""From which size on FLASH is faster than Triton's kernel: a forward and backward of `attend` by each.

    python benchmarks/flash_or_triton.py --out benchmarks/results/flash_or_triton.csv

bf16, 16 heads of 64 and of 128, masks that were seen before. ``ms`` is the wall clock of a step alone, which waits for the host where
little is computed; ``host_ms`` the host's part; ``gpu_ms`` the device's own time. ``work`` is the binary logarithm of B · H · Q · K · D, by which
"auto" decides (`maskloom.attention.backends.base.LITTLE`). No cell is begun after ``--seconds``.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clocks import once_device_ms, once_host_ms, once_ms
from rows import append

import maskloom as loom

HEADS = 16
SIZES = ((4, 512), (1, 2048), (16, 1024), (4, 2048), (2, 4096), (1, 8192), (4, 4096), (8, 4096))
LONG_ROWS = (8192, 16384, 32768)
DOCUMENTS = (8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--masks", nargs="+", choices=("lengths", "documents"), default=("lengths", "documents"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=500)
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    cells = cells_of_lengths() if "lengths" in given.masks else []
    cells += cells_of_documents() if "documents" in given.masks else []
    for head_dim in (128, 64):
        for name, make, batch, length in cells:
            if time.monotonic() < deadline:
                for row in measured(name, make(), batch, length, head_dim, given.repeats):
                    append(given.out, row)
                    print(*row.values(), sep="  ", flush=True)


Cell = tuple[str, Callable[[], loom.Mask], int, int]
"""The mask's name, what makes it, B and L."""


def cells_of_lengths() -> list[Cell]:
    return [("causal & lengths", lambda b=b, n=n: of_lengths(b, n), b, n) for b, n in SIZES]


def cells_of_documents() -> list[Cell]:
    return [
        (f"causal & {many} documents", lambda n=n, many=many: of_documents(n, many), 1, n)
        for n in LONG_ROWS
        for many in DOCUMENTS
    ]


def of_lengths(batch: int, length: int) -> loom.Mask:
    """Three quarters are real."""
    lens = torch.linspace(0.5, 1, batch) if batch > 1 else torch.tensor([0.75])
    return loom.causal & loom.lengths((lens * length).long().cuda())


def of_documents(length: int, many: int) -> loom.Mask:
    """Documents that are equally long."""
    return loom.causal & loom.documents(offsets=torch.linspace(0, length, many + 1).long().cuda(), length=length)


def measured(name: str, mask: loom.Mask, batch: int, length: int, head_dim: int, repeats: int) -> list[dict[str, Any]]:
    inputs = [
        torch.randn(batch, HEADS, length, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    gradient = torch.randn_like(inputs[0])

    def step(backend: Any) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loom.attend(*inputs, mask, backend=backend), inputs, gradient)

    steps = {backend: step(backend) for backend in ("triton", "flash")}
    clocks: dict[str, Callable[..., float]] = {"ms": once_ms, "host_ms": once_host_ms, "gpu_ms": once_device_ms}
    times: dict[tuple[str, str], list[float]] = {(backend, clock): [] for backend in steps for clock in clocks}
    for run in steps.values():
        for _ in range(4):
            run()
    for _ in range(repeats):
        for backend, run in steps.items():
            for clock, once in clocks.items():
                times[backend, clock].append(once(run, device="cuda"))
    work = math.log2(batch * HEADS * length * length * head_dim)
    what = {
        "mask": name,
        "batch": batch,
        "heads": HEADS,
        "length": length,
        "head_dim": head_dim,
        "work": round(work, 2),
    }
    return [
        {**what, "backend": backend, **{clock: round(statistics.median(times[backend, clock]), 4) for clock in clocks}}
        for backend in steps
    ]


if __name__ == "__main__":
    main()
