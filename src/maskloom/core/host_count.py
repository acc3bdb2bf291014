"""How many positions a table of padding leaves real, counted by the host when a mask is made of the table."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from maskloom.core.captures import Remark, moved
from maskloom.core.checks import readable

TILE = 128
"""Positions to a multiple of which rows are rounded up: those of a tile of a block mask."""


class HostCount(Remark):
    """A count, beside the table that it was made of; it says nothing that the table does not, so all counts are equal.

    Each table has its own, an empty one if the host did not count it. A mask keeps it when its tables move to a device, where
    the host would have to wait for their values (`captures.copied`). A write into the table that was counted, or into its
    copy, makes it void, and of another table it says nothing (`holds_for`).

    Attributes:
        total: the real positions of all batch rows; None if the host did not count them.
        longest: the real positions of the longest row, or the length of a table of flags.
        in_tiles: those of all rows if each is rounded up to a multiple of `TILE`.
    """

    total: int | None
    longest: int
    in_tiles: int

    def __init__(
        self,
        source: Tensor | None = None,
        total: int | None = None,
        longest: int = 0,
        in_tiles: int = 0,
        how: "Callable[[Tensor], HostCount] | None" = None,
        copy: Tensor | None = None,
    ) -> None:
        self._source, self.total, self.longest, self.in_tiles, self._how = source, total, longest, in_tiles, how
        self._table = source if copy is None else copy
        self._states = self._now()

    def holds_for(self, table: Tensor) -> bool:
        """Whether this is known to be the count of a table: the one that was counted or its copy, with no write into either."""
        return self.total is not None and self.is_beside(table) and self._states == self._now()

    def is_beside(self, table: Tensor) -> bool:
        """Whether it was made of a table, or of one of which that is the copy."""
        return table is self._table

    def of_copies(self, copies: Mapping[int, Tensor]) -> "HostCount":
        copy = copies.get(id(self._table))
        if self.total is None or copy is None or copy is self._table:
            return self
        is_known = self._states == self._now() and not copy.is_inference()
        return self._beside(copy) if is_known else HostCount()

    def _beside(self, copy: Tensor | None) -> "HostCount":
        return HostCount(self._source, self.total, self.longest, self.in_tiles, self._how, copy)

    def _now(self) -> list[tuple[int, int]]:
        """What a write into the tables changes, and what changes where another takes the place of one."""
        return [_state_of(table) for table in self._tables()]

    def _tables(self) -> list[Tensor]:
        return [table for table in (self._source, self._table) if table is not None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostCount)

    def __hash__(self) -> int:
        return hash(HostCount)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None or self._how is None:
            return HostCount, ()
        if self._states == self._now():
            return HostCount, (self._source, self.total, self.longest, self.in_tiles, self._how, self._table)
        if all(
            table.is_shared() for table in self._tables()
        ):  # a DataLoader worker has put them where it sends them from
            return _counted_again, (self._how, self._source, self._table)
        return HostCount, ()


def _state_of(table: Tensor) -> tuple[int, int]:
    """What a write into a table changes, and what ``torch.utils.swap_tensors`` changes."""
    return table._version, table.data_ptr()


def _counted_again(how: Callable[[Tensor], HostCount], source: Tensor, table: Tensor) -> HostCount:
    """The count of tables that were sent, whose values a worker may have changed since it counted them."""
    found, other = how(source), how(table)
    if found.total is None or (found.total, found.in_tiles) != (other.total, other.in_tiles):
        return HostCount()
    return found._beside(table)


_nothing = HostCount()


def not_counted() -> HostCount:
    """An empty count of its own; while torch compiles, which cannot make one, one for all."""
    return _nothing if torch.compiler.is_dynamo_compiling() else HostCount()


T = TypeVar("T")


def uncounted(held: T) -> T:
    """The same mask without counts, for a mask whose tensors will hold other values."""
    return moved(held, lambda count: not_counted(), of=HostCount)


def counted_lengths(lens: Tensor) -> HostCount:
    """The count of lengths (B,), where the host has their values."""
    if not readable(lens) or lens.is_inference() or not lens.numel():
        return not_counted()
    tiles = torch.div(lens + TILE - 1, TILE, rounding_mode="floor")
    return HostCount(lens, int(lens.sum()), int(lens.max()), TILE * int(tiles.sum()), counted_lengths)


def counted_flags(table: Tensor, *, real: bool) -> HostCount:
    """The count of flags (B, L), of which those that are ``real`` stand for real positions, where the host has their values."""
    if not readable(table) or table.is_inference():
        return not_counted()
    marked = table.count_nonzero(1)
    return _of_rows(table, marked if real else table.shape[1] - marked, partial(counted_flags, real=real))


def counted_ids(ids: Tensor) -> HostCount:
    """The count of ids (B, L), of which negative ones stand for padding, where the host has their values."""
    if ids.ndim == 1 or not readable(ids) or ids.is_inference():
        return not_counted()
    return _of_rows(ids, (ids >= 0).count_nonzero(1), counted_ids)


def _of_rows(table: Tensor, lens: Tensor, how: Callable[[Tensor], HostCount]) -> HostCount:
    """The count of a table (B, L) of whose rows so many positions are real."""
    tiles = torch.div(lens + TILE - 1, TILE, rounding_mode="floor")
    return HostCount(table, int(lens.sum()), table.shape[1], TILE * int(tiles.sum()), how)
