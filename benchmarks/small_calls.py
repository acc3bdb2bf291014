"""What small calls cost the host: ready block masks, masks whose tensors change, new lengths, block masks, growing caches.

    python benchmarks/small_calls.py --out benchmarks/results/small_calls.csv --state after
    PYTHONPATH=<an older checkout>/src python benchmarks/small_calls.py --out ... --state before

``ms`` is the median of the host's time of a call, the device idle before it (`once_host_ms`), contenders by turns. Rows of
``block mask`` are wall-clock times, with the work of the device. ``launches`` counts 10,000 backward passes of FLASH over padded
rows, whose gradients are compared with those of the first, bit for bit where the kernel sums in a fixed order.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clocks import median_ms, once_host_ms, wait
from rows import append
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import maskloom as loom

B, H, N, D = 4, 8, 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", required=True, help="of the checkout: before, after")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--graphs", action="store_true", help="allow block masks by CUDA graphs")
    given = parser.parse_args()
    if given.graphs:
        loom.blocks.cuda_graphs(True)
    for name in given.sections:
        for row in SECTIONS[name](given.device, given.repeats):
            append(given.out, {"state": given.state, "graphs": given.graphs, "section": name, **row})
            print(given.state, name, *row.values(), sep="  ", flush=True)


def qkv(batch: int, heads: int, length: int, device: str, dim: int = D) -> list[Tensor]:
    return [torch.randn(batch, heads, length, dim, device=device, dtype=torch.bfloat16) for _ in range(3)]


def lengths_of(batch: int, length: int, device: str) -> Tensor:
    return torch.linspace(length / 2, length, batch, device=device).long()


def by_turns(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """The median host milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(5):
            run()
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(once_host_ms(run, device=device))
    return {name: statistics.median(found) for name, found in times.items()}


def attention(device: str, repeats: int) -> list[dict[str, Any]]:
    """One attention, forward: B4 H8 N256 D64."""
    query, key, value = qkv(B, H, N, device)
    lens = lengths_of(B, N, device)
    blocks = loom.block_mask(loom.causal & loom.lengths(lens), N, N)
    plain = create_block_mask(lambda b, h, q, k: (q >= k) & (q < lens[b]) & (k < lens[b]), B, None, N, N, device=device)
    flex: Any = torch.compile(flex_attention)
    runs: dict[str, Callable[[], object]] = {
        "torch's compiled flex, ready block mask": lambda: flex(query, key, value, block_mask=plain)
    }
    if device == "cuda":
        flash = {"BACKEND": "FLASH"}
        runs["torch's compiled flex, ready block mask, FLASH"] = lambda: flex(
            query, key, value, block_mask=plain, kernel_options=flash
        )
    other = lens.clone()  # what changes is not the lengths of the ready block mask
    mask = loom.causal & loom.lengths(other)
    for backend in ("triton", "flash") if device == "cuda" else ("auto",):

        def ready(backend: Any = backend) -> object:
            return loom.attend(query, key, value, blocks, backend=backend)

        def changed(backend: Any = backend) -> object:
            other.add_(0)
            return loom.attend(query, key, value, mask, backend=backend)

        def new_blocks(backend: Any = backend) -> object:
            made = loom.block_mask(loom.causal & loom.lengths(other), N, N)
            return loom.attend(query, key, value, made, backend=backend)

        runs |= {
            f"attend, ready block mask, {backend}": ready,
            f"attend, a mask whose lengths changed, {backend}": changed,
            f"block_mask of a new mask and attend, {backend}": new_blocks,
        }
    found = by_turns(runs, repeats, device)
    return [{"what": name, "shape": f"B{B} H{H} N{N} D{D}", "ms": round(ms, 4)} for name, ms in found.items()]


