"""Words of the command line: what is none is named, with what would be right."""

import argparse

import pytest
from lm.options import backend, count, finite


def test_words_as_values():
    assert (count("3"), count("0", 0), finite("2e-3", above=0), finite("0", least=0)) == (3, 0, 2e-3, 0.0)
    assert backend("eager") == "eager"


@pytest.mark.parametrize(
    ("value", "word", "message"),
    [
        (count, "1.5", "it is a whole number, at least 1; got 1.5"),
        (count, "9" * 50, f"it is a whole number, of at most 18 digits; got {'9' * 40}..."),
        (lambda word: finite(word, above=0), "nan", "it is a finite number, above 0; got nan"),
        (lambda word: finite(word, above=0), "0", "it is a finite number, above 0; got 0"),
        (lambda word: finite(word, least=0), "inf", "it is a finite number, at least 0; got inf"),
        (lambda word: finite(word, least=0), "much", "it is a finite number, at least 0; got much"),
        (backend, "wrong", r"it is a backend of torch.compile \(.*inductor.*\); got wrong"),
    ],
)
def test_what_is_none_is_named(value, word, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        value(word)
