"""The example that trains, on two GPUs: speed and curves of each way to share the work, beside one GPU, in one run.

    python benchmarks/train_lm_ranks.py --out benchmarks/results/train_lm_ranks.csv
    python benchmarks/train_lm_ranks.py --small --out build/train_lm_ranks.csv      # that it runs, on CPUs too

bf16 autocast, width 1024, 12 layers, 16 heads, 4 KV heads, 16 packed rows of 8,192 tokens in a step, or 2 of 65,536. The corpus
is the functions of Python's standard library. Every run takes the same optimiser steps of the same sequences. ``tokens_per_s``
counts real tokens of all processes, the median over steps but the first ones. ``curve`` is the largest difference of a step's
loss from that of one process, in nats a token.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import append

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_lm.py"
WAYS = {"one process": (), "ddp": ("--parallel", "ddp"), "fsdp": ("--parallel", "fsdp"), "cp": ("--cp", "2")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--capacities", type=int, nargs="+", default=(8192, 65536))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--warm", type=int, default=6, help="steps that are not counted into the speed")
    parser.add_argument("--seconds", type=float, default=600, help="no run is begun later than that")
    parser.add_argument("--compile", action="store_true", help="torch.compile of each block")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    given = parser.parse_args()
    start = time.perf_counter()
    for capacity in (256, 512) if given.small else given.capacities:
        alone: list[dict[str, str]] = []
        for way in given.ways:
            if time.perf_counter() - start > given.seconds:
                return
            curve = run(given, way, capacity)
            alone = alone or curve
            row = {"way": way, "capacity": capacity, "compiled": given.compile, **numbers(curve, alone, given.warm)}
            append(given.out, row)
            print(
                *(f"{name}={value}" for name, value in row.items()), f"{time.perf_counter() - start:.0f} s", flush=True
            )


def run(given: argparse.Namespace, way: str, capacity: int) -> list[dict[str, str]]:
    """What the example reports of each step."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(EXAMPLE), *options(given, capacity, folder), *WAYS[way]]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        alone = way == "one process"
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": first_gpu()} if alone else {})
        done = subprocess.run(
            [sys.executable, *([] if alone else torchrun), *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{way}, rows of {capacity}: {done.stderr[-3000:]}")
        with (Path(folder) / "metrics.csv").open() as file:
            return list(csv.DictReader(file))


def options(given: argparse.Namespace, capacity: int, folder: str) -> list[str]:
    """The options of a run."""
    found: dict[str, object] = {
        "out": folder, "capacity": capacity, "rows": 16 * 8192 // capacity, "d-model": 1024, "layers": 12, "heads": 16,
        "kv-heads": 4,
    }  # fmt: skip
    if given.small:
        found |= {"rows": 1024 // capacity, "d-model": 32, "layers": 2, "heads": 4, "kv-heads": 2}
    found |= {
        "lr": 3e-4, "steps": given.steps, "report-every": 1, "validate-every": 10_000, "save-every": 10_000,
        "validation-rows": 2,
    }  # fmt: skip
    words = [word for name, value in found.items() for word in (f"--{name}", str(value))]
    return [*words, *(["--compile"] if given.compile else []), *([] if given.small else ["--bf16"])]


def first_gpu() -> str:
    """The GPU of the run on one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def numbers(curve: list[dict[str, str]], alone: list[dict[str, str]], warm: int) -> dict[str, object]:
    """Speed and curve of a run, beside those of one process."""
    own, theirs = (statistics.median(int(row["tokens_per_s"]) for row in rows[warm:]) for rows in (curve, alone))
    apart = max(abs(float(row["loss"]) - float(other["loss"])) for row, other in zip(curve, alone, strict=True))
    return {
        "steps": len(curve), "loss": curve[-1]["loss"], "curve": f"{apart:.1e}", "real": curve[-1]["real"],
        "tokens_per_s": round(own), "speedup": round(own / theirs, 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
