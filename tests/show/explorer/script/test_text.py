"""Tokens and numbers as text: text.js."""

import json
import unicodedata

import pytest

from tests.show.explorer.engine import value


def shown(token):
    return value(f"shownToken({json.dumps(token)})")


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        ("word", "word"), ("  two ", "␣␣two␣"), ("   ", "␣␣␣"), ("a b", "a b"), ("\n\t\0", "␊␉␀"), ("\x7f\x85", "⟨007F⟩⟨0085⟩"),
        ("\u202eabc\u202c", "⟨202E⟩abc⟨202C⟩"), ("\u2066x\u2069", "⟨2066⟩x⟨2069⟩"), ("\u200b\ufeff\u00ad", "⟨200B⟩⟨FEFF⟩⟨00AD⟩"),
        ("\ud800", "⟨D800⟩"), ("\udc00x", "⟨DC00⟩x"), ("🙂", "🙂"), ("日本語", "日本語"), ("<b>&amp;", "<b>&amp;"), ("", ""),
    ],
)  # fmt: skip
def test_nothing_of_a_token_is_hidden_or_has_an_effect(token, seen):
    assert shown(token) == seen


def test_no_format_or_control_character_is_left():
    unseen = [
        chr(code)
        for code in range(0x10000)
        if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(chr(code)) in BIDI
    ]
    assert not set(shown("".join(f"{letter}|" for letter in unseen))) & set(unseen)


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}


def test_long_labels_are_cut_and_numbers_are_round():
    assert value(f"label({json.dumps('x' * 17)})") == "x" * 15 + "…"
    assert value(f"label({json.dumps('🙂' * 16)})") == "🙂" * 16
    assert value("[0, 0.25, 0.00012345, 1, 123456, NaN].map(shownWeight)") == [
        "0", "0.25", "1.23e-4", "1", "123000", "not finite",
    ]  # fmt: skip
    assert value("[ticks([0, 10], 1), ticks([3, 120], 22), ticks([0, 131072], 19000)]") == [
        [*range(10)], [50, 100], [0, 20_000, 40_000, 60_000, 80_000, 100_000, 120_000],
    ]  # fmt: skip