def new_lengths(device: str, repeats: int) -> list[dict[str, Any]]:
    """One attention, forward, whose length and mask were not seen before: B4 H8 D64, from 600 positions on."""
    steps = max(10, repeats // 5)
    whole = qkv(B, H, 600 + 10 * (steps + 8), device)
    lens = torch.linspace(0.5, 1, B, device=device)
    compiled: Any = torch.compile(create_block_mask, dynamic=True)
    flex: Any = torch.compile(flex_attention, dynamic=True)

    def by_torch(length: int, inputs: list[Tensor]) -> object:
        own = (lens * length).long()
        plain = lambda b, h, q, k: (q >= k) & (q < own[b]) & (k < own[b])  # noqa: E731
        return flex(*inputs, block_mask=compiled(plain, B, None, length, length, device=device))

    def ours(make: Callable[[int], Any], backend: Any) -> Callable[[int, list[Tensor]], object]:
        return lambda length, inputs: loom.attend(*inputs, make(length), backend=backend)

    runs: dict[str, Callable[[int, list[Tensor]], object]] = {"torch's compiled create_block_mask and flex": by_torch}
    masks: dict[str, Callable[[int], Any]] = {
        "causal & lengths": lambda length: loom.causal & loom.lengths((lens * length).long()),
        "causal & documents": lambda length: (
            loom.causal & loom.documents(offsets=documents_of(length, device), length=length)
        ),
    }
    for name, make in masks.items():
        for backend in ("triton", "flash") if device == "cuda" else ("auto",):
            runs[f"attend, {name}, {backend}"] = ours(make, backend)
    times: dict[str, list[float]] = {name: [] for name in runs}
    lengths = iter(range(600, whole[0].shape[2]))
    for step in range(steps):
        for name, run in runs.items():
            length = next(lengths)
            inputs = [tensor[:, :, :length] for tensor in whole]
            ms = once_host_ms(lambda run=run, length=length, inputs=inputs: run(length, inputs), device=device)
            if step >= 5:  # the first ones compile
                times[name].append(ms)
    shape = f"B{B} H{H} N600+ D{D}"
    return [
        {"what": f"a new length: {name}", "shape": shape, "ms": round(statistics.median(each), 4)}
        for name, each in times.items()
    ]


def documents_of(length: int, device: str) -> Tensor:
    """Offsets of 40 documents."""
    return torch.linspace(0, length, 41, device=device).long()


def block_masks(device: str, repeats: int) -> list[dict[str, Any]]:
    """Block masks of masks with new tensors, batch 8: wall-clock."""
    rows = []
    compiled: Any = torch.compile(create_block_mask)
    for length in (1024, 4096, 16384) if device == "cuda" else (256,):
        lens = lengths_of(8, length, device)
        pads = torch.arange(length, device=device) >= lens[:, None]
        ends = torch.arange(0, length + 1, length // 16, device=device)
        masks: dict[str, Callable[[], Any]] = {
            "causal & lengths": lambda lens=lens: loom.causal & loom.lengths(lens),
            "causal & padding": lambda pads=pads: loom.causal & loom.padding(pads),
            "documents": lambda ends=ends, length=length: loom.causal & loom.documents(offsets=ends, length=length),
        }
        for name, make in masks.items():

            def build(make: Callable[[], Any] = make, length: int = length) -> object:
                return loom.block_mask(make(), length, length)

            build()
            build()
            ms = median_ms(build, repeats=max(5, repeats // 5), device=device)
            rows.append({"what": f"block_mask, {name}", "shape": f"B8 {length}", "ms": round(ms, 4)})

        def by_torch(length: int = length, lens: Tensor = lens) -> object:
            plain = lambda b, h, q, k: (q >= k) & (q < lens[b]) & (k < lens[b])  # noqa: E731
            return compiled(plain, 8, None, length, length, device=device)

        ms = median_ms(by_torch, repeats=max(5, repeats // 5), device=device)
        rows.append(
            {
                "what": "torch's compiled create_block_mask, causal & lengths",
                "shape": f"B8 {length}",
                "ms": round(ms, 4),
            }
        )
    return rows


def growing(device: str, repeats: int) -> list[dict[str, Any]]:
    """1,000 steps of decoding whose cache grows by one key each: the time of all, over 1,000."""
    steps = 1000 if device == "cuda" else 20
    query, key, value = qkv(4, 8, 1200, device)
    query = query[:, :, :1]
    rows = []

    def ours(length: int) -> object:
        return loom.attend(query, key[:, :, :length], value[:, :, :length], loom.causal, q_offset=length - 1)

    def sdpa(length: int) -> object:
        table = (torch.arange(length, device=device) <= length - 1)[None, None, None]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key[:, :, :length], value[:, :, :length], attn_mask=table
        )

    for name, run in (("attend, q_offset", ours), ("SDPA with a mask", sdpa)):
        run(100)
        wait(device)
        start = time.perf_counter()
        for length in range(101, 101 + steps):
            run(length)
        wait(device)
        ms = 1e3 * (time.perf_counter() - start) / steps
        rows.append({"what": f"{name}, {steps} growing steps, each", "shape": "B4 H8 D64", "ms": round(ms, 4)})
    return rows


def launches(device: str, repeats: int) -> list[dict[str, Any]]:
    """Backward passes of FLASH over padded rows, none of which may go wrong."""
    count = 10_000 if device == "cuda" else 3
    backend: Any = "flash" if device == "cuda" else "auto"
    query, key, value = (tensor.requires_grad_() for tensor in qkv(2, 4, 640, device))
    blocks = loom.block_mask(loom.causal & loom.lengths(lengths_of(2, 640, device)), 640, 640)
    out = loom.attend(query, key, value, blocks, backend=backend)
    gradient = torch.randn_like(out)
    first = torch.autograd.grad(out, (query, key, value), gradient)
    scales = [one.abs().max() for one in first]
    worst = torch.zeros((), device=device)
    start = time.perf_counter()
    for _ in range(count):
        out = loom.attend(query, key, value, blocks, backend=backend)
        again = torch.autograd.grad(out, (query, key, value), gradient)
        for one, other, scale in zip(again, first, scales, strict=True):
            worst = torch.maximum(worst, ((one - other).abs().max() / scale).nan_to_num(nan=1e9))
    wait(device)
    ms = 1e3 * (time.perf_counter() - start) / count
    what = f"{count} backward passes, worst difference over the largest gradient {float(worst):.2e}"
    return [{"what": what, "shape": "B2 H4 N640 D64", "ms": round(ms, 4)}]


SECTIONS: dict[str, Callable[[str, int], list[dict[str, Any]]]] = {
    "attention": attention,
    "new lengths": new_lengths,
    "block masks": block_masks,
    "growing": growing,
    "launches": launches,
}


if __name__ == "__main__":
    main()
