"""Rules of ``where``, casts, reductions over event dims, operations on shapes, and indexing."""

import math
from typing import Any

import torch

from maskloom.blocks.intervals.interval import LEAD, RANGES, Interval, cast, to_float
from maskloom.blocks.intervals.lookup import look_up
from maskloom.blocks.intervals.rules.operands import Rule, align, as_interval, nan_of, operands
from maskloom.program.batched import batched, common_dtype

_aten = torch.ops.aten


def chosen_by_condition(op: Any, condition: Interval, left: Any, right: Any) -> Interval | None:
    """``where``: the hull of both sides where the condition may be either."""
    if not isinstance(left, Interval) and not isinstance(right, Interval):
        return _where_numbers(condition, left, right)
    values = operands(left, right)
    if values is None:
        return None
    like = next(value for value in values if isinstance(value, Interval))
    condition, left, right = align([condition, *(as_interval(value, like) for value in values)])
    lo = torch.where(condition.lo, left.lo, torch.where(condition.hi, torch.minimum(left.lo, right.lo), right.lo))
    hi = torch.where(condition.lo, left.hi, torch.where(condition.hi, torch.maximum(left.hi, right.hi), right.hi))
    if like.dtype in RANGES:
        least, most = zip(left.bounds, right.bounds, strict=True)
        return Interval(lo, hi, span=(min(least), max(most)))
    nan = nan_of(left, right)
    return Interval(lo, hi, None if nan is None else nan.expand(lo.shape))


def _where_numbers(condition: Interval, left: Any, right: Any) -> Interval | None:
    dtype = torch.result_type(left, right)
    if (isinstance(left, float) and math.isnan(left)) or (isinstance(right, float) and math.isnan(right)):
        return None
    always = [torch.where(truth_value, left, right).to(dtype) for truth_value in (condition.lo, condition.hi)]
    low, high = always if left >= right else always[::-1]  # True chooses left
    return Interval(low, high)


def to_copy(op: Any, value: Interval, *, dtype: torch.dtype | None = None, **_: Any) -> Interval | None:
    """``.to``: a cast."""
    return value if dtype is None else cast(value, dtype)


def identity(op: Any, value: Interval, **_: Any) -> Interval:
    """The value itself."""
    return value


def by_ends(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Interval | None:
    """Monotone operations with exact rounding: floor, ceil, round, trunc, sqrt."""
    value = value.loose()
    if not value.dtype.is_floating_point and value.dtype not in RANGES:
        return None
    lo, hi = (op(end, *args, **kwargs) for end in (value.lo, value.hi))
    return to_float(lo, hi, value.nan) if lo.dtype.is_floating_point else Interval(lo, hi)


def root(op: Any, value: Interval) -> Interval | None:
    """The square root of floats. For integers torch casts first, which has no rule here."""
    return by_ends(op, value) if value.dtype.is_floating_point else None


def any_or_all(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Interval | None:
    """``any`` and ``all`` over event dims."""
    flags = cast(value, torch.bool)
    return None if flags is None else each_end(op, flags, *args, **kwargs)


def extreme(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Any:
    """``amin`` and ``amax``."""
    value = value.loose()
    out = each_end(op, value, *args, **kwargs)
    if out is None or value.nan is None:
        return out
    nan = batched(_aten.any.dims if args else _aten.any.default, [value.nan, *args], kwargs, LEAD)
    return Interval(out.lo, out.hi, nan)


def extreme_or(of_two: Rule) -> Rule:
    """``min`` and ``max``, by the rule for two tensors."""

    def rule(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Any:
        if not args:
            return extreme(op, value, **kwargs)
        return of_two(op, value, args[0]) if isinstance(args[0], Interval) else None  # it returns indices too: no rule

    return rule


def total(op: Any, value: Interval, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Interval | None:
    """The sum of integers or bools. The order and so the rounding of a float sum is unknown: no rule."""
    if value.dtype.is_floating_point or kwargs.get("dtype") not in (None, torch.int64) or (dim is None and keepdim):
        return None
    reach = max(map(abs, value.bounds)) * math.prod(value.lo.shape[LEAD:])
    if reach > RANGES[torch.int64][1]:
        return None
    options = [] if dim is None else [dim, keepdim]
    ends = [batched(op, [end.long(), *options], {}, LEAD) for end in (value.lo, value.hi)]
    return None if ends[0] is None else Interval(ends[0], ends[1], span=(-reach, reach))


def each_end(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Any:
    """A reduction of the lower ends, and of the upper ends."""
    ends = [batched(op, [end, *args], kwargs, LEAD) for end in (value.lo, value.hi)]
    return None if ends[0] is None or ends[1] is None else Interval(ends[0], ends[1])


def reshaped(op: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Shape operations, also on a list of values: the same operation on each end."""
    values = value if isinstance(value, list) else [value]
    dtype = common_dtype([item.lo for item in values], LEAD)
    casts = [cast(item, dtype) for item in values]
    if any(item is None for item in casts):
        return None
    loose = [item.loose() for item in casts if item is not None]
    parts = [[item.lo for item in loose], [item.hi for item in loose]]
    if any(item.nan is not None for item in loose):
        parts.append([torch.zeros_like(item.lo, dtype=torch.bool) if item.nan is None else item.nan for item in loose])
    outs = [batched(op, [part if isinstance(value, list) else part[0], *args], kwargs, LEAD) for part in parts]
    if outs[0] is None:
        return None
    if isinstance(outs[0], (tuple, list)):
        return tuple(Interval(*ends) for ends in zip(*outs, strict=True))
    return Interval(*outs)


def lookup(op: Any, table: Interval, indices: list[Interval | None]) -> Interval | None:
    """``table[...]``; see `look_up`."""
    return look_up(table, indices)
