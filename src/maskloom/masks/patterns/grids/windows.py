"""Windows of cells around each query's cell: neighborhood attention, moved inwards or cut at the borders."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from maskloom.core.checks import per_axis
from maskloom.core.symbols import is_int, known
from maskloom.core.words import brief
from maskloom.masks.algebra import mask_dataclass
from maskloom.masks.patterns.grids.grid import Cell, GridMask, Number, Numbers, every, grid_shape

__all__ = ["neighbourhood", "grid_window"]


@mask_dataclass
class _Windowed(GridMask):
    """A window around each query, along each axis."""

    shape: Numbers
    window: Numbers
    dilation: Numbers
    stride: Numbers
    causal: tuple[bool, ...]
    moves: ClassVar[bool]  # whether the window is moved inwards at the borders; else it is cut

    def sees(self, q: Cell, kv: Cell) -> Tensor:
        axes = zip(q, kv, self.shape, self.window, self.dilation, self.stride, self.causal, strict=True)
        return every(self._near(*axis) for axis in axes)

    def __repr__(self) -> str:
        options = [
            f", {name}={getattr(self, name)}" for name in ("dilation", "stride") if not _ones(getattr(self, name))
        ]
        causal = f", causal={self.causal}" if any(self.causal) else ""
        return f"{self.name}({self.shape}, {self.window}{''.join(options)}{causal})"

    def _near(
        self, q: Tensor, kv: Tensor, size: Number, window: Number, dilation: Number, stride: Number, is_causal: bool
    ) -> Tensor:
        if not _ones((dilation,)):  # the cells with one remainder form a separate axis
            lane = q % dilation
            lane_size = (size - lane + (dilation - 1)) // dilation
            inside = self._near(q // dilation, kv // dilation, lane_size, window, 1, stride, is_causal)
            return (kv % dilation == lane) & inside
        if is_causal:
            last = q if _ones((stride,)) else _leader(q, stride, stride - 1).clamp(max=size - 1)
            return (kv > last - window) & (kv <= q)
        first = _leader(q, stride, stride // 2) - window // 2
        if self.moves:
            first = first.clamp(min=0).clamp(max=size - window)
        return (kv >= first) & (kv < first + window)


@mask_dataclass
class Neighbourhood(_Windowed):
    """See `neighbourhood`."""

    name, moves = "neighbourhood", True


@mask_dataclass
class GridWindow(_Windowed):
    """See `grid_window`."""

    name, moves = "grid_window", False


def neighbourhood(
    shape: Sequence[int],
    window: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
) -> Neighbourhood:
    """A cell sees the window around it, moved inwards at the borders: every query sees exactly ``prod(window)`` keys.

    What the cell Q sees of the grid::

        neighbourhood((3, 5), 3)    Q x x . .      x x x . .      . x Q x .      . . x x x
                                    x x x . .      Q x x . .      . x x x .      . . x x x
                                    x x x . .      x x x . .      . x x x .      . . x x Q

    With a stride the window moves in steps: the cells of a group of ``stride`` share the window of one of them::

        neighbourhood((9,), 5, stride=3)    Q x x x x . . . .    . . x x Q x x . .    . . . . x x x x Q

    Along a causal axis (such as time) a window ends at the cell itself, and is cut at the start of the axis::

        neighbourhood((3, 5), (2, 3), causal=(True, False))    x x x . .      . . . . .      . . x x Q
                                                               Q x x . .      . x x x .      . . . . .
                                                               . . . . .      . x Q x .      . . . . .

    Source: neighborhood attention, Hassani et al. 2023 (NATTEN); dilated, Hassani and Shi 2022; strided, Hassani et al.
    2025 (Generalized Neighborhood Attention). NATTEN's parameters have the same names, except ``kernel_size`` and
    ``is_causal``. `grid_window` cuts windows at the borders instead.

    Args:
        shape: cells along each axis: (rows, columns), (frames, rows, columns), or any other number of axes.
        window: cells seen along each axis, at most those of the axis; one int for all axes. An odd window has the query
            in its middle, an even one reaches one cell further back than ahead.
        dilation: distance between neighbouring cells of the window along each axis; one int for all. With dilation d, a
            cell sees only cells whose coordinates have the same remainder modulo d; ``window * dilation`` must fit the
            axis.
        stride: cells of a group along each axis, at most the window; one int for all. A group has the window of its
            middle cell (of two middle cells, the right one). Along a causal axis it has the window of its last cell,
            and each cell sees up to itself. With ``stride == window`` windows are blocks. With dilation, the cells of
            one remainder are counted.
        causal: for each axis, whether a cell sees no cell after its own; one bool for all.

    Raises:
        TypeError: not ints, not bools. ValueError: a number below 1, another number of axes, a stride above its window,
            or a window that does not fit.
    """
    sizes, windows, dilations, strides, is_causal = _windowed(shape, window, dilation, stride, causal)
    for axis, (size, width, step) in enumerate(zip(sizes, windows, dilations, strict=True)):
        if known(width * step > size):
            spread = f" with dilation {step}" if step > 1 else ""
            raise ValueError(f"a window of {width}{spread} does not fit axis {axis} of {size} cells")
    return Neighbourhood(sizes, windows, dilations, strides, is_causal)


def grid_window(
    shape: Sequence[int],
    window: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
) -> GridWindow:
    """A cell sees the window around it, cut at the borders: queries there see fewer keys.

    What the cell Q sees of the grid::

        grid_window((3, 5), 3)    Q x . . .      x x . . .      . x Q x .      . . . . .
                                  x x . . .      Q x . . .      . x x x .      . . . x x
                                  . . . . .      x x . . .      . . . . .      . . . x Q

    Blocked local attention, where each block of cells sees itself and a halo around it, is
    ``grid_window(shape, block + 2 * halo, stride=block)``::

        grid_window((8,), 4, stride=2)    Q x x . . . . .    . x x Q x . . .    . . . . . x x Q

    Source: Ramachandran et al. 2019 (stand-alone self-attention); a convolution with zero padding reads the same cells.
    With halos, Vaswani et al. 2021 (HaloNet). `neighbourhood` moves windows inwards at the borders instead.

    Args:
        shape: cells along each axis: (rows, columns), (frames, rows, columns), or any other number of axes.
        window: cells along each axis of a window that is not cut; one int for all axes. An odd window has the query in
            its middle, an even one reaches one cell further back than ahead.
        dilation: distance between neighbouring cells of the window along each axis; one int for all.
        stride, causal: as for `neighbourhood`.

    Raises:
        TypeError: not ints, not bools. ValueError: a number below 1, another number of axes, or a stride above its window.
    """
    return GridWindow(*_windowed(shape, window, dilation, stride, causal))


def _leader(q: Tensor, stride: Number, place: Number) -> Tensor:
    """The cell whose window a group of ``stride`` cells shares: the cell at ``place`` in the group."""
    return q if _ones((stride,)) else q // stride * stride + place


def _ones(numbers: Numbers) -> bool:
    """Whether all numbers are known to be 1: while torch traces a kernel, they may be tensors."""
    return all(is_int(number) and known(number == 1) for number in numbers)


_Ints = tuple[int, ...]


def _windowed(
    shape: Sequence[int],
    window: int | Sequence[int],
    dilation: int | Sequence[int],
    stride: int | Sequence[int],
    causal: bool | Sequence[bool],
) -> tuple[_Ints, _Ints, _Ints, _Ints, tuple[bool, ...]]:
    sizes = grid_shape(shape)
    windows, strides = per_axis("window", window, len(sizes)), per_axis("stride", stride, len(sizes))
    for axis, (width, step) in enumerate(zip(windows, strides, strict=True)):
        if known(step > width):
            raise ValueError(
                f"stride is at most the window; got {step} for a window of {width} cells along axis {axis}"
            )
    return (
        sizes,
        windows,
        per_axis("dilation", dilation, len(sizes)),
        strides,
        _flags_per_axis("causal", causal, len(sizes)),
    )


def _flags_per_axis(name: str, value: bool | Sequence[bool], axes: int) -> tuple[bool, ...]:
    flags = (value,) * axes if isinstance(value, bool) else value
    if not isinstance(flags, (list, tuple)) or not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(f"{name} is True or False, or one of them for each of the {axes} axes; got {brief(value)}")
    if len(flags) != axes:
        raise ValueError(f"{name} is True or False for each of the {axes} axes; got {brief(value)}")
    return tuple(flags)
