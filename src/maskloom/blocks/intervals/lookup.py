"""Index a captured table by intervals: the smallest and largest entries that the indices can reach.

An index that is the position range of a tile reads the block-wise minimum and maximum of the table, at the number of
the tile. Any other interval is covered by two overlapping blocks whose length is a power of two (a sparse table: Bender
and Farach-Colton, "The LCA Problem Revisited", 2000, section 3). Both ways turn a read by an interval into exact reads
of a reduced table.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import LEAD, ORDERED, Interval, PositionRange
from maskloom.core.forks import ends_along
from maskloom.program.batched import batched_index

_MOST_ENTRIES = 1 << 24  # maximum size of a sparse table; for a larger one the whole dim is used as the interval


@dataclass(frozen=True)
class _Read:
    """Tables of the smallest and largest entries, and the exact indices to read them at, one tuple per read."""

    least: Tensor
    most: Tensor
    nan: Tensor | None
    reads: tuple[tuple[Tensor | None, ...], ...]

    def over(self, dim: int, least: Tensor, most: Tensor, nan: Tensor | None, *new: Tensor) -> "_Read":
        reads = [(*read[:dim], index, *read[dim + 1 :]) for read in self.reads for index in new]
        return _Read(least, most, nan, tuple(reads))


def look_up(table: Interval, indices: list[Interval | None]) -> Interval | None:
    """``table[i, j, ...]``; None for an index of bool or uint8, or if many entries are read of a dtype without order.

    Ends outside the table are clamped into it: an element that really read there would raise in torch.

    Raises:
        ValueError: positions, or positions plus a number, reach beyond the table.
    """
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return None
    if table.dtype not in ORDERED and not all(index is None or index.is_singleton for index in indices):
        return None
    own = table.lo.ndim - LEAD
    indices = [*indices, *[None] * (own - len(indices))]
    sizes = table.lo.shape[LEAD:]
    inside = [None if i is None else _inside(i, size) for i, size in zip(indices, sizes, strict=True)]
    if _counted_off(table, inside):
        return _read_in_order(table, inside)
    if table.is_singleton and all(index is None or index.is_singleton for index in inside):
        out = batched_index(table.lo, [None if index is None else index.lo for index in inside], LEAD)
        return None if out is None else Interval.wrap(out)
    loose = table.loose()
    read = _Read(loose.lo, loose.hi, loose.nan, (tuple(None if i is None else i.lo for i in inside),))
    for dim, index in enumerate(inside):
        if index is not None and not index.is_singleton:
            read = _at_interval(read, dim, index)
    return _gathered(read)


def _counted_off(table: Interval, indices: list[Interval | None]) -> bool:
    """Whether every index is a position range along a tile axis of its own: then nothing has to be gathered."""
    given = [(index, size) for index, size in zip(indices, table.lo.shape[LEAD:], strict=True) if index is not None]
    runs = [index.run for index, size in given if index.run is not None and index.run.start + index.run.total <= size]
    axes = {run.axis for run in runs}
    return len(axes) == len(given) and all(table.lo.shape[axis] == 1 for axis in axes)


def _read_in_order(table: Interval, indices: list[Interval | None]) -> Interval:
    """Such a read without a gather: block-wise minimum and maximum, with the event dims moved to the tile dims."""
    runs = [(LEAD + dim, index.run) for dim, index in enumerate(indices) if index is not None and index.run is not None]

    def moved(part: Tensor) -> Tensor:
        for dim, run in runs:
            part = part.transpose(run.axis, dim)
        return part.squeeze([dim for dim, _ in runs])

    exact = table.is_singleton and all(run.block == 1 for _, run in runs)
    table = table if exact else table.loose()
    least, most, nan = table.lo, table.hi, table.nan
    for dim, run in runs:
        least, most = _block_ends(least, most, dim, run)
        nan = None if nan is None else _block_ends(nan, nan, dim, run)[1]
    lo = moved(least)
    return Interval(lo, lo if exact else moved(most), None if nan is None else moved(nan))


def _gathered(read: _Read) -> Interval | None:
    least = [batched_index(read.least, list(indices), LEAD) for indices in read.reads]
    most = [batched_index(read.most, list(indices), LEAD) for indices in read.reads]
    lows, highs = [t for t in least if t is not None], [t for t in most if t is not None]
    if not lows:
        return None
    lo, hi = functools.reduce(torch.minimum, lows), functools.reduce(torch.maximum, highs)
    if read.nan is None:
        return Interval(lo, hi)
    nans = [batched_index(read.nan, list(indices), LEAD) for indices in read.reads]
    return Interval(lo, hi, functools.reduce(torch.logical_or, [t for t in nans if t is not None]))


def _inside(index: Interval, size: int) -> Interval:
    """The index with negative ends wrapped around, and clamped into the table."""
    least, most = index.bounds
    if index.run is not None and not index.is_singleton and most >= size:  # it has all positions between its ends
        raise ValueError(f"the mask reads position {most} of a table with {size} positions")
    if least >= 0 and most < size:
        return index
    if index.is_singleton:  # torch itself wraps it around, or raises
        return index
    lo, hi = index.lo, index.hi
    if least < 0:
        crosses = (lo < 0) & (hi >= 0)
        lo, hi = _wrapped(lo, size).masked_fill(crosses, 0), _wrapped(hi, size).masked_fill(crosses, size - 1)
    return Interval(lo.clamp(0, size - 1), hi.clamp(0, size - 1), span=(0, size - 1))


def _wrapped(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, index + size, index)


def _at_interval(read: _Read, dim: int, index: Interval) -> _Read:
    size = read.least.shape[LEAD + dim]
    if index.run is not None and index.run.start + index.run.total <= size:
        return _at_run(read, dim, index.run)
    entries = max(read.least.numel(), read.most.numel()) * size.bit_length()
    return _at_any(read, dim) if entries > _MOST_ENTRIES else _at_powers(read, dim, index)


def _at_run(read: _Read, dim: int, run: PositionRange) -> _Read:
    axis = LEAD + dim
    least, most = _block_ends(read.least, read.most, axis, run)
    nan = None if read.nan is None else _block_ends(read.nan, read.nan, axis, run)[1]
    tile = torch.arange(run.tiles, device=least.device)
    return read.over(dim, least, most, nan, tile.view(*(-1 if d == run.axis else 1 for d in range(LEAD))))


def _block_ends(least: Tensor, most: Tensor, axis: int, run: PositionRange) -> tuple[Tensor, Tensor]:
    """The minimum of one table and the maximum of another over each block of the range; the last block may be shorter."""
    if run.block == 1:
        low = least.narrow(axis, run.start, run.total)
        return low, low if least is most else most.narrow(axis, run.start, run.total)
    if least is most:
        found = [ends_along(part, axis + 1) for part in _blocks(least, axis, run)]
    else:
        parts = zip(_blocks(least, axis, run), _blocks(most, axis, run), strict=True)
        found = [(low.amin(axis + 1), high.amax(axis + 1)) for low, high in parts]
    low, high = (ends[0] if len(ends) == 1 else torch.cat(ends, axis) for ends in zip(*found, strict=True))
    return low, high


def _blocks(table: Tensor, axis: int, run: PositionRange) -> list[Tensor]:
    """The whole blocks of the range, and the rest as a separate block, as dims ``axis`` and ``axis + 1``."""
    whole, rest = divmod(run.total, run.block)
    parts = []
    if whole:
        parts.append(table.narrow(axis, run.start, whole * run.block).unflatten(axis, (whole, run.block)))
    if rest:
        parts.append(table.narrow(axis, run.start + whole * run.block, rest).unsqueeze(axis))
    return parts


def _at_any(read: _Read, dim: int) -> _Read:
    axis = LEAD + dim
    least, most = read.least.amin(axis, keepdim=True), read.most.amax(axis, keepdim=True)
    nan = None if read.nan is None else read.nan.amax(axis, keepdim=True)
    return read.over(dim, least, most, nan, torch.zeros((1,) * LEAD, dtype=torch.int64, device=least.device))


def _at_powers(read: _Read, dim: int, index: Interval) -> _Read:
    """Level k of the sparse table holds the ends of ``[i, i + 2^k)``. The levels are flattened into ``dim``, level first."""
    axis, size = LEAD + dim, read.least.shape[LEAD + dim]
    least, most = _sparse_table(read.least, axis, torch.minimum), _sparse_table(read.most, axis, torch.maximum)
    nan = None if read.nan is None else _sparse_table(read.nan, axis, torch.logical_or)
    lo, hi = index.lo.long(), index.hi.long()
    level = torch.frexp((hi - lo + 1).clamp(min=1).double()).exponent.long() - 1
    last = hi - torch.bitwise_left_shift(torch.ones_like(level), level) + 1
    return read.over(dim, least, most, nan, level * size + lo, level * size + last.clamp(min=0))


def _sparse_table(table: Tensor, axis: int, combine: Callable[..., Tensor]) -> Tensor:
    levels = [table]
    size = table.shape[axis]
    for level in range(size.bit_length() - 1):
        below, step = levels[-1], 1 << level
        count = size - step
        joined = combine(below.narrow(axis, 0, count), below.narrow(axis, step, count))
        levels.append(torch.cat([joined, below.narrow(axis, count, step)], axis))  # the tail is never read
    return torch.cat(levels, axis)
