"""The benchmark of the parts of two ranks runs."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs(tmp_path):
    out = tmp_path / "rows.csv"
    command = [
        *(
            sys.executable,
            "benchmarks/context_parallel_parts.py",
            "--device",
            "cpu",
            "--lengths",
            "130",
            "--repeats",
            "1",
        ),
        *("--out", str(out)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.read_text().splitlines()))
    ways = [
        ("whole", "0"),
        ("mesh of one", "0"),
        *((name, rank) for name in ("heads", "gather", "needed") for rank in "01"),
    ]
    assert [(row["mask"], row["strategy"], row["rank"]) for row in rows] == [
        (mask, *way) for mask in ("causal", "documents", "window") for way in ways
    ]
    needed = [row for row in rows if row["strategy"] == "needed"]
    queries = [int(row["queries"]) for row in needed]
    assert [first + second for first, second in zip(queries[::2], queries[1::2], strict=True)] == 3 * [130]
    assert all(int(row["queries"]) <= int(row["keys"]) <= 130 for row in needed)
