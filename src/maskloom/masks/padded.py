"""Masks that know which positions they hide, and helpers for padding tables and lengths."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.core.checks import is_zero, may_be_negative
from maskloom.core.host_count import HostCount
from maskloom.masks.algebra import Mask
from maskloom.masks.signed import Signed, read_from_zero

Position = int | Tensor
"""A position: an int, integers without dimensions, or (B,), one for each batch row."""


def positions_from(first: Position, length: int, device: torch.device) -> Tensor:
    """``length`` positions from ``first`` on: integers (length,), or (B, length) for ``first`` by batch row."""
    positions = torch.arange(length, device=device)
    return positions if is_zero(first) else positions + (first[..., None] if isinstance(first, Tensor) else first)


def outside(lens: Tensor, first: Position, length: int) -> Tensor:
    """Which of ``length`` positions lie beyond a length (B,), or before position 0: bool (B, length)."""
    positions = positions_from(first, length, lens.device)
    beyond_length = positions >= lens[:, None]
    return beyond_length | (positions < 0) if may_be_negative(first) else beyond_length


def pads_at(pads: Tensor, first: Position, length: int) -> Tensor:
    """Which of ``length`` positions are padding in a table (B or 1, L), or before 0: bool (B or 1, length)."""
    if not may_be_negative(first):
        return pads[:, first : first + length]
    positions = positions_from(first, length, pads.device)
    return entries_of(pads, positions.clamp(0, pads.shape[1] - 1)) | (positions < 0)


def entries_of(table: Tensor, at: Tensor) -> Tensor:
    """Entries of a table (B or 1, L) at positions (length,) for all batch rows, or (B, length) by row."""
    return table[:, at] if at.ndim == 1 else table.expand(len(at), -1).gather(1, at)


def ends(is_real: Tensor) -> Tensor:
    """The position after the last real one in each row of a bool table (B or 1, L): int64 (B or 1,)."""
    return (is_real * torch.arange(1, is_real.shape[1] + 1, device=is_real.device)).amax(1)


class CountedPadding(NamedTuple):
    """The padding of one side, queries or keys, and how much of it is real, as the host knows.

    Attributes:
        table: the lengths of the rows, integers (B,), with the padding behind them; or bool (B, L), True = padding.
    """

    table: Tensor
    counted: HostCount


class CountedSides(NamedTuple):
    """The counted padding of queries and of keys; None where the host has not counted it."""

    queries: CountedPadding | None
    keys: CountedPadding | None


NO_COUNTS = CountedSides(None, None)


def counted_sides(
    queries: Tensor,
    q_count: HostCount,
    keys: Tensor,
    kv_count: HostCount,
    *,
    pads_of: Callable[[Tensor], Tensor] | None = None,
) -> CountedSides:
    """The sides of a mask with these tables, as far as their counts hold. ``pads_of`` makes pads of tables that are none."""
    found = _counted(queries, q_count, pads_of)
    return CountedSides(found, found if queries is keys else _counted(keys, kv_count, pads_of))


def _counted(table: Tensor, count: HostCount, pads_of: Callable[[Tensor], Tensor] | None) -> CountedPadding | None:
    # dynamo sees no count of writes: what uses a count in a graph has to check it there
    holds = count.is_beside if torch.compiler.is_dynamo_compiling() else count.holds_for
    if count.total is None or not holds(table):
        return None
    return CountedPadding(table if pads_of is None else pads_of(table), count)


class PaddingMask(Mask):
    """A mask that hides certain keys from every query, and knows which keys these are."""

    @abstractmethod
    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        """Which of ``kv_len`` keys from position ``first`` on are hidden: bool (B or 1, KV).

        ``first`` is passed only for masks under `shifted`. Keys before position 0 are hidden.
        """

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor | None:
        """Which of ``q_len`` queries from ``first`` on are hidden as padding: bool (B or 1, Q); None if unknown."""
        return None

    def row_ends(self) -> Tensor | None:
        """The position after the last real one, query or key, in each row: integers (B or 1,); None if unknown."""
        return None

    def counted_sides(self) -> "CountedSides":
        """The padding among queries and among keys, where the host has counted it; one object if both have one table."""
        return NO_COUNTS

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return read_from_zero(self, b, h, q_idx, kv_idx, Signed(False, signed.kv))
