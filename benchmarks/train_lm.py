"""The curves of the example that trains, by each layout, on the CPU.

    python benchmarks/train_lm.py --out benchmarks/results/train_lm.csv

Each layout trains the same small model on the same sequences in each step. One row for each report of ``examples/train_lm.py``:
the mean loss since the last one and the validation loss in nats a token, the share of positions that held a token, real tokens
per second. ``unigram`` is the entropy of single tokens of the validation split.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from rows import append

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import train_lm
from lm.corpus import STANDARD_LIBRARY, Bytes, Corpus, Sequences

LAYOUTS = ("packed", "padded", "sdpa-dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/train_lm.csv"))
    parser.add_argument("--data", type=Path, default=STANDARD_LIBRARY)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--capacity", type=int, default=512)
    given = parser.parse_args()
    validation = Sequences.of(Corpus.read(given.data).validation, Bytes(), given.capacity, "split")
    unigram = f"{validation.some(40 * given.capacity).unigram_entropy():.5f}"
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            train_lm.main(words(given, layout, folder))
            with (Path(folder) / "metrics.csv").open() as file:
                for row in csv.DictReader(file):
                    append(given.out, {**row, "unigram": unigram})


def words(given: argparse.Namespace, layout: str, folder: str) -> list[str]:
    """The options of a run."""
    options = {
        "out": folder, "data": given.data, "layout": layout, "steps": given.steps, "capacity": given.capacity,
        "d-model": 96, "layers": 3, "lr": 4e-3, "validate-every": 20, "validation-rows": 40, "save-every": 1000,
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


if __name__ == "__main__":
    main()
