"""The benchmark of what importing costs: it runs, and its rows say of what."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_row_has_the_share_of_import_torch(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, "benchmarks/importing.py", "--repeats", "1", "--out", str(out)]
    subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )
    [row] = csv.DictReader(out.read_text().splitlines())
    times = {name: float(row[name]) for name in ("import_torch_ms", "maskloom_ms")}
    assert abs(float(row["percent_of_torch"]) - 100 * times["maskloom_ms"] / times["import_torch_ms"]) < 0.1
    assert float(row["modules"]) > 50 and row["torch"] and row["device"]
    assert row["command"] == "python benchmarks/importing.py --repeats 1"


def test_the_committed_rows_say_what_was_measured():
    with (ROOT / "benchmarks" / "results" / "importing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows and all(float(row["processes"]) >= 5 for row in rows)
    assert {"import_torch_ms", "flex_attention_ms", "maskloom_ms", "percent_of_torch", "command"} <= rows[0].keys()
