"""Masks drawn with characters."""

import re

import pytest

import maskloom as loom
from maskloom.show.text import Terminal, picture
from tests.memory import peak_bytes


def lines(*arguments, width=80, **how):
    terminal = Terminal(
        width, **{name: how.pop(name) for name in ("lines", "colour", "blocks", "is_light") if name in how}
    )
    return picture(*arguments, terminal=terminal, **how).split("\n")


def test_one_character_for_each_query_and_key():
    assert lines(loom.window(back=1), 3, 5) == ["x · · · ·", "x x · · ·", "· x x · ·"]
    assert lines(loom.window(back=1), 3, 5, blocks=False) == ["x . . . .", "x x . . .", ". x x . ."]


def test_two_queries_in_a_line():
    assert lines(loom.causal, 3, 5, width=8) == ["█▄   ", "▀▀▀  "]
    assert lines(loom.causal, 33, 33, width=40)[16] == "▀" * 33


def test_one_character_for_each_tile():
    drawn = lines(loom.causal, 32, 32, width=8)
    assert drawn == ["▓░······", "██▓░····", "████▓░··", "██████▓░", "32 queries × 32 keys, a character is 8 × 4"]
    assert lines(loom.causal, 32, 32, width=8, blocks=False)[:2] == ["*-......", "##*-...."]


def test_sizes_are_those_of_tables():
    assert lines(loom.documents(offsets=[0, 2, 3])) == ["x x ·", "x x ·", "· · x"]
    assert len(lines(loom.block_mask(loom.causal, 5, 7))) == 5


def test_batch_rows_and_heads():
    mask = loom.lengths([1, 2])
    assert lines(mask, 2, 3, batch=1) == ["x x ·", "x x ·", "batch row 1 of 2, all heads"]
    assert lines(loom.causal, 2, 3, batch=7, head=5) == ["x · ·", "x x ·"]
    with pytest.raises(ValueError, match="batch is from 0 to 1, as there are 2 batch rows; got 2"):
        picture(mask, 2, 3, batch=2)


def test_the_middle_is_left_out():
    drawn = lines(loom.causal, 1001, 40, lines=9, width=40)
    assert drawn == ["".join("█" if k <= 2 * q else "▄" if k == 2 * q + 1 else " " for k in range(40)) for q in range(4)] + [
        "⋮", *["█" * 40] * 3, "▀" * 40, "queries 8 to 993 left out",
    ]  # fmt: skip


def test_a_part():
    assert lines(loom.causal, 100, rows=(97, 100), keys=slice(96, None)) == ["x x · ·", "x x x ·", "x x x x"]


def test_colours_are_two_cells_in_a_character():
    (line,) = lines(loom.causal, 2, 3, colour=True)
    assert line == "\x1b[38;5;117;48;5;117m▀\x1b[38;5;237;48;5;117m▀\x1b[38;5;237;48;5;237m▀\x1b[0m"
    assert "\x1b[38;5;24;48;5;24m" in lines(loom.everything, 2, colour=True, is_light=True)[0]
    odd = lines(loom.everything, 3, colour=True)[1]
    assert odd == "\x1b[38;5;117;49m▀▀▀\x1b[0m"
    wide = lines(loom.causal, 1000, colour=True, width=50)
    assert len(wide) == 26 and {len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in wide[:-1]} == {50}


def test_no_table_of_all_pairs_is_made():
    mask = loom.causal & loom.lengths([100000, 131072])
    assert peak_bytes(lambda: picture(mask, batch=1)) < 8 << 20
    drawn = lines(loom.window(back=0) | loom.sinks(1), 1 << 20)
    assert all(line[0] != "·" for line in drawn[:40])  # one sink is never drawn as hidden


def test_words():
    with pytest.raises(ValueError, match="width is a number of characters, at least 8; got 7"):
        lines(loom.causal, 2, 3, width=7)
    with pytest.raises(ValueError, match="q_len is a number of positions"):
        picture(loom.causal, 0, 3)
    with pytest.raises(ValueError, match="causal has no length of its own: give q_len"):
        picture(loom.causal)
