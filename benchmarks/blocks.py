"""Building a BlockMask: ours against torch's eager ``create_block_mask``, block 128, on the CPU.

    python benchmarks/blocks.py --lengths 1024 4096 8192 16384 32768

torch is measured up to ``--torch-up-to`` positions: past that it needs minutes and many gigabytes. The first call is
measured in a fresh process. Tables are compared with torch's before a row counts.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rows import append
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

import maskloom as loom
from maskloom.blocks.inspect import explain_block_mask
from maskloom.masks.algebra import Mask

BATCH = 4


def lengths_of(length: int) -> torch.Tensor:
    """A batch of which 66 % is real."""
    return torch.tensor([length, length * 4 // 5, length * 11 // 20, length * 3 // 10])


MASKS: dict[str, Callable[[int], Mask]] = {
    "causal": lambda length: loom.causal,
    "causal & padding": lambda length: loom.causal & loom.padding(torch.arange(length) >= lengths_of(length)[:, None]),
    "causal & lengths": lambda length: loom.causal & loom.lengths(lengths_of(length)),
    "window 1k": lambda length: loom.window(back=1023),
    "16 documents & causal": lambda length: loom.documents(torch.arange(length) * 16 // length) & loom.causal,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--torch-up-to", type=int, default=8192)
    parser.add_argument("--first", nargs=2, metavar=("MASK", "LENGTH"), help="print the milliseconds of a first call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/blocks.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.first:
        print(first_call(arguments.first[0], int(arguments.first[1])))
        return
    for length in arguments.lengths:
        for name in MASKS:
            row = measure(name, length, with_torch=length <= arguments.torch_up_to)
            append(arguments.out, row)
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def measure(name: str, length: int, *, with_torch: bool) -> dict[str, object]:
    mask = MASKS[name](length)
    ours = median_ms(lambda: loom.block_mask(mask, length, length), repeats=30)
    inexact = median_ms(lambda: loom.block_mask(mask, length, length, exact=False), repeats=30)
    theirs = against_torch(mask, length) if with_torch else None
    explained = explain_block_mask(mask, length, length)
    return {
        "benchmark": "block mask",
        "mask": name,
        "batch": loom.block_mask(mask, length, length).shape[0],
        "length": length,
        "threads": torch.get_num_threads(),
        "ours_ms": round(ours, 3),
        "ours_inexact_ms": round(inexact, 3),
        "ours_first_call_ms": in_fresh_process(name, length),
        "torch_eager_ms": "" if theirs is None else round(theirs, 1),
        "times_faster": "" if theirs is None else round(theirs / ours),
        **{f"{way}_percent": round(explained.share(way), 2) for way in ("intervals", "witnesses", "evaluation")},
    }


def against_torch(mask: Mask, length: int) -> float:
    """torch's median milliseconds, after its tables were found equal to ours."""
    batch = loom.block_mask(mask, length, length).shape[0]

    def build() -> BlockMask:
        return flex.create_block_mask(mask, batch, 1, length, length, "cpu")

    theirs, ours = build(), loom.create_block_mask(mask, batch, 1, length, length, "cpu")
    for table in (
        "kv_num_blocks",
        "kv_indices",
        "full_kv_num_blocks",
        "full_kv_indices",
        "q_indices",
        "full_q_indices",
    ):
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
    return median_ms(build, repeats=3)


def median_ms(build: Callable[[], object], *, repeats: int) -> float:
    build()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        build()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def first_call(name: str, length: int) -> float:
    mask = MASKS[name](length)
    start = time.perf_counter()
    loom.block_mask(mask, length, length)
    return round(1e3 * (time.perf_counter() - start), 1)


def in_fresh_process(name: str, length: int) -> float:
    command = [sys.executable, __file__, "--first", name, str(length)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
