"""How many positions a table of padding leaves real, counted by the host when a mask is made of the table."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from maskloom.core.captures import Remark, moved
from maskloom.core.checks import readable


class HostCount(Remark):
    """A count, beside the table that it was made of; it says nothing that the table does not, so all counts are equal.

    Each table has its own, an empty one if the host did not count it. A mask keeps it when its tables move to a device, where the host would have to wait for their values. A write into the table
    that was counted, or into one that was moved, makes it void (`holds_for`).

    Attributes:
        total: the real positions of all batch rows; None if the host did not count them.
        longest: the real positions of the longest row, or the length of a table of flags.
    """

    total: int | None
    longest: int

    def __init__(self, source: Tensor | None = None, total: int | None = None, longest: int = 0) -> None:
        self._source, self.total, self.longest = source, total, longest
        self._state = None if source is None else _state_of(source)

    def holds_for(self, table: Tensor) -> bool:
        """Whether this is known to be the count of a table: the one that was counted or a copy, with no write into either."""
        source = self._source
        if self.total is None or source is None or _state_of(source) != self._state or table.is_inference():
            return False
        return table is source or table._version == 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostCount)

    def __hash__(self) -> int:
        return hash(HostCount)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None or _state_of(self._source) != self._state:
            return HostCount, ()
        return HostCount, (self._source, self.total, self.longest)


def _state_of(table: Tensor) -> tuple[int, int]:
    """What a write into a table changes, and what changes where another takes its place (``torch.utils.swap_tensors``)."""
    return table._version, table.data_ptr()


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
    return HostCount(lens, int(lens.sum()), int(lens.max()))


def counted_flags(table: Tensor, *, real: bool) -> HostCount:
    """The count of flags (B, L), of which those that are ``real`` stand for real positions, where the host has their values."""
    if not readable(table) or table.is_inference():
        return not_counted()
    marked = int(table.count_nonzero())
    return HostCount(table, marked if real else table.numel() - marked, table.shape[1])


def counted_ids(ids: Tensor) -> HostCount:
    """The count of ids (B, L), of which negative ones stand for padding, where the host has their values."""
    if ids.ndim == 1 or not readable(ids) or ids.is_inference():
        return not_counted()
    return HostCount(ids, int((ids >= 0).count_nonzero()), ids.shape[1])
