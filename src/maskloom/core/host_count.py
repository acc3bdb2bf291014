"""How many positions a table of padding leaves real, counted by the host when a mask is made of the table."""

from collections.abc import Callable, Mapping
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
    """

    total: int | None
    longest: int

    def __init__(self, source: Tensor | None = None, how: str = "", copy: Tensor | None = None) -> None:
        """Counts the table, if the host can read it.

        Args:
            how: one of `_REAL`: what stands in the table.
            copy: a copy of the table, of which the count is then.
        """
        self._source, self._how = source, how
        self._table = source if copy is None else copy
        self.total, self.longest = None, 0
        self._in_tiles: Tensor | None = None
        found = None if source is None else _counted(source, how)
        if found is not None and (copy is None or _counted(copy, how) in (found, None)):  # None: it cannot be read
            self.total, self.longest, in_tiles = found
            self._in_tiles = torch.empty(in_tiles, 0, dtype=torch.int8, device="cpu")
        else:
            self._source = self._table = None
        self._states = self._now()

    @property
    def in_tiles(self) -> int:
        """The real positions of all rows if each is rounded up to a multiple of `TILE`; 0 if the host did not count them.

        It is kept as the size of a tensor: in a compiled graph FLASH refuses tables whose size comes from a Python number that
        changes, and takes those whose size comes from another tensor's (torch 2.11 to 2.13).
        """
        return 0 if self._in_tiles is None else self._in_tiles.shape[0]

    @property
    def counted_table(self) -> tuple[Tensor, int]:
        """The table whose count this is, and how often that had been written into; there is one if there is a total."""
        assert self._table is not None
        return self._table, self._states[-1][0]

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

    def _beside(self, table: Tensor) -> "HostCount":
        """The same of a copy of the table, without counting again."""
        new = HostCount()
        vars(new).update(vars(self), _table=table)
        new._states = new._now()
        return new

    def _now(self) -> list[tuple[int, int]]:
        """What a write into the tables changes, and what changes where another takes the place of one, by torch.utils.swap_tensors say."""
        tables = (self._source, self._table)
        return [(table._version, table.data_ptr()) for table in tables if table is not None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostCount)

    def __hash__(self) -> int:
        return hash(HostCount)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None or self._table is None or self.total is None:
            return HostCount, ()
        # shared they are where a DataLoader worker has put them to send them, before this; they are counted again on arrival
        same = self._states == self._now() or (self._source.is_shared() and self._table.is_shared())
        return (HostCount, (self._source, self._how, self._table)) if same else (HostCount, ())


def _counted(table: Tensor, how: str) -> tuple[int, int, int] | None:
    """The total, the longest, and the total in tiles, of a table that the host can read; None of another."""
    if how not in _REAL or table.device.type != "cpu" or table.is_inference() or not table.numel():
        return None
    lens = _REAL[how](table)
    tiles = torch.div(lens + TILE - 1, TILE, rounding_mode="floor")
    return int(lens.sum()), int(lens.max()) if how == "lengths" else table.shape[1], TILE * int(tiles.sum())


_REAL: dict[str, Callable[[Tensor], Tensor]] = {
    "lengths": lambda lens: lens.long(),  # lengths of int8 have no room for tiles
    "real": lambda flags: flags.count_nonzero(1),
    "padding": lambda flags: flags.shape[1] - flags.count_nonzero(1),
    "ids": lambda ids: (ids >= 0).count_nonzero(1),
}
"""How many positions of each row a table says are real: lengths (B,); flags (B, L) of real positions, or of padding; ids (B, L)."""


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
    return HostCount(lens, "lengths") if readable(lens) else not_counted()


def counted_flags(table: Tensor, *, real: bool) -> HostCount:
    """The count of flags (B, L), of which those that are ``real`` stand for real positions, where the host has their values."""
    return HostCount(table, "real" if real else "padding") if readable(table) else not_counted()


def counted_ids(ids: Tensor) -> HostCount:
    """The count of ids (B, L), of which negative ones stand for padding, where the host has their values."""
    return HostCount(ids, "ids") if ids.ndim > 1 and readable(ids) else not_counted()
