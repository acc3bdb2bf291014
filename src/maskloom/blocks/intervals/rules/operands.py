"""Helpers of the rules: operands promoted as in torch, ends, and results that may wrap around or become NaN."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import LEAD, RANGES, Interval, cast, to_float, to_int
from maskloom.program.batched import common_dtype, padded

Rule = Callable[..., Interval | None]

Pair = tuple[Any, Any]


def operands(*values: Any, to_float: bool = False, wide: bool = False) -> list[Any] | None:
    """Operands promoted as in torch, with aligned event dims; Python numbers stay. None if a cast has no interval."""
    intervals = [value for value in values if isinstance(value, Interval)]
    numbers = [value for value in values if not isinstance(value, Interval)]
    dtype = common_dtype([interval.lo for interval in intervals], LEAD, *numbers, wide=wide)
    if to_float and not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    if dtype in RANGES and any(not RANGES[dtype][0] <= number <= RANGES[dtype][1] for number in numbers):
        return None  # torch would wrap such a number around
    casts = [cast(interval, dtype) for interval in intervals]
    if any(interval is None for interval in casts):
        return None
    ready = iter(align([interval.loose() for interval in casts if interval is not None]))
    return [next(ready) if isinstance(value, Interval) else value for value in values]


def align(intervals: list[Interval]) -> list[Interval]:
    """The intervals with event dims of size 1 put in front, so that all have equal rank."""
    if len({interval.lo.ndim for interval in intervals}) == 1:
        return intervals
    rank = max(interval.lo.ndim for interval in intervals)
    return [
        Interval(
            padded(interval.lo, rank, LEAD),
            padded(interval.hi, rank, LEAD),
            None if interval.nan is None else padded(interval.nan, rank, LEAD),
            interval.span,
        )
        for interval in intervals
    ]


def nan_of(*values: Any) -> Tensor | None:
    """Where NaN is possible in any of them; None if nowhere."""
    nans = [value.nan for value in values if isinstance(value, Interval) and value.nan is not None]
    return functools.reduce(torch.logical_or, nans) if nans else None


def lo_of(value: Any) -> Any:
    """The lower end; a number itself."""
    return value.lo if isinstance(value, Interval) else value


def hi_of(value: Any) -> Any:
    """The upper end; a number itself."""
    return value.hi if isinstance(value, Interval) else value


def ends_of(value: Any) -> list[Any]:
    """The distinct ends: one for an exact value."""
    if not isinstance(value, Interval):
        return [value]
    return [value.lo] if value.is_singleton else [value.lo, value.hi]


def bounds_of(value: Any) -> tuple[int, int]:
    """The ends for all tiles, as Python ints."""
    return value.bounds if isinstance(value, Interval) else (int(value), int(value))


def dtype_of(values: list[Any]) -> torch.dtype:
    """The common dtype of the operands."""
    return next(value.dtype for value in values if isinstance(value, Interval))


def as_interval(value: Any, like: Interval) -> Interval:
    """A number as an exact interval, with the dtype and rank of ``like``."""
    if isinstance(value, Interval):
        return value
    tensor = torch.full((1,) * like.lo.ndim, value, dtype=like.dtype, device=like.lo.device)
    if like.dtype.is_floating_point:
        return Interval.wrap(tensor).loose()
    return Interval.wrap(tensor, span=(int(value), int(value)))


def tensor_ends(value: Any, like: Interval | Any) -> list[Any]:
    """`ends_of`, with a number as a tensor like ``like``."""
    if isinstance(value, Interval):
        return ends_of(value)
    return [torch.full((1,) * like.lo.ndim, value, dtype=like.dtype, device=like.lo.device)]


def in_dtype(values: list[Any], dtype: torch.dtype) -> list[Any]:
    """The tensors cast to a dtype; numbers stay."""
    return [value.to(dtype) if isinstance(value, Tensor) else value for value in values]


def computed(values: list[Any], ends: Callable[[list[Any], list[Any]], Pair]) -> Interval:
    """An interval from a function that computes the ends of a result from the ends of its inputs.

    The function runs on tensors. For integers it also runs on Python ints (the bounds for all tiles), so that most
    results need no check for overflow.
    """
    los, his = [lo_of(value) for value in values], [hi_of(value) for value in values]
    dtype = dtype_of(values)
    if dtype.is_floating_point:
        return to_float(*ends(los, his), nan_from(values))
    los, his = in_dtype(los, torch.int64), in_dtype(his, torch.int64)
    span = ends([bounds_of(value)[0] for value in values], [bounds_of(value)[1] for value in values])
    lo, hi = ends(los, his)
    overflows = not (RANGES[torch.int64][0] <= span[0] and span[1] <= RANGES[torch.int64][1])
    rough = ends(in_dtype(los, torch.float64), in_dtype(his, torch.float64)) if overflows else (lo, hi)
    return to_int(lo, hi, dtype, span, rough)


def nan_from(values: list[Any]) -> Tensor | None:
    """Where an input may be NaN, and where infinite ends could meet (inf - inf, 0 · inf) and give NaN."""
    infinite = [end.isinf() for value in values if isinstance(value, Interval) for end in ends_of(value)]
    nan = functools.reduce(torch.logical_or, infinite)
    if any(not isinstance(value, Interval) and not math.isfinite(value) for value in values):
        nan = torch.ones_like(nan)
    given = nan_of(*values)
    return nan if given is None else nan | given


def extremes(candidates: list[Any]) -> Pair:
    """The smallest and the largest of the candidates, which are tensors or numbers."""
    if any(isinstance(candidate, Tensor) for candidate in candidates):
        return functools.reduce(torch.minimum, candidates), functools.reduce(torch.maximum, candidates)
    return min(candidates), max(candidates)


def anything_where(value: Interval, where: Tensor) -> Interval:
    """The interval, widened to the full range of its integer dtype where ``where``."""
    least, most = RANGES[value.dtype]
    return Interval(value.lo.masked_fill(where, least), value.hi.masked_fill(where, most))


def remainder_of_number(value: Interval, divisor: int) -> Interval:
    """The remainder by a positive number."""
    lo, hi = value.lo, value.hi
    if divisor == 1:
        return Interval.wrap(torch.zeros_like(lo), span=(0, 0))
    crosses = torch.div(lo, divisor, rounding_mode="floor") != torch.div(hi, divisor, rounding_mode="floor")
    return Interval(
        (lo % divisor).masked_fill(crosses, 0), (hi % divisor).masked_fill(crosses, divisor - 1), span=(0, divisor - 1)
    )
