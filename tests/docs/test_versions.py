"""What the pages say of versions is what code and rows say; the version stands nowhere else with another number."""

import re

import pytest

import maskloom as loom
from docs import make_masks, make_versions
from maskloom.attention.backends.flash_limits import LIMITS
from maskloom.integrations.transformers import KNOWN_VERSIONS
from tools.release import cells
from tools.release.state import entries_of

ROOT = make_masks.HERE.parent
PAGE = (ROOT / "docs" / "versions.md").read_text()


def test_each_python_with_each_torch_is_told():
    lines = make_versions.installs().splitlines()
    assert lines[0] == f"| Python | {' | '.join(f'torch {torch}' for torch in cells.TORCHES)} |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(cells.PYTHONS)
    told = [cell for line in lines[2:] for cell in line.strip("| ").split(" | ")[1:]]
    assert len(told) == len(cells.CELLS)
    assert all(cell.startswith(("run: ", "not run")) for cell in told)  # nothing failed


def test_a_cell_that_passed_names_what_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(make_versions, "INSTALLS", tmp_path / "rows.csv")
    outcomes = {
        cells.CELLS[0]: cells.Outcome("passed", "maskloom 0.2.0, Python 3.11.7, torch 2.11.0+cu130, 271 s"),
        cells.CELLS[1]: cells.Outcome("failed", "pip install"),
        cells.CELLS[-1]: cells.Outcome("not run", "no Python 3.14 here"),
    }
    cells.write(outcomes, tmp_path / "rows.csv")
    lines = make_versions.installs().splitlines()
    assert lines[2] == "| 3.11 | run: 3.11.7, 2.11.0+cu130 | failed: pip install | not run |"
    assert lines[-1] == "| 3.14 | not run | not run | not run: no Python 3.14 here |"


def test_every_rule_of_flash_is_told_as_run_or_read():
    section = PAGE.split("<!-- flash_rules -->")[1]
    for limit in LIMITS:
        assert (
            f"| {limit.where} | {limit.words} | {limit.source} | {'run' if limit.ran else 'read, not run'} |" in section
        )


def test_the_versions_of_transformers_are_those_of_the_code():
    first, last = (".".join(map(str, version)) for version in KNOWN_VERSIONS)
    assert f"| {first} or newer | {first} to {last} on a CPU" in PAGE


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_no_page_names_another_wheel(path):
    assert set(re.findall(r"maskloom-(\d[\w.]*?)-py3", path.read_text())) <= {loom.__version__}


def test_the_citation_is_of_this_version_and_of_the_day_of_its_entry():
    cited = (ROOT / "CITATION.cff").read_text()
    date, text = entries_of(ROOT)[loom.__version__]
    assert f"\nversion: {loom.__version__}\ndate-released: {date}\n" in cited and text
    for name in ("cff-version: 1.2.0", "message: ", "title: ", "authors:\n  - name: ", "license: BSD-3-Clause"):
        assert f"\n{name}" in f"\n{cited}"
