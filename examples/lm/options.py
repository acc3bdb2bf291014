"""Words of the command line as values. What is none is refused before anything is read or computed."""

import argparse
import math

import torch


def count(word: str, least: int = 1) -> int:
    if word.isdecimal() and len(word) > 18:
        raise argparse.ArgumentTypeError(f"it is a whole number, of at most 18 digits; got {_brief(word)}")
    if not word.isdecimal() or int(word) < least:
        raise argparse.ArgumentTypeError(f"it is a whole number, at least {least}; got {_brief(word)}")
    return int(word)


def finite(word: str, *, above: float = -math.inf, least: float = -math.inf) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (above < value < math.inf and least <= value):
        limit = f"above {above:g}" if least == -math.inf else f"at least {least:g}"
        raise argparse.ArgumentTypeError(f"it is a finite number, {limit}; got {_brief(word)}")
    return value


def backend(word: str) -> str:
    if word not in torch.compiler.list_backends(()):
        usual = ", ".join(torch.compiler.list_backends())
        raise argparse.ArgumentTypeError(f"it is a backend of torch.compile ({usual}); got {_brief(word)}")
    return word


def _brief(word: str) -> str:
    return word if len(word) <= 40 else f"{word[:40]}..."
