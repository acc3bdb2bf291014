"""What is visible in the cells of a page: measured here, for batch rows and heads, and for each operand."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskloom.masks.algebra import Mask
from maskloom.show.explorer.stored import stored
from maskloom.show.measure.selection import Members
from maskloom.show.measure.shares import COUNTED, at, cells_of, shares_of
from maskloom.show.measure.source import Cells, OfBlockMask, Source, source_of
from maskloom.show.measure.tiles import states_in_tables

if TYPE_CHECKING:
    from maskloom.show.explorer.subject import Subject

_LEVELS = 15  # shares from nothing, 0, to everything, 15
_MOST_CELLS = 1 << 21  # of all batch rows and heads together
_SIDE, _SIDE_OF_SHORT = 1024, 256
_SHORT = 1 << 22  # pairs that the browser evaluates quickly


@dataclass(frozen=True)
class Grids:
    """Grids of numbers, each distinct one once.

    Attributes:
        grids: uint8 (rows, columns).
        which: for each batch row of the page, and each head, the number of its grid.
    """

    grids: list[Tensor]
    which: list[list[int]]

    def stored(self) -> dict[str, Any]:
        """As the page reads it: one grid after another."""
        return {"numbers": stored(torch.stack(self.grids)), "count": len(self.grids), "which": self.which}


def cells_for(subject: "Subject", *, runs: bool) -> Cells:
    """The cells of a page. Of a short mask that the page runs itself they are a first sight only."""
    source = subject.source
    short = runs and source.q_len * source.kv_len <= _SHORT
    most = math.isqrt(_MOST_CELLS // (len(subject.rows) * len(subject.heads)))
    side = min(_SIDE_OF_SHORT if short else _SIDE, most)
    block = _size(source.q_len, subject.block[0], side), _size(source.kv_len, subject.block[1], side)
    return cells_of(range(source.q_len), range(source.kv_len), block)


def _size(length: int, tile: int, most: int) -> int:
    """Positions of a cell, so few as there are few enough cells: a tile, or 2, 4, 8, ... tiles, or equal parts of one."""
    size = min(tile, 1 << (length - 1).bit_length()) if tile & (tile - 1) == 0 else tile
    while -(-length // size) > most:
        size *= 2
    while size % 2 == 0 and -(-2 * length // size) <= most:
        size //= 2
    return size


def shares_for(subject: "Subject", cells: Cells) -> tuple[Grids, bool]:
    """The shares of the whole mask, and whether all of them are exact."""
    exact = True
    counted = max(COUNTED // 8, 4 * COUNTED // (len(subject.rows) * len(subject.heads)))

    def levels(row: int, head: int) -> Tensor:
        nonlocal exact
        found = shares_of(subject.source, at(cells, row, head), min(counted, COUNTED))
        exact &= found.is_exact
        some = (found.share * _LEVELS).round().clamp(1, _LEVELS - 1)
        whole = found.share * _LEVELS
        return torch.where((found.share > 0) & (found.share < 1), some, whole).to(torch.uint8)

    return _of_members(subject, subject.source, levels), exact


def states_for(subject: "Subject", mask: Mask, cells: Cells) -> Grids:
    """The states of one operand at first sight: certain where they are SKIPPED or FULL."""
    source = source_of(mask, subject.source.q_len, subject.source.kv_len)
    return _of_members(subject, source, lambda row, head: source.states(at(cells, row, head)).to(torch.uint8))


def tables_for(subject: "Subject", cells: Cells) -> Grids | None:
    """The tiles that the tables of a BlockMask say, or cells of several; None for other masks."""
    source = subject.source
    if not isinstance(source, OfBlockMask):
        return None
    sides = max(cells.q_block, subject.block[0]), max(cells.kv_block, subject.block[1])
    tiles = cells_of(range(source.q_len), range(source.kv_len), sides)
    return _of_members(
        subject, source, lambda row, head: states_in_tables(source, at(tiles, row, head)).to(torch.uint8)
    )


def _of_members(subject: "Subject", source: Source, grid: Any) -> Grids:
    """A grid for each batch row and head of the page, computed once where they do not vary."""
    found: dict[bytes, int] = {}
    grids: list[Tensor] = []
    known: dict[tuple[int, int], int] = {}

    def number(row: int, head: int) -> int:
        key = _one(source.batch, row), _one(source.heads, head)
        if key not in known:
            made = grid(*key).contiguous()
            known[key] = found.setdefault(made.numpy().tobytes(), len(grids))
            if known[key] == len(grids):
                grids.append(made)
        return known[key]

    which = [[number(row, head) for head in subject.heads] for row in subject.rows]
    return Grids(grids, which)


def _one(members: Members, index: int) -> int:
    return index if members.varies else 0
