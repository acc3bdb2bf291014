"""Masks of grids: each position is a cell of an image, a volume or a video.

Cells are numbered in row-major order, the last axis fastest, as ``tensor.flatten()`` numbers them: in a grid of shape
(2, 3) position 4 is the cell in row 1, column 1. A position before or behind the grid is no cell: it sees nothing and
nothing sees it. So other tokens can stand around the grid, and get their own masks by ``|`` and `shifted`.

`tiled` and `morton` are the same masks for tokens that lie in another order.
"""

import functools
import math
import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, SupportsIndex

from torch import Tensor

from maskloom.masks.algebra import Mask, mask_value
from maskloom.masks.checks import per_axis, positive
from maskloom.masks.tables import among_first

Cell = list[Tensor]
"""Where a position lies: its coordinate along each axis."""


class GridMask(Mask):
    """A mask of cells: a subclass answers from coordinates, and positions become coordinates here."""

    shape: tuple[int, ...]

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        seen = self.sees(coordinates(q_idx, self.shape), coordinates(kv_idx, self.shape))
        return seen & self.holds(q_idx) & self.holds(kv_idx)

    @abstractmethod
    def sees(self, q: Cell, kv: Cell) -> Tensor:
        """Whether the query's cell may attend to the key's: bool."""

    def holds(self, idx: Tensor) -> Tensor:
        """Whether a position is a cell of the grid: bool."""
        return among_first(idx, math.prod(self.shape))


