"""What the tests promise of themselves: they ask no clock, so that a busy machine passes them too."""

import ast
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if "gpu" not in path.relative_to(TESTS).parts)


def clocks_of(source: str) -> list[str]:
    """The modules that a source imports to ask for the time, or for what of the machine's memory a process has."""
    asked = {"time", "timeit", "resource", "psutil"}
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in asked]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_asks_a_clock(path):
    assert clocks_of(path.read_text()) == []


def test_a_clock_is_seen():
    source = "import os, time\nfrom timeit import timeit\nfrom tests.memory import peak_bytes\n"
    assert clocks_of(source) == ["time", "timeit"]


def test_examples_have_no_deadline():
    assert settings().deadline is None
    assert all(settings.get_profile(name).deadline is None for name in ("ci", "nightly"))
