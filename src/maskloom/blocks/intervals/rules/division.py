"""Rules of quotients, remainders and shifts."""

import functools
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import RANGES, Interval, to_float, to_int
from maskloom.blocks.intervals.rules.operands import (
    anything_where,
    bounds_of,
    computed,
    dtype_of,
    ends_of,
    extremes,
    hi_of,
    in_dtype,
    lo_of,
    nan_from,
    operands,
    remainder_of_number,
    tensor_ends,
)

_aten = torch.ops.aten


def quotient(op: Any, left: Any, right: Any, *, rounding_mode: str | None = None) -> Interval | None:
    """True division, and division rounded down or towards 0."""
    values = operands(left, right, to_float=rounding_mode is None)
    if values is None or dtype_of(values) == torch.bool:
        return None
    if dtype_of(values).is_floating_point:
        return _float_quotient(op, values, rounding_mode)
    return _int_quotient(values, rounding_mode or "floor")


def floor_quotient(op: Any, left: Any, right: Any) -> Interval | None:
    """Python's //."""
    return quotient(_aten.div, left, right, rounding_mode="floor")


def _float_quotient(op: Any, values: list[Any], rounding_mode: str | None) -> Interval | None:
    if rounding_mode == "floor":
        return None  # torch corrects a floored float quotient by a remainder, so it may not be monotone
    divide = functools.partial(torch.div, rounding_mode=rounding_mode)
    right = values[1]
    ends = extremes([divide(a, b) for a in tensor_ends(values[0], right) for b in ends_of(right)])
    out = to_float(*ends, nan_from(values))
    if not isinstance(right, Interval):
        return out if right != 0 else None
    return _lost(out, (right.lo <= 0) & (right.hi >= 0))


def _lost(value: Interval, where: Tensor) -> Interval:
    nan = where if value.nan is None else value.nan | where
    return Interval(value.lo.masked_fill(where, -torch.inf), value.hi.masked_fill(where, torch.inf), nan)


def _int_quotient(values: list[Any], rounding_mode: str) -> Interval | None:
    """By corners: a quotient is monotone in each operand as long as the divisor keeps its sign."""
    left, right = values
    if not isinstance(right, Interval):
        return None if right == 0 else divided(values, rounding_mode, None)
    least, most = right.bounds
    zero = None if least > 0 or most < 0 else (right.lo <= 0) & (right.hi >= 0)
    if zero is not None:
        right = Interval(right.lo.masked_fill(zero, 1), right.hi.masked_fill(zero, 1))
    return divided([left, right], rounding_mode, zero)


def divided(values: list[Any], rounding_mode: str, zero: Tensor | None) -> Interval:
    """An integer quotient by a divisor without 0; anything where ``zero``."""
    dtype = dtype_of(values)
    lowest = RANGES[torch.int64][0]  # lowest / -1 overflows: a hardware trap
    numerators = [end.clamp(min=lowest + 1) for end in in_dtype(tensor_ends(values[0], values[1]), torch.int64)]
    divisors = in_dtype(ends_of(values[1]), torch.int64)
    lo, hi = extremes([torch.div(a, b, rounding_mode=rounding_mode) for a in numerators for b in divisors])
    reach = min(max(map(abs, bounds_of(values[0]))), -lowest - 1)
    out = to_int(lo, hi, dtype, (-reach, reach), (lo, hi))
    if dtype == torch.int64 and isinstance(values[0], Interval) and values[0].bounds[0] == lowest:
        trap = values[0].lo == lowest
        zero = trap if zero is None else zero | trap
    return out if zero is None else anything_where(out, zero)


def remainder(op: Any, left: Any, right: Any) -> Interval | None:
    """Python's % for integers: exact if a tile lies between two multiples of a constant divisor."""
    values = operands(left, right)
    if values is None or dtype_of(values) not in RANGES:
        return None
    if isinstance(values[1], Interval):
        return _remainder_of_any(*values)
    if values[1] <= 0:
        return None
    return remainder_of_number(values[0], values[1])


def _remainder_of_any(value: Any, divisor: Interval) -> Interval:
    """Between 0 and the divisor, which is excluded; the dividend itself if it is smaller."""
    lo, hi = divisor.lo.long(), divisor.hi.long()
    below, above = (hi - 1).clamp(min=0), (lo + 1).clamp(max=0)
    stays = (lo_of(value) >= 0) & (hi_of(value) < lo)
    out_lo = torch.where(stays, lo_of(value), above)
    out_hi = torch.where(stays, hi_of(value), below)
    out = Interval(out_lo.to(divisor.dtype), out_hi.to(divisor.dtype))
    return anything_where(out, (lo <= 0) & (hi >= 0))


def shift_left(op: Any, value: Any, places: Any) -> Interval | None:
    """Left shift: a product with a power of two."""
    values = operands(value, places)
    if values is None or isinstance(values[1], Interval) or not isinstance(values[0], Interval):
        return None
    if values[0].dtype not in RANGES or not 0 <= values[1] < _bits(values[0].dtype):
        return None
    return computed(values[:1], lambda los, his: (los[0] * 2 ** values[1], his[0] * 2 ** values[1]))


def shift_right(op: Any, value: Any, places: Any) -> Interval | None:
    """Right shift: a quotient by a power of two, rounded down."""
    values = operands(value, places)
    if values is None or isinstance(values[1], Interval) or not isinstance(values[0], Interval):
        return None
    if values[0].dtype not in RANGES or not 0 <= values[1] < _bits(values[0].dtype):
        return None
    return divided([values[0], 2 ** values[1]], "floor", None)


def _bits(dtype: torch.dtype) -> int:
    return torch.iinfo(dtype).bits - 1
