"""What the first call with a new mask costs, beside an earlier commit: both in fresh processes, by turns, one thread.

    python benchmarks/first_call.py --before f1193dc --out benchmarks/results/first_call.csv

A new mask is a new object of a structure that was seen before, as each training step has one; a new structure was never
seen. ``by intervals alone`` builds with ``exact=False``. ``for a kernel`` is the block mask that `attend` builds on a GPU.
Times are in microseconds: the median over masks in one process, and of that the median over processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import append

import maskloom as loom

_PROGRAM = """
import itertools, json, time
import torch
import maskloom as loom
from torch.nn.attention.flex_attention import create_block_mask

torch.set_num_threads(1)
B, H, L, D = 2, 4, 64, 16
q, k, v = (torch.randn(B, H, L, D, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
numbers = itertools.count(1000)
lens = [torch.tensor([40, 64 - n % 9]) for n in range(64)]
ids = {length: [torch.arange(length) // (50 + n) for n in range(16)] for length in (64, 1024, 8192)}

def timed(call, masks):
    times = []
    for mask in masks:
        start = time.perf_counter()
        call(mask)
        times.append((time.perf_counter() - start) * 1e6)
    return sorted(times)[len(times) // 2]

def repeated(call, count=200):
    for _ in range(10):
        call()
    return timed(lambda _: call(), range(count))

try:
    from maskloom.attention.resolve import as_block_mask
except ImportError:
    from maskloom.attention.given import as_block_mask

found = {}
joined = lambda lens: loom.causal & loom.lengths(lens)
found["attend, new mask"] = timed(lambda mask: loom.attend(q, k, v, mask), map(joined, lens))
new_structures = [loom.window(back=next(numbers)) & loom.lengths(one) for one in lens]
found["attend, new structure"] = timed(lambda mask: loom.attend(q, k, v, mask), new_structures)
found["for a kernel, new mask, 64"] = timed(lambda mask: as_block_mask(q, k, mask), map(joined, lens))
for length in ids:
    packed = [loom.causal & loom.documents(one) for one in ids[length]]
    found[f"block_mask, new mask, {length}"] = timed(lambda mask: loom.block_mask(mask, length, length), packed)
    new_structures = [loom.window(back=next(numbers)) & loom.documents(one) for one in ids[length]]
    found[f"block_mask, new structure, {length}"] = timed(lambda mask: loom.block_mask(mask, length, length), new_structures)
    new_structures = [loom.window(back=next(numbers)) & loom.documents(one) for one in ids[length]]
    found[f"block_mask, new structure, by intervals alone, {length}"] = timed(
        lambda mask: loom.block_mask(mask, length, length, exact=False), new_structures
    )
mask = joined(lens[0])
found["attend, ready mask, one query"] = repeated(lambda: loom.attend(q[:, :, :1], k, v, mask))
places = itertools.cycle(range(1, 60))
found["attend, ready mask, one query, q_offset=n"] = repeated(lambda: loom.attend(q[:, :, :1], k, v, mask, q_offset=next(places)))
for name, mask in {"causal": loom.causal, "window": loom.window(back=128), "documents": loom.causal & loom.documents(ids[1024][0])}.items():
    found[f"block_mask, {name}, 1024"] = repeated(lambda: loom.block_mask(mask, 1024, 1024))
    found[f"torch eager, {name}, 1024"] = repeated(lambda: create_block_mask(mask, None, None, 1024, 1024, device="cpu"), 30)
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/first_call.csv"))
    arguments = parser.parse_args()
    root = Path(loom.__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", arguments.before, "src"], cwd=root, check=True, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        runs: dict[Path, list[dict[str, float]]] = {root / "src": [], Path(folder) / "src": []}
        for _ in range(arguments.processes):
            for source, found in runs.items():
                found.append(in_fresh_process(source))
    ours, theirs = runs.values()
    for name in ours[0]:
        now, before = (statistics.median(run[name] for run in found) for found in (ours, theirs))
        row = {"what": name, "us": round(now, 1), "us_before": round(before, 1), "times_faster": round(before / now, 2)}
        append(arguments.out, {**row, "before": arguments.before, "processes": arguments.processes})
        print(*row.values(), sep="\t")


def in_fresh_process(source: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


if __name__ == "__main__":
    main()
