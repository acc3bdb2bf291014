"""Reading a captured table at an interval: the least and the greatest entry that the indices can reach.

An index that is a tile's own run of positions reads the block-wise least and greatest entries of the table, at the
tile's number. Any other interval is covered by two overlapping powers of two (a sparse table: Bender and Farach-Colton,
"The LCA Problem Revisited", 2000, section 3). Either way the interval read becomes exact reads of a reduced table.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.blocks.interval import LEAD, Interval, Run
from maskloom.blocks.lifted import looked_up

_MOST_ENTRIES = 1 << 24  # of a sparse table; a larger one is not made, and the interval taken to be the whole dim


@dataclass(frozen=True)
class _Read:
    """Tables of the least and the greatest entries, and the exact indices, one list per read, that reach them."""

    least: Tensor
    most: Tensor
    nan: Tensor | None
    reads: tuple[tuple[Tensor | None, ...], ...]

    def over(self, dim: int, least: Tensor, most: Tensor, nan: Tensor | None, *new: Tensor) -> "_Read":
        reads = [(*read[:dim], index, *read[dim + 1 :]) for read in self.reads for index in new]
        return _Read(least, most, nan, tuple(reads))


def look_up(table: Interval, indices: list[Interval | None]) -> Interval | None:
    """``table[i, j, ...]``; None if an index is no integer index.

    Out-of-range ends are moved into the table: an element that truly read there would raise in torch.

    Raises:
        ValueError: positions themselves, or positions plus a number, that run past the table.
    """
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return None
    own = table.lo.ndim - LEAD
    indices = [*indices, *[None] * (own - len(indices))]
    sizes = table.lo.shape[LEAD:]
    inside = [None if i is None else _inside(i, size) for i, size in zip(indices, sizes, strict=True)]
    if table.exact and all(index is None or index.exact for index in inside):
        out = looked_up(table.lo, [None if index is None else index.lo for index in inside], LEAD)
        return None if out is None else Interval.exactly(out)
    loose = table.loose()
    read = _Read(loose.lo, loose.hi, loose.nan, (tuple(None if i is None else i.lo for i in inside),))
    for dim, index in enumerate(inside):
        if index is not None and not index.exact:
            read = _at_interval(read, dim, index)
    return _gathered(read)


def _gathered(read: _Read) -> Interval | None:
    least = [looked_up(read.least, list(indices), LEAD) for indices in read.reads]
    most = [looked_up(read.most, list(indices), LEAD) for indices in read.reads]
    lows, highs = [t for t in least if t is not None], [t for t in most if t is not None]
    if not lows:
        return None
    lo, hi = functools.reduce(torch.minimum, lows), functools.reduce(torch.maximum, highs)
    if read.nan is None:
        return Interval(lo, hi)
    nans = [looked_up(read.nan, list(indices), LEAD) for indices in read.reads]
    return Interval(lo, hi, functools.reduce(torch.logical_or, [t for t in nans if t is not None]))


def _inside(index: Interval, size: int) -> Interval:
    """The index with negative ends counted from the table's end, and held inside the table."""
    least, most = index.bounds
    if index.run is not None and most >= size:  # a run holds every position between its ends
        raise ValueError(f"the mask reads position {most} of a table with {size} positions")
    if least >= 0 and most < size:
        return index
    if index.exact:  # torch wraps it around itself, or raises
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


def _at_run(read: _Read, dim: int, run: Run) -> _Read:
    axis = LEAD + dim
    least = _block_ends(read.least, axis, run, torch.amin)
    most = _block_ends(read.most, axis, run, torch.amax)
    nan = None if read.nan is None else _block_ends(read.nan, axis, run, torch.amax)
    tile = torch.arange(run.tiles, device=least.device)
    return read.over(dim, least, most, nan, tile.view(*(-1 if d == run.axis else 1 for d in range(LEAD))))


def _block_ends(table: Tensor, axis: int, run: Run, end: Callable[..., Tensor]) -> Tensor:
    """amin or amax over each block of the run; the last block may be shorter."""
    whole = run.total // run.block
    parts = []
    if whole:
        blocks = table.narrow(axis, run.start, whole * run.block).unflatten(axis, (whole, run.block))
        parts.append(end(blocks, axis + 1))
    if run.total % run.block:
        rest = table.narrow(axis, run.start + whole * run.block, run.total % run.block)
        parts.append(end(rest, axis, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _at_any(read: _Read, dim: int) -> _Read:
    axis = LEAD + dim
    least, most = read.least.amin(axis, keepdim=True), read.most.amax(axis, keepdim=True)
    nan = None if read.nan is None else read.nan.amax(axis, keepdim=True)
    return read.over(dim, least, most, nan, torch.zeros((1,) * LEAD, dtype=torch.int64, device=least.device))


def _at_powers(read: _Read, dim: int, index: Interval) -> _Read:
    """Level k of the sparse table holds the ends of ``[i, i + 2^k)``; it is stacked before ``dim``, flattened into it."""
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
