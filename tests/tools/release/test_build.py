"""The sdist and the wheel are the same bytes wherever and whenever they are built."""

import subprocess

import pytest

from tests.tools.release.test_state import commit, git
from tools.release import build
from tools.release.build import SITUATIONS, BuildError
from tools.release.compare import members

EPOCH = 1_900_000_000
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "small"
version = "1.0"
requires-python = ">=3.11"

[tool.hatch.build]
include = ["small"]
"""
pytest.importorskip("hatchling", reason="hatchling builds releases; make setup installs it")


@pytest.fixture
def root(tmp_path):
    """A repository of a small package."""
    root = tmp_path / "repository"
    (root / "small").mkdir(parents=True)
    (root / "small" / "__init__.py").write_text("")
    (root / "small" / "run.sh").write_text("#!/bin/sh\n")
    (root / "small" / "run.sh").chmod(0o755)
    (root / "pyproject.toml").write_text(PROJECT)
    git(root, "init", "--quiet")
    commit(root)
    return root


def built(root, work):
    work.mkdir()
    return build.build(root, "HEAD", EPOCH, work)


def test_situations_differ_in_all_that_must_not_matter():
    for field in ("folder", "umask", "shift"):
        assert len({getattr(situation, field) for situation in SITUATIONS}) == len(SITUATIONS)
    assert len({situation.environment["TZ"] for situation in SITUATIONS}) == len(SITUATIONS)


def test_a_package_is_built_to_equal_bytes(root, tmp_path):
    sdist, wheel, sources = built(root, tmp_path / "work")
    assert (sources / "small" / "run.sh").exists()
    assert (sdist.name, wheel.name) == ("small-1.0.tar.gz", "small-1.0-py3-none-any.whl")
    modes = {name: member.mode & 0o777 for name, member in members(wheel).items() if name.startswith("small/")}
    assert modes == {"small/__init__.py": 0o644, "small/run.sh": 0o755}
    assert {member.time for member in members(sdist).values()} == {EPOCH}


def test_what_is_not_committed_is_not_built(root, tmp_path):
    (root / "small" / "new.py").write_text("")
    sdist, _, _ = built(root, tmp_path / "work")
    assert not any(name.endswith("new.py") for name in members(sdist))


HOOK = """
from datetime import datetime
from pathlib import Path
import time
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

class Hook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version, build_data):
        Path(self.root, "small", "made.txt").write_text({what})
"""


@pytest.mark.parametrize("what", ["self.root", "str(time.time() // 10000)", "time.tzname[0]"])
def test_a_build_that_sees_where_or_when_it_runs_is_an_error(root, tmp_path, what):
    (root / "pyproject.toml").write_text(PROJECT + "\n[tool.hatch.build.hooks.custom]\n")
    (root / "hatch_build.py").write_text(HOOK.format(what=what))
    commit(root)
    with pytest.raises(BuildError, match=r"is another one in the folder .*\n.*made\.txt has other content"):
        built(root, tmp_path / "work")


def test_a_wheel_that_needs_more_than_the_sdist_is_an_error(root, tmp_path):
    (root / "pyproject.toml").write_text(PROJECT + '\n[tool.hatch.build.targets.sdist]\nexclude = ["small/run.sh"]\n')
    commit(root)
    with pytest.raises(BuildError, match=r"is another one from the sdist:\n  small/run\.sh is missing"):
        built(root, tmp_path / "work")


def test_a_build_that_fails_is_an_error(root, tmp_path):
    (root / "pyproject.toml").write_text(PROJECT.replace('"1.0"', '"one"'))
    commit(root)
    with pytest.raises(BuildError, match=r"the sdist cannot be built: [\s\S]*one"):
        built(root, tmp_path / "work")


def test_files_of_a_commit_have_the_modes_of_a_umask(root, tmp_path):
    build.export(root, "HEAD", tmp_path / "out", SITUATIONS[1])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out" / "small").iterdir()}
    assert modes == {"__init__.py": 0o600, "run.sh": 0o700}
    at = int(subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True).stdout)
    assert (tmp_path / "out" / "small" / "run.sh").stat().st_mtime == at + SITUATIONS[1].shift
