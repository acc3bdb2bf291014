"""The benchmark of the curves runs."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs(tmp_path):
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / f"{name}.py").write_text(f"def {name}(x):\n    return {'x' * 90!r}\n" * 7)
    out = tmp_path / "rows.csv"
    command = [
        *(sys.executable, "benchmarks/train_lm.py", "--steps", "1", "--capacity", "64"),
        *("--data", str(tmp_path / "data"), "--out", str(out)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["layout"] for row in rows] == ["packed", "padded", "sdpa-dense"]
    assert {(row["step"], row["loss"], row["corpus"]) for row in rows} == {("1", rows[0]["loss"], rows[0]["corpus"])}
    assert all(row["unigram"] and row["command"] for row in rows)
