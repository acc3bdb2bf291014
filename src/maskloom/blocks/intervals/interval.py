"""Intervals: the range of values that a program value can take in a tile. For bools, three-valued truth.

A bool is an interval too, with False < True: ``lo`` says whether it must be True, ``hi`` whether it can be True.

The law of every function here: if the inputs of each element lie in the given intervals, its result lies in the
returned interval. An interval may be wider than necessary, never narrower.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

LEAD = 4
"""Tile dims before a value's event dims: batch rows, heads, query tiles, key tiles; size 1 where it does not vary."""

RANGES = {
    dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
}
_INT64 = RANGES[torch.int64]
ORDERED = frozenset({torch.bool, torch.float64, torch.float32, torch.float16, torch.bfloat16, *RANGES})
"""The dtypes that have intervals: torch has their minimum and maximum. Not complex, uint16 to uint64, float8."""


@dataclass(frozen=True)
class PositionRange:
    """A range of positions: tile t holds ``start + t * block`` to ``start + min((t + 1) * block, total) - 1``."""

    axis: int
    start: int
    block: int
    total: int

    @property
    def tiles(self) -> int:
        return -(-self.total // self.block)


@dataclass(frozen=True, eq=False)
class Interval:
    """All values between two ends, for every tile.

    Attributes:
        lo, hi: the ends, in the value's own dtype, tile dims + event dims. The same tensor object if the value is
            exact.
        nan: for float values that are not exact: where NaN is possible. The ends then describe the other values, and
            cross (lo = inf, hi = -inf) if there is no other value. None: NaN is not possible.
        span: ends that hold for all tiles and are known without reading a tensor; integers only.
        run: set if the values are the positions of a tile's queries or keys.
    """

    lo: Tensor
    hi: Tensor
    nan: Tensor | None = None
    span: tuple[int, int] | None = None
    run: PositionRange | None = None

    @classmethod
    def wrap(cls, value: Tensor, span: tuple[int, int] | None = None) -> "Interval":
        """An exact value: it is the same for all elements of a tile."""
        return cls(value, value, span=span)

    @property
    def is_singleton(self) -> bool:
        return self.lo is self.hi

    @property
    def dtype(self) -> torch.dtype:
        return self.lo.dtype

    @property
    def bounds(self) -> tuple[int, int]:
        """The ends for all tiles, as Python ints."""
        return self.span if self.span is not None else (0, 1) if self.dtype == torch.bool else RANGES[self.dtype]

    def over(self, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """The ends for the distinct tiles (B, H, query tiles, key tiles): an unknown value has size 1 in all dims."""
        lo, hi = (end[: shape[0], : shape[1]].expand(shape) for end in (self.lo, self.hi))
        return lo, hi

    def loose(self) -> "Interval":
        """The same interval with NaN stored in ``nan``, not in the ends."""
        if not (self.is_singleton and self.dtype.is_floating_point):
            return self
        nan = self.lo.isnan()
        return Interval(self.lo.masked_fill(nan, torch.inf), self.lo.masked_fill(nan, -torch.inf), nan)


def unknown(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> Interval | None:
    """A value that may be anything; None for dtypes that have no intervals."""
    if dtype not in ORDERED:
        return None
    shape = (1,) * LEAD + shape
    if dtype.is_floating_point:
        nan = torch.ones(shape, dtype=torch.bool, device=device)
        lo, hi = (torch.full(shape, end, dtype=dtype, device=device) for end in (-torch.inf, torch.inf))
        return Interval(lo, hi, nan)
    least, most = RANGES.get(dtype, (False, True))
    lo, hi = (torch.full(shape, end, dtype=dtype, device=device) for end in (least, most))
    return Interval(lo, hi)


def constant(tensor: Tensor, device: torch.device) -> Interval:
    """A tensor of the program, the same for all tiles."""
    return Interval.wrap(tensor.to(device).reshape(*(1,) * LEAD, *tensor.shape))


def anything(device: torch.device) -> Interval:
    """A bool that may be True or False in every tile."""
    ends = torch.tensor([False, True], device=device).view(2, *(1,) * LEAD)
    return truth(ends[0], ends[1])


def truth(must: Tensor, may: Tensor) -> Interval:
    """A bool that must be True where ``must``, and can be True where ``may``."""
    return Interval(must, may)


def to_float(lo: Tensor, hi: Tensor, nan: Tensor | None) -> Interval:
    """Float ends as computed; where an end is NaN (inf - inf, 0 · inf), the value may be anything."""
    lost = lo.isnan() | hi.isnan()
    nan = lost if nan is None else lost | nan
    return Interval(lo.masked_fill(lost, -torch.inf), hi.masked_fill(lost, torch.inf), nan)


def to_int(lo: Tensor, hi: Tensor, dtype: torch.dtype, span: tuple[int, int], rough: tuple[Tensor, Tensor]) -> Interval:
    """Integer ends that were computed in int64, for a result of ``dtype`` that may wrap around.

    Args:
        lo, hi: int64.
        span: ends for all tiles, computed without overflow.
        rough: the same ends computed in float64; used where int64 itself may have overflowed.
    """
    least, most = RANGES[dtype]
    if least <= span[0] and span[1] <= most:
        return Interval(lo.to(dtype), hi.to(dtype), span=span)
    if _INT64[0] <= span[0] and span[1] <= _INT64[1]:
        wraps = (lo < least) | (hi > most)
    else:
        wraps = (rough[0] < least * _NEARLY) | (rough[1] > most * _NEARLY)
    return Interval(lo.masked_fill(wraps, least).to(dtype), hi.masked_fill(wraps, most).to(dtype))


_NEARLY = 1 - 2.0**-40  # float64 rounds, so a value near the end of the range counts as beyond it


def cast(value: Interval, dtype: torch.dtype) -> Interval | None:
    """The interval of ``value.to(dtype)``; None if there is none."""
    if value.dtype == dtype:
        return value
    if value.is_singleton and dtype in ORDERED:
        return Interval.wrap(value.lo.to(dtype))
    if dtype == torch.bool:
        return _to_bool(value.loose())
    if dtype.is_floating_point:
        return _to_float(value, dtype)
    if dtype not in RANGES:
        return None
    return _float_to_int(value, dtype) if value.dtype.is_floating_point else _int_to_int(value, dtype)


def _to_bool(value: Interval) -> Interval:
    not_zero = (value.lo > 0) | (value.hi < 0)  # NaN is True as well
    zero = (value.lo == 0) & (value.hi == 0)
    return truth(not_zero, ~zero if value.nan is None else ~zero | value.nan)


def _to_float(value: Interval, dtype: torch.dtype) -> Interval:
    return Interval(value.lo.to(dtype), value.hi.to(dtype), value.nan)


def _int_to_int(value: Interval, dtype: torch.dtype) -> Interval:
    span, (least, most) = value.bounds, RANGES[dtype]
    if least <= span[0] and span[1] <= most:
        return dataclasses.replace(value, lo=value.lo.to(dtype), hi=value.hi.to(dtype), span=span)
    lo, hi = value.lo.long(), value.hi.long()
    wraps = (lo < least) | (hi > most)
    return Interval(lo.masked_fill(wraps, least).to(dtype), hi.masked_fill(wraps, most).to(dtype))


def _float_to_int(value: Interval, dtype: torch.dtype) -> Interval:
    least, most = RANGES[dtype]
    lo, hi = value.lo.double(), value.hi.double()
    inside = (lo > least * _NEARLY) & (hi < most * _NEARLY)
    inside = inside if value.nan is None else inside & ~value.nan
    lo, hi = lo.masked_fill(~inside, 0), hi.masked_fill(~inside, 0)
    return Interval(
        lo.to(torch.int64).masked_fill(~inside, least).to(dtype),
        hi.to(torch.int64).masked_fill(~inside, most).to(dtype),
    )
