"""Type checkers that are missing are said; those that find something show it."""

import sys

from tools.release import typed


def test_a_checker_that_is_missing_is_said(tmp_path):
    outcome = typed._by("nowhere", ["-m", "nowhere"], tmp_path)
    assert str(outcome) == "not run: nowhere is not installed; make setup installs it"


def test_what_a_checker_finds_is_shown(tmp_path):
    (tmp_path / "wrong.py").write_text("x: int = 'one'\n")
    outcome = typed._by("mypy", ["-m", "mypy", "--cache-dir", str(tmp_path), "wrong.py"], tmp_path)
    assert outcome.verdict == "failed" and "wrong.py:1: error: Incompatible types in assignment" in outcome.words
    assert typed._said([sys.executable, "-c", ""], tmp_path).verdict == "passed"


def test_the_program_of_a_user_runs():
    from tests.outside import consumer

    mask = consumer.masks()
    consumer.blocks(mask)
    assert consumer.batches()
