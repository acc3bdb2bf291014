"""Installs the wheel on each Python with each torch, and runs the smoke test there; what cannot be run is said."""

import csv
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.11", "2.13", "newest")
DEVELOPED_WITH = "2.13"
"""The torch of constraints.txt; its cells take the other versions of that file too."""
INSTALLS = Path(__file__).with_name("installs.csv")
"""What became of each cell when all were last run; docs/versions.md shows it."""
NEEDED_GB = 12
"""Free space for a torch with its CUDA libraries, unpacked beside its downloads."""
_SAYS_NONE = "No matching distribution found for torch"


class Cell(NamedTuple):
    """A Python and a torch."""

    python: str
    torch: str

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}"


CELLS = tuple(itertools.starmap(Cell, itertools.product(PYTHONS, TORCHES)))


class Outcome(NamedTuple):
    """What became of a cell, or of a check: "passed", "failed" or "not run", and what is to be said of it."""

    verdict: str
    words: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.words}" if self.words else self.verdict


def asked(words: Sequence[str] | None) -> tuple[Cell, ...]:
    """The cells of ``--only 3.12:2.11``; all where nothing is said.

    Raises:
        ValueError: one that is none.
    """
    found = [Cell(*word.partition(":")[::2]) for word in words or ()]
    for cell in found:
        if cell not in CELLS:
            raise ValueError(
                f"--only is PYTHON:TORCH, of {', '.join(PYTHONS)} and {', '.join(TORCHES)}; got {':'.join(cell)}"
            )
    return tuple(found) if words else CELLS


def write(outcomes: Mapping[Cell, Outcome], path: Path) -> None:
    """What became of each cell, as rows."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["python", "torch", "verdict", "words"])
        writer.writerows([*cell, *outcome] for cell, outcome in outcomes.items())


def run(cell: Cell, wheel: Path, sources: Path) -> Outcome:
    """Install the wheel into an empty environment, and run the smoke test in it, without and with extras."""
    python = interpreter(cell.python)
    if python is None:
        return Outcome("not run", f"no Python {cell.python} here")
    with tempfile.TemporaryDirectory(prefix="maskloom-cell-") as folder:
        free = shutil.disk_usage(folder).free / 1e9
        if free < NEEDED_GB:
            return Outcome("not run", f"{free:.0f} GB are free in {folder}, and torch may need {NEEDED_GB}")
        start = time.monotonic()
        outcome = _in(Path(folder), python, cell, wheel, sources)
        return (
            outcome._replace(words=f"{outcome.words}, {time.monotonic() - start:.0f} s")
            if not _is_bad(outcome)
            else outcome
        )


def _is_bad(outcome: Outcome) -> bool:
    return outcome.verdict != "passed"


def _in(folder: Path, python: Path, cell: Cell, wheel: Path, sources: Path) -> Outcome:
    own = folder / "venv" / "bin" / "python"
    smoke = str(shutil.copy(sources / "tests" / "outside" / "smoke.py", folder))
    said = ""
    for words in _steps(own, python, cell, wheel, smoke, sources / "constraints.txt"):
        done = subprocess.run(words, cwd=folder, env=_environment(), capture_output=True, text=True)
        if done.returncode:
            return _failed(words, done.stdout + done.stderr, cell)
        said = done.stdout.strip() or said
    return Outcome("passed", said.splitlines()[-1])


def _steps(own: Path, python: Path, cell: Cell, wheel: Path, smoke: str, constraints: Path) -> Iterator[list[str]]:
    """Commands, one after another: the environment, torch, the wheel alone, its smoke test, and both with the extras."""
    pip = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if cell.torch == DEVELOPED_WITH:
        pip += ["--constraint", str(constraints)]
    torch = "torch" if cell.torch == "newest" else f"torch=={cell.torch}.*"
    yield [str(python), "-m", "venv", str(own.parents[1])]
    yield [*pip, torch, str(wheel)]
    yield [str(own), smoke, "bare"]
    yield [*pip, "maskloom[cli]", torch]  # by the lines that errors name
    yield [*pip, "maskloom[show]", torch]
    yield [str(own), smoke, "full"]


def _environment() -> dict[str, str]:
    """Without what would lead to another maskloom."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }


def _failed(words: list[str], output: str, cell: Cell) -> Outcome:
    if _SAYS_NONE in output:
        return Outcome("not run", f"torch {cell.torch} is not to be had for Python {cell.python}")
    last = "\n".join(f"    {line}" for line in output.strip().splitlines()[-15:])
    return Outcome("failed", f"{' '.join(words)}\n{last}")


def interpreter(version: str) -> Path | None:
    """A Python of this version: this one, one on the path, or one of pyenv's."""
    candidates = [sys.executable, shutil.which(f"python{version}"), *_of_pyenv(version)]
    return next((Path(path) for path in candidates if path and _version_of(path) == version), None)


def _of_pyenv(version: str) -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return sorted(map(str, root.glob(f"versions/{version}.*/bin/python")), reverse=True)


def _version_of(path: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip()
    except OSError:
        return ""
