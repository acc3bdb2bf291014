"""Grid masks for tokens that are not in row-major order.

Tiles of a block mask are runs of 128 positions. In row-major order such a run is a strip of the grid; in these orders
it is compact, so windows touch fewer tiles. The tokens must be permuted into the order, and positions are numbered in
it.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from maskloom.core.checks import per_axis
from maskloom.core.symbols import is_dynamic, known
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, mask_dataclass
from maskloom.masks.patterns.grids.grid import Cell, GridMask, Numbers, coordinates, grid_shape, product
from maskloom.masks.patterns.grids.windows import Neighbourhood, neighbourhood

__all__ = ["tiled", "morton", "grid_tiles"]


class _InOrder(Mask):
    """A grid mask with its own map from positions to cells."""

    mask: GridMask

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        seen = self.mask.sees(self._cell(q_idx), self._cell(kv_idx))
        return seen & self.mask.holds(q_idx) & self.mask.holds(kv_idx)

    @abstractmethod
    def _cell(self, idx: Tensor) -> Cell:
        """The cell at a position."""


@mask_dataclass
class Tiled(_InOrder):
    """See `tiled`."""

    mask: GridMask
    tile: Numbers
    name = "tiled"

    def _cell(self, idx: Tensor) -> Cell:
        cells = product(self.tile)
        corners = coordinates(idx // cells, _tiles(self.mask.shape, self.tile))
        places = coordinates(idx % cells, self.tile)
        return [corner * size + place for corner, size, place in zip(corners, self.tile, places, strict=True)]


def tiled(mask: GridMask, tile: int | Sequence[int]) -> Tiled:
    """A grid mask for tokens in tile order: all tokens of the first tile, then all of the second, and so on.

    The position of each cell of the grid::

        tiled(axial((4, 6), axis=0), (2, 2))    0  1  4  5  8  9
                                                2  3  6  7 10 11
                                               12 13 16 17 20 21
                                               14 15 18 19 22 23

    Tiles, and the cells in a tile, are in row-major order. ``tiled(neighbourhood(shape, window), tile)`` is
    neighborhood attention with static tiling.

    Args:
        mask: a grid mask of this package, such as `neighbourhood` or `axial`.
        tile: cells of a tile along each axis, a divisor of the axis; one int for all axes.

    Raises:
        TypeError: not a grid mask. ValueError: a tile that does not divide the grid.
    """
    grid = _grid_mask("tiled", mask)
    return Tiled(grid, _checked_tile(_ints(grid.shape), tile))


@mask_dataclass
class Morton(_InOrder):
    """See `morton`."""

    mask: GridMask
    cells: Tensor

    def __repr__(self) -> str:
        return f"morton({self.mask!r})"

    def _cell(self, idx: Tensor) -> Cell:
        inside = idx.clamp(0, self.cells.shape[1] - 1)
        return [self.cells[axis, inside] for axis in range(self.cells.shape[0])]


def morton(mask: GridMask) -> Morton:
    """A grid mask for tokens in Morton order (Z order): cells sorted by the interleaved bits of their coordinates.

    The position of each cell of the grid::

        morton(axial((4, 4), axis=0))    0  1  4  5        morton(axial((3, 5), axis=0))    0  1  4  5 12
                                         2  3  6  7                                         2  3  6  7 13
                                         8  9 12 13                                         8  9 10 11 14
                                        10 11 14 15

    The last axis has the lowest bit. If the sides of the grid are not powers of two, the cells keep that order, without
    gaps. The mask holds a table of the coordinates of each position, int32 (axes, cells); ``.to(device)`` moves it.

    Source: Morton 1966; combined with neighborhood attention in attention-gym.

    Args:
        mask: a grid mask of this package, such as `neighbourhood` or `axial`.

    Raises:
        TypeError: not a grid mask.
    """
    grid = _grid_mask("morton", mask)
    return Morton(grid, _in_morton_order(_ints(grid.shape)))


@mask_dataclass
class GridTiles(Mask):
    """See `grid_tiles`."""

    tile: Numbers
    tiles: Neighbourhood

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        cells = product(self.tile)
        return self.tiles.__call__(b, h, q_idx // cells, kv_idx // cells)

    def __repr__(self) -> str:
        shape = tuple(tiles * side for tiles, side in zip(self.tiles.shape, self.tile, strict=True))
        return f"grid_tiles({shape}, {self.tile}, {self.tiles.window})"


def grid_tiles(shape: Sequence[int], tile: int | Sequence[int], window: int | Sequence[int]) -> GridTiles:
    """Sliding tile attention: a cell sees whole tiles: those in the window around its own tile.

    Tokens are in tile order, as in `tiled`. The window is moved inwards at the borders, as in `neighbourhood`, so every
    query sees ``prod(window)`` tiles. What the cells of tile Q see, for a grid of 2 × 5 tiles::

        grid_tiles((4, 10), 2, (1, 3))    Q x x . .      . x Q x .      . . . . .
                                          . . . . .      . . . . .      . . x x Q

    If a tile has as many cells as a tile of the block mask has positions (128), no tile is partial.

    Source: Zhang et al. 2025 (Sliding Tile Attention). There the window is given in cells, here in tiles.

    Args:
        shape: cells along each axis.
        tile: cells of a tile along each axis, a divisor of the axis; one int for all axes.
        window: number of tiles seen along each axis, at most those of the axis; one int for all axes. An odd window has
            the query's tile in its middle, an even one reaches one tile further back than ahead.

    Raises:
        TypeError: not ints. ValueError: a tile that does not divide the grid, a window that does not fit.
    """
    sizes = grid_shape(shape)
    sides = _checked_tile(sizes, tile)
    return GridTiles(sides, neighbourhood(_ints(_tiles(sizes, sides)), window))


def _tiles(shape: Numbers, tile: Numbers) -> Numbers:
    return tuple(size // side for size, side in zip(shape, tile, strict=True))


def _checked_tile(shape: tuple[int, ...], tile: int | Sequence[int]) -> tuple[int, ...]:
    sides = per_axis("tile", tile, len(shape))
    if any(known(size % side != 0) for size, side in zip(shape, sides, strict=True)):
        raise ValueError(f"a tile divides the grid along each axis; got tiles of {sides} in a grid of {shape}")
    return sides


def _ints(shape: Numbers) -> tuple[int, ...]:
    """The numbers as ints: they are tensors only while a kernel is traced."""
    return cast("tuple[int, ...]", shape)


def _grid_mask(name: str, mask: GridMask) -> GridMask:
    if not isinstance(mask, GridMask):
        raise TypeError(
            f"{name} takes one mask that is made from a grid's shape, such as neighbourhood or axial, and combinations "
            f"are combined behind it: {name}(a) & {name}(b); got {brief(mask)}"
        )
    return mask


def _in_morton_order(shape: tuple[int, ...]) -> Tensor:
    """The coordinates of each position: int32 (axes, cells)."""
    cells = torch.stack(coordinates(torch.arange(math.prod(shape)), shape))
    codes = torch.zeros_like(cells[0])
    # if a trace does not know the shape, as many bits as a code has room for
    bits = 62 // len(shape) if any(map(is_dynamic, shape)) else max(shape).bit_length()
    for bit in range(bits):
        for axis, along in enumerate(cells.flip(0)):  # the last axis has the lowest bit
            codes |= ((along >> bit) & 1) << (bit * len(shape) + axis)
    return cells[:, codes.argsort()].to(torch.int32)
