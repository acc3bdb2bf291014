"""The tiles of the whole mask: what each query tile costs, and which keys it needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.blocks.classify import classify
from maskloom.blocks.grid import Grid, Wanted, grid_of
from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.relative import Window
from maskloom.masks.simplify import simplify
from maskloom.program.mask_program import MaskProgram, program_of

_LARGEST, _FEWEST = 128, 16
_MOST_TILES = 1 << 22
_AT_ONCE = 1 << 24
"""Tiles of all rows and heads that are looked at together: more would take gigabytes."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of the whole mask.

    Attributes:
        unit: positions in a tile, of queries and of keys.
        batch: B that the mask's tables say; None where the mask is the same for every batch row and says none.
        counts: int64 (H or 1, query tiles), the key tiles that each visits, over all batch rows.
        needed: bool (query tiles, key tiles), whether any batch row and head visits it.
        marks: the indices that the mask's answer depends on.
        length: positions; the last tile may be cut by it.
        is_window: whether the mask is a window, which depends on distances alone.
    """

    length: int
    unit: int
    batch: int | None
    counts: Tensor
    needed: Tensor
    marks: frozenset[str]
    is_window: bool = False

    @property
    def number(self) -> int:
        """The number of query tiles."""
        return self.counts.shape[1]

    def positions_in(self, some: Sequence[int] | Tensor) -> int:
        """How many positions some tiles have, by their rising numbers, or by a bool for each."""
        count = int(some.sum()) if isinstance(some, Tensor) else len(some)
        has_last = bool(some[-1]) if isinstance(some, Tensor) else count > 0 and some[-1] == self.number - 1
        return count * self.unit - (self.number * self.unit - self.length if has_last else 0)


def tiles_of(
    mask: Mask, length: int, ranks: int, batch: int | None, heads: int, *, is_window: bool | None = None
) -> Tiles:
    """The tiles of a mask whose tensors are on the CPU.

    Args:
        is_window: of `Tiles`; by default what the mask says of itself.

    Raises:
        ValueError: B or H that do not fit the mask's tables, or have to be given; a table that is shorter than ``length``.
    """
    simple, dependence = simplify(mask), program_of(mask, "cpu").dependence
    program = program_of(simple, "cpu")
    sizes, marks = dependence.sizes_for(batch, heads, length, length), dependence.marks
    rows, columns = (size if index in marks else 1 for size, index in zip(sizes, "bh", strict=True))
    unit = _unit(length, ranks, rows * columns)
    grid = grid_of(dependence, Wanted(length, length, rows, columns, (unit, unit)))
    bands = [_counted(program, band) for band in grid.bands(_AT_ONCE)]
    counts, needed = torch.cat([band[0] for band in bands], 1), torch.cat([band[1] for band in bands])
    said = batch if batch is not None else sizes[0] if dependence.sizes["b"] else None
    is_window = isinstance(simple, Window) if is_window is None else is_window
    return Tiles(length, unit, said, counts, needed, frozenset(marks), is_window)


def _counted(program: MaskProgram, grid: Grid) -> tuple[Tensor, Tensor]:
    """``counts`` and ``needed`` of `Tiles`, for a band of query tiles."""
    visited = classify(program, grid, only_skipped=True) > 0
    visited = visited.expand(*grid.shape[:2], *visited.shape[2:])
    return visited.sum((0, 3)), visited.flatten(0, 1).any(0)


def _unit(length: int, ranks: int, tables: int) -> int:
    """Positions in a tile: 128; fewer where a rank would have less than 16 tiles, and more of very long sequences."""
    unit = _LARGEST
    while unit > 1 and -(-length // ranks) < unit * _FEWEST:
        unit //= 2
    while tables * (-(-length // unit)) ** 2 > _MOST_TILES and -(-length // ranks) >= 2 * unit * _FEWEST:
        unit *= 2
    return unit
