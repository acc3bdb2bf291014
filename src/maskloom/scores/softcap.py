"""Scores limited to a range."""

import math
from numbers import Real

import torch
from torch import Tensor

from maskloom.core.words import brief
from maskloom.scores.base import ScoreValue, score_dataclass


@score_dataclass
class SoftCap(ScoreValue):
    """See `softcap`. ``text`` is the cap as Python prints it.

    It is text because torch.compile at some point makes a float an input of its graph (at once with ``dynamic=True``),
    and flex_attention does not accept that: its score_mod captures tensors and ints (torch 2.11 and 2.13). Text is a
    constant.
    """

    text: str

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        cap = float(self.text)
        return cap * torch.tanh(score / cap)

    def __repr__(self) -> str:
        return f"softcap({self.text})"


def softcap(cap: float) -> SoftCap:
    """Scores between ``-cap`` and ``cap``: ``cap * tanh(score / cap)``, close to the score itself where it is small.

    Source: Gemma 2 (arXiv 2408.00118), section 2, with a cap of 50 in its attention; Bello et al. 2016 (arXiv 1611.09940).

    Args:
        cap: a finite number above 0, in units of the scaled score.

    Raises:
        TypeError: not a number. ValueError: not above 0, or not finite.
    """
    return named_softcap("cap", cap)


def named_softcap(name: str, cap: float) -> SoftCap:
    """`softcap` for a caller whose argument has another ``name``, which errors then tell."""
    if isinstance(cap, bool) or not isinstance(cap, Real):
        raise TypeError(f"{name} is a number, the greatest size of a score; got {type(cap).__name__}: {brief(cap)}")
    try:
        size = float(cap)
    except OverflowError:  # of an int
        size = math.inf
    if not 0 < size < math.inf:
        raise ValueError(f"{name} is the greatest size of a score, a finite number above 0; got {brief(cap)}")
    return SoftCap(f"{size!r}")  # of a number that varies torch.compile makes a constant here, and of repr() an error
