"""Masks drawn with characters."""

import pytest

import maskloom as loom
from maskloom.show.text import picture


def test_one_character_for_each_query_and_key():
    assert picture(loom.window(back=1), 3, 5).split("\n") == ["x · · · ·", "x x · · ·", "· x x · ·"]


def test_two_queries_in_a_line():
    assert picture(loom.causal, 3, 5, width=8).split("\n") == ["█▄   ", "▀▀▀  "]
    assert picture(loom.causal, 33, 33, width=40).split("\n")[16] == "▀" * 33


def test_one_character_for_each_tile():
    assert picture(loom.causal, 32, 32, width=8).split("\n") == ["▒▒······", "██▒▒····", "████▒▒··", "██████▒▒"]


def test_batch_rows_and_heads():
    mask = loom.lengths([1, 2])
    assert picture(mask, 2, 3, batch_idx=1).split("\n") == ["x x ·", "x x ·"]
    assert picture(loom.causal, 2, 3, batch_idx=7, head_idx=5).split("\n") == ["x · ·", "x x ·"]
    with pytest.raises(ValueError, match="batch_idx is from 0 to 1, as there are 2 batch rows; got 2"):
        picture(mask, 2, 3, batch_idx=2)


def test_words():
    with pytest.raises(ValueError, match="width is a number of characters, at least 8; got 7"):
        picture(loom.causal, 2, 3, width=7)
    with pytest.raises(ValueError, match="q_len is a number of positions"):
        picture(loom.causal, 0, 3)
