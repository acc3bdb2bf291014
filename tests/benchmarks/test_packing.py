"""The benchmark of packing runs, and its committed rows say what was measured."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAYS = ["pad to the longest", "best_fit", "best_fit, 64 open rows", "next_fit"]


def test_it_runs(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, "benchmarks/packing.py", "--number", "300", "--repeats", "1", "--out", str(out)]
    subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["way"] for row in rows] == 4 * WAYS
    assert all(0 < float(row["fill"]) <= 1 for row in rows)


def test_the_committed_rows_are_of_a_million_lengths():
    with (ROOT / "benchmarks" / "results" / "packing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["number"] for row in rows} == {"1000000"} and len(rows) == 16
    for row in rows:
        least = {"best_fit": 0.995, "best_fit, 64 open rows": 0.97}.get(row["way"], 0)
        assert float(row["fill"]) >= least and row["command"] and row["device"]
