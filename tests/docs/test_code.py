"""The code of the pages: every block runs and prints what stands below it, or is listed here as not run."""

import re
from pathlib import Path

import pytest

import maskloom as loom

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
AS_FILES = {"blocks.md", "padded_or_packed.md", "several_gpus.md", "your_own_mask.md"}
"""Pages whose code is a file, with workers, processes or classes that pickle: tests/docs/test_pages.py runs these."""
NOT_RUN = {"from_flash_attn.md": 1, "from_xformers.md": 1}
"""Blocks that begin with ``# not run: why``: code of libraries that are not installed here, by page."""
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
WITH_CODE = [page for page, text in PAGES.items() if "```python" in text and page not in AS_FILES]


def is_not_run(code: str) -> bool:
    return code.startswith("# not run: ")


def expected_of(code: str, after: str) -> list[str]:
    """What a block should print: the block of text below it, else the lines of comment in it."""
    below = re.match(r"\s*```text\n(.*?)^```$", after, re.MULTILINE | re.DOTALL)
    return below[1].splitlines() if below else re.findall(r"^# (.*)$", code, re.MULTILINE)


def run(text: str, capsys) -> None:
    """Run the blocks of a page one after the other, in one namespace."""
    names: dict[str, object] = {}
    for block in BLOCK.finditer(text):
        if block[1] == "python" and not is_not_run(block[2]):
            exec(block[2], names)
            assert capsys.readouterr().out.splitlines() == expected_of(block[2], text[block.end() :]), block[2]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(PAGES[page], capsys)


def test_what_is_not_run_is_listed():
    marked = {page: sum(is_not_run(code) for _, code in BLOCK.findall(text)) for page, text in PAGES.items()}
    assert {page: count for page, count in marked.items() if count} == NOT_RUN


def test_code_is_marked_as_python():
    """Code in another kind of block would not be run."""
    for page, text in PAGES.items():
        for language, code in BLOCK.findall(text):
            assert language == "python" or not re.search(r"^(import|from) \w+|loom\.\w+\(", code, re.MULTILINE), page


def test_a_wrong_line_is_noticed(capsys):
    run("```python\nprint(1)\n```\n\n```text\n1\n```\n```python\nprint(2)\n# 2\n```\n", capsys)
    with pytest.raises(AssertionError):
        run("```python\nprint(1)\n```\n\n```text\n2\n```\n", capsys)
    with pytest.raises(ZeroDivisionError):
        run("```python\n1 / 0\n```\n", capsys)
    run("```python\n# not run: it needs a library\n1 / 0\n```\n", capsys)


def test_the_first_page_names_the_wheel_of_this_version():
    wheels = re.findall(r"maskloom-[\d.]+-py3-none-any\.whl", "".join(PAGES.values()))
    assert wheels and set(wheels) == {f"maskloom-{loom.__version__}-py3-none-any.whl"}


def test_no_page_installs_by_a_name_that_is_not_ours():
    for page, text in PAGES.items():
        assert not re.search(r"pip install (-\w+ )*maskloom", text), page
