"""Building a BlockMask on the CPU, block 128, one thread: ours, torch's eager and compiled, attention-gym's formula for causal.

    python benchmarks/blocks.py

torch is measured up to ``--torch-up-to`` positions, past that it needs minutes and many gigabytes, and compiled up to
``--compiled-up-to``: a first call takes it 10 s and more. First calls are made where no compiler finds anything compiled
before: ours in a fresh process. Tables are compared with torch's before a row counts.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

from blocks_contenders import against_compiled_torch, against_torch, attention_gym, shown, size_of
from clocks import MIB, caches, median_ms, once_ms, peak_mb, printed_by
from rows import append
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.blocks.inspect import explain_block_mask
from maskloom.masks.algebra import Mask

REPEATS = 30


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--torch-up-to", type=int, default=8192)
    parser.add_argument("--compiled-up-to", type=int, default=8192)
    parser.add_argument("--first", nargs=2, metavar=("MASK", "LENGTH"), help="print the milliseconds of a first call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/blocks.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.first:
        print(first_call(arguments.first[0], int(arguments.first[1])))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        os.environ |= caches(empty)
        for length in arguments.lengths:
            for name in MASKS:
                row = measure(
                    name,
                    length,
                    eager=length <= arguments.torch_up_to,
                    compiled=length <= arguments.compiled_up_to,
                )
                append(arguments.out, row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def measure(name: str, length: int, *, eager: bool, compiled: bool) -> dict[str, object]:
    """One row; a cell is empty where nothing was measured."""
    mask = MASKS[name](length)
    build = partial(loom.block_mask, mask, length, length)
    ours = build()
    tables = (ours.shape[0], 1, length, length)
    row: dict[str, object] = {"benchmark": "block mask", "mask": name, "batch": tables[0], "length": length}
    row |= {"threads": torch.get_num_threads(), "ours_ms": (time := median_ms(build, repeats=REPEATS, device="cpu"))}
    row |= {"ours_inexact_ms": median_ms(partial(build, exact=False), repeats=REPEATS, device="cpu")}
    row |= {"ours_first_call_ms": printed_by(__file__, "--first", name, str(length))}
    row |= {"ours_peak_mb": peak_mb(build, device="cpu"), "tables_mb": size_of(ours) / MIB}
    of_torch = partial(flex.create_block_mask, mask, *tables, "cpu")
    row |= against_torch(ours, of_torch, "cpu", measured=eager)
    row |= {"torch_eager_peak_mb": peak_mb(of_torch, device="cpu") if eager else None}
    row |= against_compiled_torch(ours, mask, tables, "cpu", measured=compiled)
    row |= {"attn_gym_ms": attention_gym(ours, length, "cpu") if name == "causal" else None}
    theirs = row["torch_eager_ms"]
    row |= {"times_faster": round(theirs / time) if isinstance(theirs, float) else None}
    shares = explain_block_mask(mask, length, length)
    row |= {f"{way}_percent": shares.share(way) for way in ("intervals", "witnesses", "evaluation")}
    return {key: shown(value) for key, value in row.items()}


def first_call(name: str, length: int) -> float:
    mask = MASKS[name](length)
    return once_ms(lambda: loom.block_mask(mask, length, length), device="cpu")


if __name__ == "__main__":
    main()
