"""What two processes under torchrun train, each way into a folder of its own: ``several.py OUT DATA WAY ...``."""

import sys
from pathlib import Path

import train_lm
from lm.parallel import processes

from tests.examples.runs import TINY

WAYS = {
    "ddp": [],
    "fsdp": ["--parallel", "fsdp", "--layout", "padded", "--recompute"],
    "cp": ["--cp", "2"],
    "cp, fsdp": ["--cp", "2", "--parallel", "fsdp"],
}

if __name__ == "__main__":
    out, data, cp, *names = sys.argv[1:]
    with processes(int(cp)) as ranks:
        for name in names:
            words = ["--out", str(Path(out) / name), "--data", data, *TINY, *WAYS[name]]
            train_lm.train(train_lm.arguments(words), ranks)
