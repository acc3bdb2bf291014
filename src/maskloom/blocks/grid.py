"""The grid of tiles of a BlockMask, the indices in them, and checks of the arguments."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import LEAD, Interval, PositionRange
from maskloom.core.checks import MOST_POSITIONS, as_int, as_list, checked_length, is_beyond_all
from maskloom.core.symbols import ceil_div, is_int, known
from maskloom.core.words import brief
from maskloom.program.dependence import Dependence
from maskloom.program.program import Index


@dataclass(frozen=True)
class Grid:
    """The grid of tiles of a BlockMask.

    Attributes:
        batch, heads: B and H of the tables.
        q_len, kv_len: Q and K, in positions.
        q_block, kv_block: positions in a tile.
        q_offset, kv_offset: the position of the first query and of the first key.
    """

    batch: int
    heads: int
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    q_offset: int | Tensor = 0
    kv_offset: int | Tensor = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, query tiles, key tiles)."""
        return self.batch, self.heads, ceil_div(self.q_len, self.q_block), ceil_div(self.kv_len, self.kv_block)

    @property
    def tile(self) -> tuple[int, int]:
        """Elements of the largest tile along Q and K: a tile is never longer than the sequence."""
        return min(self.q_block, self.q_len), min(self.kv_block, self.kv_len)

    @property
    def is_cut(self) -> bool:
        """Whether a sequence ends inside a tile."""
        return bool(self.q_len % self.q_block or self.kv_len % self.kv_block)

    def bands(self, most: int) -> Iterator["Grid"]:
        """The grid split into bands of query tiles; each has at most ``most`` tiles, but at least one row."""
        batch, heads, rows, columns = self.shape
        step = self.q_block * min(rows, max(1, most // max(1, batch * heads * columns)))
        if step >= self.q_len:
            yield self
            return
        for first in range(0, self.q_len, step):
            q_len = min(step, self.q_len - first)
            yield dataclasses.replace(self, q_len=q_len, q_offset=self.q_offset + first)

    def distinct(self, marks: frozenset[Index]) -> tuple[int, int, int, int]:
        """The shape of its distinct tiles: batch rows, or heads, that have the same answers count once."""
        batch, heads, rows, columns = self.shape
        return batch if "b" in marks else 1, heads if "h" in marks else 1, rows, columns

    def whole_tiles(self, device: torch.device) -> Tensor | None:
        """The tiles without positions beyond the end, where nothing is visible: bool (query tiles, key tiles). None: all."""
        if not self.is_cut:
            return None
        queries, keys = (torch.arange(size, device=device) for size in self.shape[2:])
        return (queries < self.q_len // self.q_block)[:, None] & (keys < self.kv_len // self.kv_block)

    def indices(self, device: torch.device) -> list[Interval]:
        """The inputs of the mask_mod: b and h as exact values, q_idx and kv_idx as intervals."""
        exact = [_counted(size, axis, device) for axis, size in enumerate(self.shape[:2])]
        queries = _positions(2, self.q_len, self.q_block, self.q_offset, device)
        keys = _positions(3, self.kv_len, self.kv_block, self.kv_offset, device)
        return [*exact, queries, keys]


def _counted(size: int, axis: int, device: torch.device) -> Interval:
    numbers = torch.arange(size, device=device).view(*(-1 if dim == axis else 1 for dim in range(LEAD)))
    return Interval(numbers, numbers, span=(0, size - 1), run=PositionRange(axis, 0, 1, size))


def _positions(axis: int, length: int, block: int, offset: int | Tensor, device: torch.device) -> Interval:
    shape = [-1 if dim == axis else 1 for dim in range(LEAD)]
    first = torch.arange(0, length, block, device=device).view(shape)
    last = torch.arange(block - 1, length + block - 1, block, device=device).view(shape)
    if length % block:
        last = last.clamp(max=length - 1)
    if isinstance(offset, Tensor):
        return Interval(first + offset, last + offset)
    if offset:
        first, last = first + offset, last + offset
    run = PositionRange(axis, offset, block, length) if offset >= 0 else None
    return Interval(first, last, span=(offset, offset + length - 1), run=run)


class Wanted(NamedTuple):
    """What a block mask is asked for: Q and K in positions, B and H or None, the block size (Q, KV), and first positions.

    ``shared``: B or H of None asks for one table for all, and not for the smallest size that the mask needs.
    """

    q_len: int
    kv_len: int
    batch: int | None
    heads: int | None
    block: tuple[int, int]
    q_offset: int | Tensor = 0
    kv_offset: int | Tensor = 0
    shared: bool = False

    @property
    def is_of_ints(self) -> bool:
        """Whether B and H are ints or None: others, which are equal to ints (True, 2.0), are refused at each call."""
        return all(size is None or type(size) is int for size in (self.batch, self.heads))


def checked_sizes(q_len: int, kv_len: int, block_size: int | tuple[int, int]) -> tuple[int, int]:
    """The block size as a pair (Q, KV).

    Raises:
        ValueError: a length or a block size below 1.
    """
    checked_length("q_len", q_len)
    checked_length("kv_len", kv_len)
    return checked_block_size(block_size)


def checked_block_size(block_size: int | tuple[int, int]) -> tuple[int, int]:
    """The block size as a pair (Q, KV), or a ValueError."""
    block_size = as_list(as_int(block_size))
    given = (block_size, block_size) if is_int(block_size) else block_size
    pair = tuple(map(as_int, given)) if isinstance(given, (tuple, list)) else ()
    if len(pair) != 2 or any(not is_int(size) or known(size < 1) for size in pair):
        raise ValueError(
            f"the block size is a number of positions, at least 1, or a pair (Q, KV); got {brief(block_size)}"
        )
    if any(map(is_beyond_all, pair)):
        raise ValueError(f"the block size is at most {MOST_POSITIONS} positions; got {brief(block_size)}")
    return pair


def grid_of(dependence: Dependence, wanted: Wanted) -> Grid:
    """The grid of tiles to classify, with B and H checked or inferred.

    Raises:
        ValueError: the sizes do not fit the tables that the mask reads.
    """
    if wanted.shared:
        dependence.refuse_shared(wanted.batch, wanted.heads)
    q_end = wanted.q_len + (wanted.q_offset if is_int(wanted.q_offset) else 0)
    kv_end = wanted.kv_len + (wanted.kv_offset if is_int(wanted.kv_offset) else 0)
    batch, heads = dependence.sizes_for(wanted.batch, wanted.heads, q_end, kv_end)
    return Grid(batch, heads, wanted.q_len, wanted.kv_len, *wanted.block, wanted.q_offset, wanted.kv_offset)
