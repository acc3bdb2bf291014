"""Type checks from outside: a small program that uses the installed wheel, by mypy and by pyright."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tools.release.cells import Outcome

PYRIGHT = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False, "reportMissingModuleSource": False}


def checked(wheel: Path, sources: Path, work: Path) -> dict[str, Outcome]:
    """What each checker says of tests/outside/consumer.py beside the installed wheel."""
    work.mkdir()
    python = _environment(wheel, work / "venv")
    program = Path(shutil.copy(sources / "tests" / "outside" / "consumer.py", work))
    (work / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    mypy = [
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(python),
        "--cache-dir",
        str(work / "cache"),
        program.name,
    ]
    pyright = ["-m", "basedpyright", "--pythonpath", str(python), "--project", "pyrightconfig.json", program.name]
    return {
        "runs": _said([str(python), program.name], work),
        "mypy --strict": _by("mypy", mypy, work),
        "pyright, strict": _by("basedpyright", pyright, work),
    }


def _environment(wheel: Path, folder: Path) -> Path:
    """The Python of an environment with the wheel alone, which sees the torch and numpy of this one."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", str(wheel)]
    subprocess.run([str(python), "-m", "pip", *words], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _by(module: str, words: Sequence[str], work: Path) -> Outcome:
    if find_spec(module) is None:
        return Outcome("not run", f"{module} is not installed; make setup installs it")
    return _said([sys.executable, *words], work)


def _said(words: Sequence[str], work: Path) -> Outcome:
    done = subprocess.run(words, cwd=work, capture_output=True, text=True)
    if done.returncode == 0:
        return Outcome("passed", "")
    lines = (done.stdout + done.stderr).strip().splitlines()[-15:]
    return Outcome("failed", "\n" + "\n".join(f"    {line}" for line in lines))
