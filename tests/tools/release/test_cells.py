"""Each Python with each torch passes, fails or is not run, and which it was is said."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.test_surface import PACKAGE
from tools.release import cells
from tools.release.cells import CELLS, Cell, Outcome

ROOT = PACKAGE.parents[1]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def commands(monkeypatch):
    """The commands of a cell, which are not run: each prints its own words, or what `answers` has for a word in it."""
    done, answers = [], {}

    def run(words, **how):
        done.append(words)
        status, said = next((answer for word, answer in answers.items() if word in " ".join(words)), (0, words[-1]))
        return SimpleNamespace(returncode=status, stdout=said, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(cells, "interpreter", lambda version: Path("/python"))
    return SimpleNamespace(done=done, answers=answers)


def test_there_is_a_cell_for_each_python_and_each_torch():
    assert len(set(CELLS)) == 4 * 3
    assert str(Cell("3.11", "newest")) == "Python 3.11, torch newest"


def test_cells_are_asked_for_by_name():
    assert cells.asked(None) == CELLS
    assert cells.asked(["3.12:newest", "3.11:2.11"]) == (Cell("3.12", "newest"), Cell("3.11", "2.11"))
    for wrong in ("3.12", "3.10:2.13", "3.12:2.12"):
        with pytest.raises(
            ValueError, match=r"--only is PYTHON:TORCH, of 3\.11, 3\.12, .* and 2\.11, 2\.13, newest; got"
        ):
            cells.asked([wrong])


def test_a_cell_installs_the_wheel_alone_and_then_with_extras(commands):
    commands.answers["full"] = (0, "warnings\nmaskloom 1.0, torch 2")
    outcome = cells.run(Cell(HERE, "2.13"), Path("/dist/one.whl"), ROOT)
    made, bare, first, *extras, second = (" ".join(words) for words in commands.done)
    assert made.startswith("/python -m venv ")
    assert bare.endswith(f"--constraint {ROOT}/constraints.txt torch==2.13.* /dist/one.whl")
    assert [words.split()[-2:] for words in extras] == [
        [f"maskloom[{name}]", "torch==2.13.*"] for name in ("cli", "show")
    ]
    assert first.endswith("smoke.py bare") and second.endswith("smoke.py full")
    assert outcome.verdict == "passed" and outcome.words.startswith("maskloom 1.0, torch 2, ")


def test_the_newest_torch_is_what_pip_finds(commands):
    cells.run(Cell(HERE, "newest"), Path("/dist/one.whl"), ROOT)
    assert " ".join(commands.done[1]).endswith("--disable-pip-version-check torch /dist/one.whl")


def test_a_python_that_is_not_here_is_said(monkeypatch):
    monkeypatch.setattr(cells, "interpreter", lambda version: None)
    assert str(cells.run(CELLS[-1], Path("one.whl"), ROOT)) == "not run: no Python 3.14 here"


def test_a_torch_that_is_not_there_for_a_python_is_said(commands):
    commands.answers["install"] = (1, "ERROR: No matching distribution found for torch==2.11.*")
    outcome = cells.run(Cell("3.14", "2.11"), Path("/dist/one.whl"), ROOT)
    assert outcome == Outcome("not run", "torch 2.11 is not to be had for Python 3.14")


def test_a_disk_that_is_full_is_said(monkeypatch, commands):
    monkeypatch.setattr(cells.shutil, "disk_usage", lambda path: SimpleNamespace(free=3e9))
    outcome = cells.run(CELLS[0], Path("/dist/one.whl"), ROOT)
    assert outcome.verdict == "not run" and outcome.words.startswith("3 GB are free in ")
    assert commands.done == []


@pytest.mark.parametrize("step", ["venv", "install", "bare", "maskloom[show]", "full"])
def test_a_step_that_fails_shows_its_last_lines(commands, step):
    commands.answers[step] = (1, "\n".join(f"line {number}" for number in range(50)))
    outcome = cells.run(Cell(HERE, "2.11"), Path("/dist/one.whl"), ROOT)
    assert outcome.verdict == "failed"
    assert step in outcome.words.splitlines()[0]
    assert outcome.words.splitlines()[-1] == "    line 49" and "line 34" not in outcome.words


def test_pythons_are_found(tmp_path, monkeypatch):
    assert cells.interpreter(HERE) == Path(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert cells.interpreter("3.99") is None
    python = tmp_path / "versions" / "3.99.1" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3.99\n")
    python.chmod(0o755)
    assert cells.interpreter("3.99") == python
    python.write_text("#!/bin/sh\necho 3.98\n")
    assert cells.interpreter("3.99") is None


def test_another_maskloom_is_out_of_reach(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "src")
    assert "PYTHONPATH" not in cells._environment()
