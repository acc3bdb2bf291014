"""Rows of measurements: CSV that carries the machine, the versions and the command that made it."""

import csv
import os
import platform
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
        "command": " ".join(["python", _from_here(sys.argv[0]), *sys.argv[1:]]),
    }


def _from_here(script: str) -> str:
    """A script by its path from the working directory: ``python -m`` gives the whole one, which is this machine's affair."""
    path, here = Path(script).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
