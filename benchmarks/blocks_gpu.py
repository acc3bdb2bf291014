"""Building a BlockMask on the GPU, block 128: ours, torch's eager and compiled, and attention-gym's formula for causal.

    python benchmarks/blocks_gpu.py

Medians of wall-clock time, the device waited for after each call; ``ours_host_ms`` is what passes with ``exact=False`` until
the call returns, the device idle before. Tables are compared with torch's before a row counts, wherever torch is
measured. First calls are made where no compiler finds anything compiled before: ours in a fresh process. torch,
compiled, takes 5 to 24 s at each first call, so it is measured at ``--compiled`` lengths only (1048576 too, at 1 to 2 s a
call), and not begun once ``--seconds`` have passed. Lengths come in the order given. attention-gym is measured if it can be
imported: of a folder on PYTHONPATH, its ``attn_gym/utils.py`` and ``attn_gym/masks/causal.py`` are enough.
``--device cpu --lengths 1024`` tries the script out.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from blocks_contenders import against_compiled_torch, against_torch, attention_gym, shown, size_of
from clocks import MIB, caches, median_host_ms, median_ms, once_ms, peak_mb, printed_by
from rows import append
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.blocks.inspect import explain_block_mask
from maskloom.masks.algebra import Mask

BATCH = 8
REAL = (1.0, 0.95, 0.9, 0.8, 0.75, 0.65, 0.5, 0.35)  # of each row of the batch: 74 % in all
LONGEST_BATCH = 128 * 1024
REPEATS = 30


def padding(length: int, device: str) -> Mask:
    lens = torch.tensor([int(length * share) for share in REAL], device=device)
    return loom.padding(torch.arange(length, device=device) >= lens[:, None])


def documents(length: int, device: str) -> Mask:
    return loom.documents(torch.arange(length, device=device) * 16 // length)


MASKS: dict[str, Callable[[int, str], Mask]] = {
    "causal": lambda length, device: loom.causal,
    "causal & padding": lambda length, device: loom.causal & padding(length, device),
    "window 1k": lambda length, device: loom.window(back=1023),
    "16 documents & causal": lambda length, device: documents(length, device) & loom.causal,
}


def main() -> None:
    arguments = parsed()
    if arguments.first:
        print(first_call(arguments.first[0], int(arguments.first[1]), arguments.device))
        return
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401 - so it is where attention was compiled; tables are then ordered by a kernel
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        os.environ |= caches(empty)
        for length in arguments.lengths:
            for name in arguments.masks:
                if name == "causal & padding" and length > LONGEST_BATCH:
                    continue
                compiled = length in arguments.compiled and time.monotonic() < deadline
                row = measure(
                    name,
                    length,
                    arguments.device,
                    eager=length <= arguments.eager_up_to,
                    compiled=compiled,
                    fresh=length in arguments.fresh,
                )
                append(arguments.out, row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2**12, 2**17, 2**14, 2**16, 2**20])
    parser.add_argument("--masks", nargs="+", choices=list(MASKS), default=list(MASKS))
    parser.add_argument("--eager-up-to", type=int, default=2**14, help="torch's eager evaluation, where it fits")
    parser.add_argument("--compiled", type=int, nargs="*", default=[2**12, 2**17], help="lengths of torch, compiled")
    parser.add_argument("--fresh", type=int, nargs="*", default=[2**12], help="lengths of first calls in a process")
    parser.add_argument("--seconds", type=float, default=230, help="begin no compilation later than this")
    parser.add_argument("--first", nargs=2, metavar=("MASK", "LENGTH"), help="print the milliseconds of a first call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/blocks_gpu.csv"))
    return parser.parse_args()


def measure(name: str, length: int, device: str, *, eager: bool, compiled: bool, fresh: bool) -> dict[str, object]:
    """One row; a cell is empty where nothing was measured."""
    mask = MASKS[name](length, device)
    build = partial(loom.block_mask, mask, length, length, device=device)
    ours, tables = build(), (build().shape[0], 1, length, length)
    row: dict[str, object] = {"benchmark": "block mask", "mask": name, "batch": tables[0], "length": length}
    row |= {"ours_ms": median_ms(build, repeats=REPEATS, device=device)}
    inexact = partial(build, exact=False)
    row |= {"ours_inexact_ms": median_ms(inexact, repeats=REPEATS, device=device)}
    row |= {"ours_host_ms": median_host_ms(inexact, repeats=REPEATS, device=device)}
    row |= {"ours_first_call_ms": in_fresh_process(name, length, device) if fresh else None}
    row |= {"ours_peak_mb": peak_mb(build, device=device), "tables_mb": size_of(ours) / MIB}
    row |= against_torch(ours, partial(flex.create_block_mask, mask, *tables, device), device, measured=eager)
    row |= against_compiled_torch(ours, mask, tables, device, measured=compiled)
    row |= {"attn_gym_ms": attention_gym(ours, length, device) if name == "causal" else None}
    shares = explain_block_mask(mask, length, length, device=device)
    row |= {f"{way}_percent": shares.share(way) for way in ("intervals", "witnesses", "evaluation")}
    return {key: shown(value) for key, value in row.items()}


def first_call(name: str, length: int, device: str) -> float:
    mask = MASKS[name](length, device)
    torch.zeros(1, device=device)  # the device itself is started by now
    return once_ms(lambda: loom.block_mask(mask, length, length, device=device), device=device)


def in_fresh_process(name: str, length: int, device: str) -> float:
    return printed_by(__file__, "--device", device, "--first", name, str(length))


if __name__ == "__main__":
    main()
