"""How full rows become, and how long it takes to find out which sequences share one.

    python benchmarks/packing.py --out benchmarks/results/packing.csv

One row for each distribution of lengths and each way to pack: the share of positions with a token, and the median seconds of
``pack_lengths``. "pad to the longest" is what a padded batch of 64 sequences in a random order holds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rows import append

from maskloom.batches import fill, pack_lengths

WAYS: dict[str, dict[str, object]] = {
    "best_fit": {},
    "best_fit, 64 open rows": {"open_rows": 64},
    "next_fit": {"method": "next_fit"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/packing.csv"))
    arguments = parser.parse_args()
    for capacity in (2048, 32768):
        for kind, lengths in drawn(capacity, arguments.number).items():
            for row in measured(lengths, capacity, arguments.repeats):
                row = {"lengths": kind, "number": arguments.number, "capacity": capacity, **row}
                append(arguments.out, row)
                print(row, flush=True)


def drawn(capacity: int, number: int) -> dict[str, list[int]]:
    random = np.random.default_rng(0)
    lognormal = random.lognormal(np.log(300), 1, number).astype(int).clip(1, capacity)
    return {"lognormal, median 300": lognormal.tolist(), "uniform": random.integers(1, capacity + 1, number).tolist()}


def measured(lengths: list[int], capacity: int, repeats: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"way": "pad to the longest", "fill": padded(lengths), "seconds": ""}]
    for name, options in WAYS.items():
        found, seconds = timed(lambda options=options: pack_lengths(lengths, capacity, **options), repeats)
        rows.append({"way": name, "fill": round(fill(found, lengths, capacity), 5), "seconds": seconds})
    return rows


def padded(lengths: list[int], batch: int = 64) -> float:
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return round(sum(lengths) / sum(len(rows) * max(rows) for rows in batches), 5)


def timed(call: Callable[[], list[list[int]]], repeats: int) -> tuple[list[list[int]], float]:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - begin)
    return found, round(float(np.median(times)), 3)


if __name__ == "__main__":
    main()
