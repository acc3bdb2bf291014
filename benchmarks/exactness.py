"""Random mask_mods: are our block masks identical to torch's, table by table?

    python benchmarks/exactness.py --cases 20000

Three of four cases are plain mask_mods of all operations, over random tables, B, H, ragged Q and KV and block sizes; one
in four is a mask of maskloom's algebra. The cases are those of tests/blocks. Each is built three times: the first decides the
tiles, and what it did is written down and done again for masks of the same structure. One row per run; a wrong case is
printed.
"""

import argparse
import sys
import time
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

from rows import append

import maskloom as loom
from tests.blocks.random_masks import Case, differing, random_case, tables_of_torch

BUILDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exactness.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    start, wrong, undefined = time.perf_counter(), 0, 0
    for seed in range(arguments.seed, arguments.seed + arguments.cases):
        case = random_case(Random(seed), algebra=seed % 4 == 0)
        names = compare(case)
        undefined += names is None
        if names:
            wrong += 1
            print(f"seed {seed}: {', '.join(names)} differ for {case!r}")
    row = {
        "benchmark": "block masks against torch",
        "cases": arguments.cases,
        "first_seed": arguments.seed,
        "builds_of_each": BUILDS,
        "identical": arguments.cases - wrong - undefined,
        "wrong": wrong,
        "undefined_in_torch": undefined,
        "seconds": round(time.perf_counter() - start, 1),
    }
    append(arguments.out, row)
    print(*(f"{name}: {value}" for name, value in row.items()), sep="\n")


def compare(case: Case) -> list[str] | None:
    """The tables that differ in any of three builds; None where torch itself fails."""
    theirs = tables_of_torch(case)
    if theirs is None:
        return None
    shape = (case.batch, case.heads, case.q_len, case.kv_len)
    builds = [
        differing(loom.create_block_mask(case.mask_mod, *shape, "cpu", case.block), theirs) for _ in range(BUILDS)
    ]
    return sorted({name for names in builds for name in names})


if __name__ == "__main__":
    main()
