"""Rows of measurements: CSV that carries the machine, the versions and the command that made it."""

import csv
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row to a CSV file, with what it was measured on; the header is written with the first row."""
    full = {**row, **environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        if not is_new and path.open().readline().strip() != ",".join(full):
            raise ValueError(f"{path} has other columns; write to another file")
        writer = csv.DictWriter(file, fieldnames=list(full), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(full)


def environment() -> dict[str, str]:
    """Machine, versions and command."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "flash_attn_4": _version("flash-attn-4"),
        "command": shlex.join([*_launcher(), *_program(), *_arguments()]),
    }


def _launcher() -> list[str]:
    """python, or torchrun with the number of processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]


def _arguments() -> list[str]:
    """What the script was given, but for where it writes."""
    given = sys.argv[1:]
    if "--out" in given:
        at = given.index("--out")
        given = given[:at] + given[at + 2 :]
    return given


def _program() -> list[str]:
    """What was run: a module by ``-m``, or a script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec is not None else [sys.argv[0]]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
