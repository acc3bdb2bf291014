"""The benchmark of training runs, and what its contenders compute is the same."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs(tmp_path):
    (tmp_path / "data").mkdir()
    for name in "ab":
        text = "".join(f"def {name}{size}():\n    return {'x' * size!r}\n" for size in (3, 100, 30, 220, 5, 61))
        (tmp_path / "data" / f"{name}.py").write_text(text)
    out = tmp_path / "rows.csv"
    command = [
        *(sys.executable, "benchmarks/train_lm_gpu.py", "--small", "--device", "cpu", "--steps", "2", "--passes", "1"),
        *("--data", str(tmp_path / "data"), "--out", str(out)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["contender"] for row in rows] == [
        "packed: attend",
        "packed: attend, block masks",
        "padded: sdpa, dense",
        "padded: attend",
        "padded, drawn: sdpa, dense",
        "padded, drawn: attend",
        "packed: sdpa, dense",
    ]
    assert {row["loss"] for row in rows} == {rows[0]["loss"]} and {row["backends"] for row in rows} == {"sdpa"}
    assert all(float(row["gradient"]) < 1e-4 and float(row["tokens_per_s"]) > 0 for row in rows)
    assert all(0 < float(row["real"]) <= 1 and row["command"] and row["device"] for row in rows)
