"""The range of values that a colour scale covers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

_SHARE, _FAR = 95, 3
"""If the largest value is more than 3 times the one that 95 % are below, it would leave all others one colour."""


class Scale(NamedTuple):
    """The values with the first and the last colour, and at which ends values lie beyond them."""

    low: float
    high: float
    extend: Literal["neither", "min", "max", "both"]


def scale_of(values: Sequence[np.ndarray], vmax: float | None, *, from_zero: bool) -> Scale:
    """A colour scale for these values: up to ``vmax``, or as far as most of them reach.

    Args:
        from_zero: whether the first colour is that of 0, as for probabilities, or of the smallest value.
    """
    shown = np.concatenate([part.ravel() for part in values])
    if not shown.size:
        shown = np.array([0.0, 1.0])
    least, largest = float(shown.min()), float(shown.max())
    low = min(0.0, least) if from_zero else least
    high = vmax if vmax is not None else _most(shown, low, largest)
    if high <= low:
        low, high = (low, low + 1.0) if vmax is None and from_zero else (high - 0.5, high + 0.5)
    above, below = largest > high, least < low
    return Scale(low, high, "both" if above and below else "max" if above else "min" if below else "neither")


def _most(shown: np.ndarray, low: float, largest: float) -> float:
    """The largest value, or where that is far from the others the one that most are below."""
    usual = float(np.percentile(shown, _SHARE))
    if shown.size <= 64 or largest - low <= _FAR * (usual - low) or usual <= low:
        return largest
    return usual
