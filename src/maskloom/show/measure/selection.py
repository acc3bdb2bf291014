"""What a picture shows of a mask: which batch rows and heads, and which queries and keys."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maskloom.core.checks import is_number
from maskloom.core.words import brief

Which = int | Sequence[int] | Literal["all"]
"""Batch rows or heads: one, several, or all."""

Span = slice | range | tuple[int, int] | None
"""Positions in one piece: ``slice(start, stop)``, a range, a pair (start, stop), or None for all."""


@dataclass(frozen=True)
class Members:
    """The batch rows, or the heads, that a mask speaks of.

    Attributes:
        item: "batch row" or "head".
        argument: the name of the argument that chooses among them.
        count: how many there are; None if the mask does not say it.
        varies: whether the mask may differ among them.
    """

    item: str
    argument: str
    count: int | None
    varies: bool

    def chosen(self, which: Which) -> list[int]:
        """The numbers of those that are drawn; 0 alone where all are the same.

        Raises:
            TypeError, ValueError: there is none, not an index, one that does not exist, or "all" of an unknown number.
        """
        if self.varies and self.count == 0:
            raise ValueError(f"there is nothing to draw: the mask has 0 {self.item}s")
        if isinstance(which, str):
            return self._all(which)
        several = isinstance(which, Sequence) and not isinstance(which, str)
        indices = [self._checked(index) for index in (which if several else [which])]  # type: ignore[union-attr]
        if not indices:
            raise ValueError(f"{self.argument} names at least one {self.item}; got {brief(which)}")
        return indices if self.varies else [0]

    def name(self, index: int) -> str:
        """Which one it is, and how many there are."""
        if not self.varies:
            return f"all {self.item}s"
        return f"{self.item} {index}" + ("" if self.count is None else f" of {self.count}")

    def _all(self, which: str) -> list[int]:
        if which != "all":
            raise ValueError(f'{self.argument} is a {self.item}, several, or "all"; got {which!r}')
        if not self.varies:
            return [0]
        if self.count is None:
            raise ValueError(
                f"no table of the mask says how many {self.item}s there are; pass {self.argument}=range(n) for n of them"
            )
        return list(range(self.count))

    def _checked(self, index: object) -> int:
        if not is_number(index):
            raise TypeError(
                f'{self.argument} is a {self.item}, an int, several, or "all"; got {type(index).__name__}: {brief(index)}'
            )
        number = operator.index(index)
        if number < 0 or (self.varies and self.count is not None and number >= self.count):
            if self.varies and self.count is not None:
                what = f"from 0 to {self.count - 1}, as there are {self.count} {self.item}s"
            else:
                what = f"the number of a {self.item}, at least 0"
            raise ValueError(f"{self.argument} is {what}; got {brief(number)}")
        return number


def span_of(argument: str, span: Span, length: int) -> range:
    """The positions that are drawn, of ``length``.

    Raises:
        TypeError: not one piece of positions. ValueError: it is empty, or positions that do not exist.
    """
    if span is None:
        return range(length)
    start, stop = _ends(argument, span, length)
    if not 0 <= start < stop <= length:
        raise ValueError(f"{argument} is slice(start, stop) with 0 <= start < stop <= {length}; got {brief(span)}")
    return range(start, stop)


def _ends(argument: str, span: Span, length: int) -> tuple[int, int]:
    ends: tuple[object, object] = (None, None)
    if isinstance(span, (slice, range)) and span.step in (None, 1):
        ends = (span.start, span.stop)
    elif isinstance(span, (tuple, list)) and len(span) == 2:
        ends = (span[0], span[1])
    else:
        raise TypeError(f"{argument} is one piece of positions, slice(start, stop); got {brief(span)}")
    start, stop = ends
    start, stop = (0 if start is None else start), (length if stop is None else stop)
    if not (is_number(start) and is_number(stop)):
        raise TypeError(f"{argument} is one piece of positions, slice(start, stop) of ints; got {brief(span)}")
    first, last = operator.index(start), operator.index(stop)
    if isinstance(span, slice):  # counted from the end, as in Python
        first, last = first + length * (first < 0), last + length * (last < 0)
    return first, last
