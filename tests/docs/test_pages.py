"""Pages that are made from code say what the code says; links and pictures of all pages exist."""

import importlib
import re
from pathlib import Path

import pytest

from docs import make_masks

DOCS = Path(make_masks.__file__).parent


def test_the_page_of_masks_is_what_its_program_makes():
    assert (DOCS / "masks.md").read_text() == make_masks.page(), "run python docs/make_masks.py"


def test_the_code_of_your_own_mask_runs(capsys, tmp_path, monkeypatch):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "your_own_mask.md").read_text(), re.DOTALL))
    (tmp_path / "speakers.py").write_text(code)  # a module, so that its classes pickle
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("speakers")
    assert "causal & same_speaker(int64[3, 5])" in capsys.readouterr().out


@pytest.mark.parametrize("page", DOCS.rglob("*.md"), ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
