"""What two processes under torchrun train, each way into a folder of its own: ``several.py OUT DATA WAY ...``."""

import sys
from pathlib import Path

import train_lm
from lm.parallel import processes
from torch.distributed.device_mesh import init_device_mesh

from tests.examples.runs import TINY

WAYS = {
    "ddp": [],
    "fsdp": ["--parallel", "fsdp", "--layout", "padded", "--recompute"],
    "cp": ["--cp", "2"],
    "cp, fsdp": ["--cp", "2", "--parallel", "fsdp", "--layout", "padded", "--recompute"],
}

if __name__ == "__main__":
    out, data, *names = sys.argv[1:]
    with processes(1) as ranks:
        for name in names:
            given = train_lm.arguments(["--out", str(Path(out) / name), "--data", data, *TINY, *WAYS[name]])
            mesh = init_device_mesh("cpu", (2 // given.cp, given.cp), mesh_dim_names=("data", "cp"))
            train_lm.train(given, ranks._replace(mesh=mesh))