@mask_value
class _Windowed(GridMask):
    """A window around each query, along each axis."""

    shape: tuple[int, ...]
    window: tuple[int, ...]
    dilation: tuple[int, ...]
    moves: ClassVar[bool]  # whether the window is moved at the borders, or cut

    def sees(self, q: Cell, kv: Cell) -> Tensor:
        axes = zip(q, kv, self.shape, self.window, self.dilation, strict=True)
        return every(self._near(*axis) for axis in axes)

    def __repr__(self) -> str:
        dilated = f", dilation={self.dilation}" if max(self.dilation) > 1 else ""
        return f"{self.name}({self.shape}, {self.window}{dilated})"

    def _near(self, q: Tensor, kv: Tensor, size: int | Tensor, window: int, dilation: int) -> Tensor:
        if dilation > 1:  # the cells of one remainder are an axis of their own
            lane = q % dilation
            lane_size = (size - lane + (dilation - 1)) // dilation
            return (kv % dilation == lane) & self._near(q // dilation, kv // dilation, lane_size, window, 1)
        first = q - window // 2
        if self.moves:
            first = first.clamp(min=0).clamp(max=size - window)
        return (kv >= first) & (kv < first + window)


@mask_value
class Neighbourhood(_Windowed):
    """See `neighbourhood`."""

    name, moves = "neighbourhood", True


@mask_value
class GridWindow(_Windowed):
    """See `grid_window`."""

    name, moves = "grid_window", False


def neighbourhood(
    shape: Sequence[int], window: int | Sequence[int], *, dilation: int | Sequence[int] = 1
) -> Neighbourhood:
    """A cell sees the window around it, moved inwards at the borders: every query sees exactly ``prod(window)`` keys.

    What the cell Q sees of the grid::

        neighbourhood((3, 5), 3)    Q x x . .      x x x . .      . x Q x .      . . x x x
                                    x x x . .      Q x x . .      . x x x .      . . x x x
                                    x x x . .      x x x . .      . x x x .      . . x x Q

    Source: neighborhood attention, Hassani et al. 2023 (NATTEN); dilated, Hassani and Shi 2022. `grid_window` is cut at
    the borders instead.

    Args:
        shape: cells along each axis: (rows, columns), (frames, rows, columns), or any other number of axes.
        window: cells seen along each axis, at most those of the axis; one int for all axes. An odd window has the query
            in its middle, an even one reaches one cell further back than ahead.
        dilation: distance between neighbouring cells of the window along each axis; one int for all. With d, a cell
            sees only cells whose coordinate divided by d leaves its own remainder; ``window * dilation`` fits the axis.

    Raises:
        TypeError: not ints. ValueError: a number below 1, another number of axes, or a window that does not fit.
    """
    sizes, windows, dilations = _windowed(shape, window, dilation)
    for axis, (size, width, step) in enumerate(zip(sizes, windows, dilations, strict=True)):
        if width * step > size:
            spread = f" with dilation {step}" if step > 1 else ""
            raise ValueError(f"a window of {width}{spread} does not fit axis {axis} of {size} cells")
    return Neighbourhood(sizes, windows, dilations)


def grid_window(shape: Sequence[int], window: int | Sequence[int], *, dilation: int | Sequence[int] = 1) -> GridWindow:
    """A cell sees the window around it, cut at the borders: queries there see fewer keys.

    What the cell Q sees of the grid::

        grid_window((3, 5), 3)    Q x . . .      x x . . .      . x Q x .      . . . . .
                                  x x . . .      Q x . . .      . x x x .      . . . x x
                                  . . . . .      x x . . .      . . . . .      . . . x Q

    Source: Ramachandran et al. 2019 (stand-alone self-attention); a convolution with zero padding looks at the same
    cells. `neighbourhood` is moved inwards at the borders instead.

    Args:
        shape: cells along each axis: (rows, columns), (frames, rows, columns), or any other number of axes.
        window: cells along each axis of a window that is not cut; one int for all axes. An odd window has the query in
            its middle, an even one reaches one cell further back than ahead.
        dilation: distance between neighbouring cells of the window along each axis; one int for all.

    Raises:
        TypeError: not ints. ValueError: a number below 1, or another number of axes.
    """
    return GridWindow(*_windowed(shape, window, dilation))


@mask_value
class Axial(GridMask):
    """See `axial`."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def sees(self, q: Cell, kv: Cell) -> Tensor:
        return every(q[axis] == kv[axis] for axis in range(len(self.shape)) if axis not in self.axes)

    def __repr__(self) -> str:
        return f"axial({self.shape}, axis={self.axes[0] if len(self.axes) == 1 else self.axes})"


def axial(shape: Sequence[int], axis: int | Sequence[int]) -> Axial:
    """A cell sees the cells along an axis: those that have all other coordinates in common with it.

    What the cell Q sees of the grid::

        axial((3, 4), axis=1)   . . . .        axial((3, 4), axis=0)   . x . .
        its row                 x Q x x        its column              . Q . .
                                . . . .                                . x . .

    In a video of (frames, rows, columns) ``axis=(1, 2)`` is the cell's own frame, and ``axis=0`` its place in all
    frames.

    Source: axial attention, Ho et al. 2019; frames and places, Bertasius et al. 2021 (TimeSformer, divided attention).

    Args:
        shape: cells along each axis.
        axis: the axis to look along, or several, not all; negative counts from the last.

    Raises:
        TypeError: not ints. ValueError: an axis that the grid does not have or that comes twice, or all of them.
    """
    sizes = grid_shape(shape)
    given = [axis] if isinstance(axis, SupportsIndex) else list(axis)
    axes = tuple(sorted(_axis(one, len(sizes)) for one in given))
    if len(set(axes)) < len(axes) or not 0 < len(axes) < len(sizes):
        raise ValueError(f"axis names some axes of {sizes}, each once, and not all; got {axis}")
    return Axial(sizes, axes)


@mask_value
class ShiftedWindows(GridMask):
    """See `shifted_windows`."""

    shape: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    name = "shifted_windows"

    def sees(self, q: Cell, kv: Cell) -> Tensor:
        axes = zip(q, kv, self.window, self.shift, strict=True)
        return every((q + (w - s)) // w == (kv + (w - s)) // w for q, kv, w, s in axes)


def shifted_windows(
    shape: Sequence[int], window: int | Sequence[int], shift: int | Sequence[int] = 0
) -> ShiftedWindows:
    """The grid is partitioned into windows, and a cell sees those of its own window.

    Windows of 2 × 2 cells, named by letters; a cell sees its own letter::

        shifted_windows((4, 4), 2)   a a b b        shifted_windows((4, 4), 2, shift=1)   a b b c
                                     a a b b                                              d e e f
                                     c c d d                                              d e e f
                                     c c d d                                              g h h i

    Swin rolls the grid by ``-shift``, cuts it into windows, and masks the parts of a window that were no neighbours
    before. What remains visible are windows that begin at ``shift``, and their remains along the borders: this mask, on
    the grid as it was before rolling.

    Source: Liu et al. 2021 (Swin Transformer), section 3.2; three axes, Liu et al. 2022 (Video Swin).

    Args:
        shape: cells along each axis.
        window: cells of a window along each axis; one int for all axes. Windows at the end of an axis that they do not
            divide are cut.
        shift: how far the windows are shifted along each axis, less than the window; Swin alternates 0 and half
            the window.

    Raises:
        TypeError: not ints. ValueError: a window below 1, a shift that is negative or not below the window.
    """
    sizes = grid_shape(shape)
    windows, shifts = per_axis("window", window, len(sizes)), per_axis("shift", shift, len(sizes), least=0)
    for width, distance in zip(windows, shifts, strict=True):
        if distance >= width:
            raise ValueError(f"shift is less than the window; got a shift of {distance} and a window of {width} cells")
    return ShiftedWindows(sizes, windows, shifts)


def coordinates(idx: Tensor, shape: tuple[int, ...]) -> Cell:
    """The cell at a position, row-major. Along the first axis it lies outside the grid if the position does."""
    reversed_cell = []
    for size in reversed(shape[1:]):
        reversed_cell.append(idx % size)
        idx = idx // size
    return [idx, *reversed(reversed_cell)]


def every(answers: Iterable[Tensor]) -> Tensor:
    """Whether it is so along every axis."""
    return functools.reduce(operator.and_, answers)


def grid_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Cells along each axis: a tuple of ints, at least 1 each."""
    if isinstance(shape, SupportsIndex) or len(shape) == 0:
        raise ValueError(f"shape has the number of cells along each axis, (rows, columns) say; got {shape!r}")
    return tuple(positive("shape", size) for size in shape)


def _windowed(
    shape: Sequence[int], window: int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    sizes = grid_shape(shape)
    return sizes, per_axis("window", window, len(sizes)), per_axis("dilation", dilation, len(sizes))


def _axis(axis: SupportsIndex, axes: int) -> int:
    number = operator.index(axis)
    if not -axes <= number < axes:
        raise ValueError(f"axis is one of the {axes} axes of the grid, 0 to {axes - 1}; got {number}")
    return number % axes
