"""The command: what is refused leaves no trace, what fails writes nothing, and what is right lies in dist/."""

import pytest

from tests.tools.release.test_state import CHANGELOG, commit, git, root  # noqa: F401 (a fixture)
from tools.release import __main__ as command
from tools.release import cells, typed
from tools.release.build import BuildError
from tools.release.cells import Outcome


@pytest.fixture
def steps(root, monkeypatch):  # noqa: F811
    """The steps of a release, which do nothing but say what they do."""
    (root / "CHANGELOG.md").write_text(CHANGELOG.replace("2030-05-06", "2020-05-06"))
    (root / "CITATION.cff").write_text("version: 0.3.0\ndate-released: 2020-05-06\n")
    commit(root)
    done = []

    def build(root, sha, epoch, work):
        done.append("build")
        files = [work / name for name in ("maskloom-0.3.0.tar.gz", "maskloom-0.3.0-py3-none-any.whl")]
        for path in files:
            path.write_bytes(b"all of it")
        return *files, root

    monkeypatch.setattr(command, "build", build)
    monkeypatch.setattr(typed, "checked", lambda *given: {"mypy": Outcome("passed", "")})
    monkeypatch.setattr(cells, "run", lambda cell, *given: Outcome("passed", f"{cell}, 3 s"))
    return done


def test_a_release_lies_in_dist_and_the_rest_is_named(root, steps, capsys):  # noqa: F811
    assert command.main([], root) == 0
    assert {path.name for path in (root / "dist").iterdir()} == {
        "maskloom-0.3.0.tar.gz", "maskloom-0.3.0-py3-none-any.whl",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "Python 3.14, torch newest: passed: Python 3.14, torch newest, 3 s" in said
    assert "Left to do, by a person:\n  git tag -a v0.3.0 -m 'maskloom 0.3.0' " in said
    assert "\n  upload maskloom-0.3.0.tar.gz and maskloom-0.3.0-py3-none-any.whl" in said


def test_what_is_refused_is_refused_before_any_work(root, steps, capsys):  # noqa: F811
    git(root, "tag", "v0.3.0")
    (root / "new").write_text("")
    assert command.main([], root) == 2
    said = capsys.readouterr()
    assert said.out == "" and steps == []
    assert said.err.splitlines()[:2] == [
        "release: 0.3.0 cannot be released",
        "  the tree has changes that are not committed: new",
    ]
    assert "the tag v0.3.0 exists" in said.err
    assert not (root / "dist").exists()


def test_a_cell_that_is_none_is_refused(root, steps, capsys):  # noqa: F811
    assert command.main(["--only", "2.7"], root) == 2
    assert "release: --only is PYTHON:TORCH" in capsys.readouterr().err and steps == []


def test_a_rehearsal_says_what_would_be_refused_and_leaves_dist_alone(root, steps, capsys):  # noqa: F811
    (root / "new").write_text("")
    assert command.main(["--rehearse", "--only", "3.12:2.11"], root) == 0
    said = capsys.readouterr().out
    assert "  would be refused: the tree has changes that are not committed: new\n" in said
    assert said.count("not run: not asked for") == len(cells.CELLS) - 1
    assert said.endswith("this was a rehearsal: dist/ is as it was\n")
    assert not (root / "dist").exists()


@pytest.mark.parametrize("part", ["a cell", "types"])
def test_what_fails_is_told_and_nothing_is_written(root, steps, capsys, monkeypatch, part):  # noqa: F811
    failed = Outcome("failed", "\n    the end of it")
    if part == "types":
        monkeypatch.setattr(typed, "checked", lambda *given: {"mypy": failed})
    else:
        monkeypatch.setattr(
            cells, "run", lambda cell, *given: failed if cell.torch == "2.11" else Outcome("passed", "")
        )
    assert command.main([], root) == 1
    said = capsys.readouterr()
    assert "failed: \n    the end of it" in said.out
    assert said.err == f"release: {1 if part == 'types' else 4} failed, so nothing was written\n"
    assert not (root / "dist").exists()


def test_what_was_installed_nowhere_is_not_released(root, steps, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cells, "run", lambda cell, *given: Outcome("not run", "no such Python here"))
    assert command.main([], root) == 1
    assert capsys.readouterr().err == "release: it was installed nowhere, so nothing was written\n"
    assert not (root / "dist").exists()


def test_a_build_that_differs_is_told(root, steps, capsys, monkeypatch):  # noqa: F811
    def build(*given):
        raise BuildError("one.whl is another one from the sdist:\n  a.py is missing")

    monkeypatch.setattr(command, "build", build)
    assert command.main([], root) == 1
    assert capsys.readouterr().err == "release: one.whl is another one from the sdist:\n  a.py is missing\n"
    assert not (root / "dist").exists()


def test_what_became_of_each_cell_is_written_where_it_is_asked(root, steps, tmp_path_factory):  # noqa: F811
    rows = tmp_path_factory.mktemp("rows") / "installs.csv"
    assert command.main(["--rehearse", "--only", "3.11:2.13", "--rows", str(rows)], root) == 0
    lines = rows.read_text().splitlines()
    assert lines[:2] == ["python,torch,verdict,words", "3.11,2.11,not run,not asked for"]
    assert lines[2] == '3.11,2.13,passed,"Python 3.11, torch 2.13, 3 s"' and len(lines) == 1 + len(cells.CELLS)


def test_an_older_file_in_dist_is_replaced_whole(root, steps):  # noqa: F811
    (root / ".gitignore").write_text("dist/\n")
    commit(root)
    (root / "dist").mkdir()
    (root / "dist" / "maskloom-0.3.0.tar.gz").write_bytes(b"older")
    assert command.main([], root) == 0
    assert (root / "dist" / "maskloom-0.3.0.tar.gz").read_bytes() == b"all of it"
    assert not list((root / "dist").glob(".*"))
