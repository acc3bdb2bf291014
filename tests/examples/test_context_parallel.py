"""The example of a shared sequence trains as one process does, on two processes."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "context_parallel.py"


def test_two_processes_train_as_one():
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE),
            "--length", "101", "--steps", "3", "--strategy", "gather",
        ],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr  # it compares the losses itself
    assert run.stdout.startswith("strategy: gather (asked for)\n")
