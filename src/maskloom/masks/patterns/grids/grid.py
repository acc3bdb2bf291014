"""Masks of grids: each position is a cell of an image, a volume or a video.

Cells are numbered in row-major order, the last axis fastest, as in ``tensor.flatten()``: in a grid of shape (2, 3)
position 4 is the cell in row 1, column 1. A position before or after the grid is not a cell: it sees nothing, and
nothing sees it. So other tokens can come before or after the grid, and get their own masks by ``|`` and `shifted`.

`tiled` and `morton` are the same masks for tokens in another order. Windows around each cell are in `windows`.
"""

import functools
import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor

from maskloom.core.checks import as_list, integer, per_axis, positive
from maskloom.core.symbols import known
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, mask_dataclass
from maskloom.masks.lookups import among_first

__all__ = ["axial", "shifted_windows"]

Cell = list[Tensor]
"""A cell: its coordinate along each axis."""

Number = int | Tensor
Numbers = tuple[Number, ...]
"""A number for each axis: an int, or while a kernel is traced also a tensor."""


class GridMask(Mask):
    """A mask of cells: it turns positions into coordinates, and a subclass answers for coordinates."""

    shape: Numbers

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        seen = self.sees(coordinates(q_idx, self.shape), coordinates(kv_idx, self.shape))
        return seen & self.holds(q_idx) & self.holds(kv_idx)

    @abstractmethod
    def sees(self, q: Cell, kv: Cell) -> Tensor:
        """Whether the query's cell may attend to the key's cell: bool."""

    def holds(self, idx: Tensor) -> Tensor:
        """Whether a position is a cell of the grid: bool."""
        return among_first(idx, product(self.shape))


@mask_dataclass
class Axial(GridMask):
    """See `axial`."""

    shape: Numbers
    axes: tuple[int, ...]

    def sees(self, q: Cell, kv: Cell) -> Tensor:
        return every(q[axis] == kv[axis] for axis in range(len(self.shape)) if axis not in self.axes)

    def __repr__(self) -> str:
        return f"axial({self.shape}, axis={self.axes[0] if len(self.axes) == 1 else self.axes})"


def axial(shape: Sequence[int], axis: int | Sequence[int]) -> Axial:
    """A cell sees the cells along an axis: those with the same coordinates on all other axes.

    What the cell Q sees of the grid::

        axial((3, 4), axis=1)   . . . .        axial((3, 4), axis=0)   . x . .
        its row                 x Q x x        its column              . Q . .
                                . . . .                                . x . .

    In a video of (frames, rows, columns) ``axis=(1, 2)`` is the cell's own frame, and ``axis=0`` is the same place in
    all frames.

    Source: axial attention, Ho et al. 2019; frames and places, Bertasius et al. 2021 (TimeSformer, divided attention).

    Args:
        shape: cells along each axis.
        axis: the axis to look along, or several axes, but not all; negative counts from the last.

    Raises:
        TypeError: not ints. ValueError: an axis that the grid does not have, an axis given twice, or all axes.
    """
    sizes = grid_shape(shape)
    given = list(axis) if isinstance(axis := as_list(axis), Sequence) else [axis]
    axes = tuple(sorted(_axis(one, len(sizes)) for one in given))
    if len(set(axes)) < len(axes) or not 0 < len(axes) < len(sizes):
        raise ValueError(f"axis names some axes of {sizes}, each once, and not all; got {axis}")
    return Axial(sizes, axes)


@mask_dataclass
class ShiftedWindows(GridMask):
    """See `shifted_windows`."""

    shape: Numbers
    window: Numbers
    shift: Numbers
    name = "shifted_windows"

    def sees(self, q: Cell, kv: Cell) -> Tensor:
        axes = zip(q, kv, self.window, self.shift, strict=True)
        return every((q + (w - s)) // w == (kv + (w - s)) // w for q, kv, w, s in axes)


def shifted_windows(
    shape: Sequence[int], window: int | Sequence[int], shift: int | Sequence[int] = 0
) -> ShiftedWindows:
    """The grid is partitioned into windows, and a cell sees the cells of its own window.

    Windows of 2 × 2 cells, named by letters; a cell sees its own letter::

        shifted_windows((4, 4), 2)   a a b b        shifted_windows((4, 4), 2, shift=1)   a b b c
                                     a a b b                                              d e e f
                                     c c d d                                              d e e f
                                     c c d d                                              g h h i

    Swin rolls the grid by ``-shift``, cuts it into windows, and masks the parts of a window that were not neighbours
    before. What remains visible are windows that start at ``shift``, and smaller ones along the borders: this is that
    mask, on the grid before rolling.

    If a window covers an axis, a shift makes no sense, and their code does not shift: Swin shifts no axis if
    ``min(shape) <= window``, and then uses windows of ``min(shape)`` cells along each axis; Video Swin decides for each
    axis. Pass a shift of 0 then: here every axis is shifted by the given number.

    Source: Liu et al. 2021 (Swin Transformer), section 3.2; three axes, Liu et al. 2022 (Video Swin).

    Args:
        shape: cells along each axis.
        window: cells of a window along each axis; one int for all axes. If the windows do not divide an axis, the
            windows at its end are smaller.
        shift: how far the windows are shifted along each axis, less than the window; Swin alternates between 0 and half
            the window.

    Raises:
        TypeError: not ints. ValueError: a window below 1, a shift that is negative or not below the window.
    """
    sizes = grid_shape(shape)
    windows, shifts = per_axis("window", window, len(sizes)), per_axis("shift", shift, len(sizes), least=0)
    for width, distance in zip(windows, shifts, strict=True):
        if known(distance >= width):
            raise ValueError(f"shift is less than the window; got a shift of {distance} and a window of {width} cells")
    return ShiftedWindows(sizes, windows, shifts)


def coordinates(idx: Tensor, shape: Numbers) -> Cell:
    """The cell at a position, row-major. If the position is outside the grid, so is the cell's first coordinate."""
    reversed_cell = []
    for size in reversed(shape[1:]):
        reversed_cell.append(idx % size)
        idx = idx // size
    return [idx, *reversed(reversed_cell)]


def product(numbers: Numbers) -> int | Tensor:
    """The product of all numbers."""
    return functools.reduce(operator.mul, numbers)


def every(answers: Iterable[Tensor]) -> Tensor:
    """Whether all answers are True, one for each axis."""
    return functools.reduce(operator.and_, answers)


def grid_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The number of cells along each axis: a tuple of ints, each at least 1."""
    cells = as_list(shape)
    if not isinstance(cells, Sequence) or isinstance(cells, str) or len(cells) == 0:
        raise ValueError(f"shape has the number of cells along each axis, (rows, columns) say; got {brief(shape)}")
    return tuple(positive("shape", size) for size in cells)


def _axis(axis: int, axes: int) -> int:
    number = integer("axis", axis, "an axis of the grid")
    if not -axes <= number < axes:
        raise ValueError(f"axis is one of the {axes} axes of the grid, 0 to {axes - 1}; got {number}")
    return number % axes
