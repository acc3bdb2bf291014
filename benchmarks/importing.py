"""What ``import maskloom`` costs beside ``import torch``: fresh processes, one behind the other; the least of each is the row.

    python benchmarks/importing.py --out benchmarks/results/importing.csv

Times are those of the process's own work, so that what else runs on the machine counts little; Python has compiled the modules
before. The garbage collector is off: a look through all that torch has allocated takes 60 ms, whenever one falls due.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rows import append

import maskloom as loom

_PROGRAM = """
import gc, json, sys, time
gc.disable()
times = [time.process_time()]
import torch
times.append(time.process_time())
import torch.nn.attention.flex_attention
times.append(time.process_time())
before = set(sys.modules)
import maskloom
times.append(time.process_time())
names = ("import_torch_ms", "flex_attention_ms", "maskloom_ms")
row = {name: (end - start) * 1e3 for name, start, end in zip(names, times, times[1:])}
print(json.dumps(row | {"modules": len(set(sys.modules) - before)}))
"""
"""torch's FlexAttention is loaded by itself: from 2.14 on it brings sympy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("build/importing.csv"))
    arguments = parser.parse_args()
    row = measured(arguments.repeats)
    append(arguments.out, row)
    print(*(f"{name}: {value}" for name, value in row.items()), sep="\n")


def measured(repeats: int) -> dict[str, object]:
    """The row: the least times of ``repeats`` processes, and how many modules maskloom adds to those of torch."""
    runs = [in_fresh_process() for _ in range(repeats + 1)][1:]  # Python compiles modules in the first
    least = {name: min(run[name] for run in runs) for name in runs[0]}
    share = 100 * least["maskloom_ms"] / least["import_torch_ms"]
    rounded = {name: round(number, 1) for name, number in least.items()}
    return {"processes": repeats, **rounded, "percent_of_torch": round(share, 1)}


def in_fresh_process() -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(Path(loom.__file__).parents[1])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    command = [sys.executable, "-c", _PROGRAM]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


if __name__ == "__main__":
    main()
