"""The module under DistributedDataParallel and fully_shard, on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_as_one(tmp_path):
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.nn.parallel", str(rank), str(tmp_path / "store")],
            env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        out, errors = process.communicate(timeout=120)
        assert out.endswith("same\n"), errors
