"""What each operation does to intervals: one rule per aten operation, in `RULES`.

A rule gets the operation and its arguments, Intervals for tensors, and answers with an Interval, or None where it
cannot say (the result is then unknown). It must hold for every way that values inside the intervals can be chosen.

Integers are computed in int64 and checked against the range of the result's dtype, since narrow types wrap around. Float
ends are computed by the very operation, in the very dtype: rounding to nearest is monotone (IEEE 754-2019, section 4.3), so
a rounded end bounds every rounded element.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.interval import LEAD, RANGES, Interval, as_float, as_int, cast, truth
from maskloom.blocks.lifted import SHAPES, aligned, common_dtype, lifted
from maskloom.blocks.lookup import look_up

Rule = Callable[..., Interval | None]

_aten = torch.ops.aten


# -- operands ----------------------------------------------------------------------------------------------------------


def _operands(*values: Any, to_float: bool = False, wide: bool = False) -> list[Any] | None:
    """Values as torch promotes them, their own dims aligned; Python numbers stay. None where a cast says nothing."""
    intervals = [value for value in values if isinstance(value, Interval)]
    numbers = [value for value in values if not isinstance(value, Interval)]
    dtype = common_dtype([interval.lo for interval in intervals], LEAD, *numbers, wide=wide)
    if to_float and not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    if dtype in RANGES and any(not RANGES[dtype][0] <= number <= RANGES[dtype][1] for number in numbers):
        return None  # torch wraps such a number around
    casts = [cast(interval, dtype) for interval in intervals]
    if any(interval is None for interval in casts):
        return None
    ready = iter(_aligned([interval.loose() for interval in casts if interval is not None]))
    return [next(ready) if isinstance(value, Interval) else value for value in values]


def _aligned(intervals: list[Interval]) -> list[Interval]:
    if len({interval.lo.ndim for interval in intervals}) == 1:
        return intervals
    los = aligned([interval.lo for interval in intervals], LEAD)
    his = aligned([interval.hi for interval in intervals], LEAD)
    nans = [interval.nan for interval in intervals]
    rank = los[0].ndim
    nans = [nan if nan is None else _padded_to(nan, rank) for nan in nans]
    return [
        Interval(lo, hi, nan, interval.span) for lo, hi, nan, interval in zip(los, his, nans, intervals, strict=True)
    ]


def _padded_to(tensor: Tensor, rank: int) -> Tensor:
    return tensor.reshape(*tensor.shape[:LEAD], *(1,) * (rank - tensor.ndim), *tensor.shape[LEAD:])


def _nan_of(*values: Any) -> Tensor | None:
    nans = [value.nan for value in values if isinstance(value, Interval) and value.nan is not None]
    return functools.reduce(torch.logical_or, nans) if nans else None


def _lo(value: Any) -> Any:
    return value.lo if isinstance(value, Interval) else value


def _hi(value: Any) -> Any:
    return value.hi if isinstance(value, Interval) else value


def _ends(value: Any) -> list[Any]:
    if not isinstance(value, Interval):
        return [value]
    return [value.lo] if value.exact else [value.lo, value.hi]


def _bounds(value: Any) -> tuple[int, int]:
    return value.bounds if isinstance(value, Interval) else (int(value), int(value))


def _dtype_of(values: list[Any]) -> torch.dtype:
    return next(value.dtype for value in values if isinstance(value, Interval))


# -- arithmetic --------------------------------------------------------------------------------------------------------

_Pair = tuple[Any, Any]


def _computed(values: list[Any], ends: Callable[[list[Any], list[Any]], _Pair]) -> Interval:
    """An interval from a function that computes the ends of a result from the ends of its inputs.

    It is run on tensors, and for integers on Python ints (the bounds for all tiles), so that most need no look at
    overflow.
    """
    los, his = [_lo(value) for value in values], [_hi(value) for value in values]
    dtype = _dtype_of(values)
    if dtype.is_floating_point:
        return as_float(*ends(los, his), _nan_from(values))
    los, his = _in_dtype(los, torch.int64), _in_dtype(his, torch.int64)
    span = ends([_bounds(value)[0] for value in values], [_bounds(value)[1] for value in values])
    lo, hi = ends(los, his)
    overflows = not (RANGES[torch.int64][0] <= span[0] and span[1] <= RANGES[torch.int64][1])
    rough = ends(_in_dtype(los, torch.float64), _in_dtype(his, torch.float64)) if overflows else (lo, hi)
    return as_int(lo, hi, dtype, span, rough)


def _nan_from(values: list[Any]) -> Tensor | None:
    """Where a NaN goes in, and where infinities could meet (inf - inf, 0 · inf) between ends that show no NaN."""
    infinite = [end.isinf() for value in values if isinstance(value, Interval) for end in _ends(value)]
    nan = functools.reduce(torch.logical_or, infinite)
    given = _nan_of(*values)
    return nan if given is None else nan | given


def _in_dtype(values: list[Any], dtype: torch.dtype) -> list[Any]:
    return [value.to(dtype) if isinstance(value, Tensor) else value for value in values]


def _arithmetic(ends: Callable[[list[Any], list[Any]], _Pair], on_bools: Rule | None = None) -> Rule:
    def rule(op: Any, *args: Any, alpha: Any = 1) -> Interval | None:
        values = _operands(*args) if alpha == 1 else None
        if values is None:
            return None
        if _dtype_of(values) == torch.bool:
            return on_bools(op, *args) if on_bools is not None else None
        return _computed(values, ends)

    return rule


def _moving_runs(rule: Rule, sign: int) -> Rule:
    """Positions plus a Python int are positions, and still read tables block by block."""

    def moving(op: Any, left: Any, right: Any, *, alpha: Any = 1) -> Interval | None:
        out = rule(op, left, right, alpha=alpha)
        run = getattr(left, "run", None)
        if out is None or run is None or not isinstance(right, int) or run.start + sign * right < 0:
            return out
        return dataclasses.replace(out, run=dataclasses.replace(run, start=run.start + sign * right))

    return moving


def _extremes(candidates: list[Any]) -> _Pair:
    if any(isinstance(candidate, Tensor) for candidate in candidates):
        return functools.reduce(torch.minimum, candidates), functools.reduce(torch.maximum, candidates)
    return min(candidates), max(candidates)


def _products(los: list[Any], his: list[Any]) -> _Pair:
    left = [los[0]] if los[0] is his[0] else [los[0], his[0]]
    right = [los[1]] if los[1] is his[1] else [los[1], his[1]]
    return _extremes([a * b for a in left for b in right])


def _absolute(los: list[Any], his: list[Any]) -> _Pair:
    lo, hi = los[0], his[0]
    if isinstance(lo, Tensor):
        return torch.maximum(torch.maximum(lo, -hi), torch.zeros_like(lo)), torch.maximum(hi, -lo)
    return max(lo, -hi, 0), max(hi, -lo)


def _smaller(los: list[Any], his: list[Any]) -> _Pair:
    return _extremes(los)[0], _extremes(his)[0]


def _greater(los: list[Any], his: list[Any]) -> _Pair:
    return _extremes(los)[1], _extremes(his)[1]


def _clamp(op: Any, value: Any, least: Any = None, most: Any = None) -> Interval | None:
    given = [end for end in (least, most) if end is not None]
    values = _operands(value, *given)
    if values is None:
        return None
    ends = iter(values[1:])
    if least is not None:
        values[0] = _computed([values[0], _as_interval(next(ends), values[0])], _greater)
    if most is not None:
        values[0] = _computed([values[0], _as_interval(next(ends), values[0])], _smaller)
    return values[0]


def _as_interval(value: Any, like: Interval) -> Interval:
    if isinstance(value, Interval):
        return value
    tensor = torch.full((1,) * like.lo.ndim, value, dtype=like.dtype, device=like.lo.device)
    return Interval.exactly(tensor, span=None if like.dtype.is_floating_point else (int(value), int(value)))


def _power(op: Any, value: Any, exponent: Any) -> Interval | None:
    """Non-negative whole powers of integers, and squares of floats (which torch computes as a product)."""
    if not isinstance(value, Interval) or not isinstance(exponent, int) or exponent < 0:
        return None
    if value.dtype == torch.bool or (value.dtype.is_floating_point and exponent != 2):
        return None
    value = value.loose()
    base = _computed([value], _absolute) if exponent % 2 == 0 else value
    return _computed([base], lambda los, his: (los[0] ** exponent, his[0] ** exponent))


# -- division ----------------------------------------------------------------------------------------------------------


def _quotient(op: Any, left: Any, right: Any, *, rounding_mode: str | None = None) -> Interval | None:
    values = _operands(left, right, to_float=rounding_mode is None)
    if values is None or _dtype_of(values) == torch.bool:
        return None
    if _dtype_of(values).is_floating_point:
        return _float_quotient(op, values, rounding_mode)
    return _int_quotient(values, rounding_mode or "floor")


def _floor_quotient(op: Any, left: Any, right: Any) -> Interval | None:
    return _quotient(_aten.div, left, right, rounding_mode="floor")


def _float_quotient(op: Any, values: list[Any], rounding_mode: str | None) -> Interval | None:
    if rounding_mode == "floor":
        return None  # torch corrects the floor of a float division by a remainder: not monotone for certain
    divide = functools.partial(torch.div, rounding_mode=rounding_mode)
    right = values[1]
    ends = _extremes([divide(a, b) for a in _tensors(values[0], right) for b in _ends(right)])
    out = as_float(*ends, _nan_from(values))
    if not isinstance(right, Interval):
        return out if right != 0 else None
    return _lost(out, (right.lo <= 0) & (right.hi >= 0))


def _tensors(value: Any, like: Interval | Any) -> list[Any]:
    if isinstance(value, Interval):
        return _ends(value)
    return [torch.full((1,) * like.lo.ndim, value, dtype=like.dtype, device=like.lo.device)]


def _lost(value: Interval, where: Tensor) -> Interval:
    nan = where if value.nan is None else value.nan | where
    return Interval(value.lo.masked_fill(where, -torch.inf), value.hi.masked_fill(where, torch.inf), nan)


def _int_quotient(values: list[Any], rounding_mode: str) -> Interval | None:
    """Corners: a quotient is monotone in each of its two parts while the divisor keeps its sign."""
    left, right = values
    if not isinstance(right, Interval):
        return None if right == 0 else _divided(values, rounding_mode, None)
    least, most = right.bounds
    zero = None if least > 0 or most < 0 else (right.lo <= 0) & (right.hi >= 0)
    if zero is not None:
        right = Interval(right.lo.masked_fill(zero, 1), right.hi.masked_fill(zero, 1))
    return _divided([left, right], rounding_mode, zero)


def _divided(values: list[Any], rounding_mode: str, zero: Tensor | None) -> Interval:
    dtype = _dtype_of(values)
    lowest = RANGES[torch.int64][0]  # by -1 it has no quotient: a hardware trap
    numerators = [end.clamp(min=lowest + 1) for end in _in_dtype(_tensors(values[0], values[1]), torch.int64)]
    divisors = _in_dtype(_ends(values[1]), torch.int64)
    lo, hi = _extremes([torch.div(a, b, rounding_mode=rounding_mode) for a in numerators for b in divisors])
    reach = min(max(map(abs, _bounds(values[0]))), -lowest - 1)
    out = as_int(lo, hi, dtype, (-reach, reach), (lo, hi))
    if dtype == torch.int64 and isinstance(values[0], Interval) and values[0].bounds[0] == lowest:
        trap = values[0].lo == lowest
        zero = trap if zero is None else zero | trap
    return out if zero is None else _anything_where(out, zero)


def _anything_where(value: Interval, where: Tensor) -> Interval:
    least, most = RANGES[value.dtype]
    return Interval(value.lo.masked_fill(where, least), value.hi.masked_fill(where, most))


def _remainder(op: Any, left: Any, right: Any) -> Interval | None:
    """Python's %, for integers: exact where a tile stays between two multiples of a fixed divisor."""
    values = _operands(left, right)
    if values is None or _dtype_of(values) not in RANGES:
        return None
    if isinstance(values[1], Interval):
        return _remainder_of_any(*values)
    if values[1] <= 0:
        return None
    return _remainder_of_number(values[0], values[1])


def _remainder_of_number(value: Interval, divisor: int) -> Interval:
    lo, hi = value.lo, value.hi
    if divisor == 1:
        return Interval.exactly(torch.zeros_like(lo), span=(0, 0))
    crosses = torch.div(lo, divisor, rounding_mode="floor") != torch.div(hi, divisor, rounding_mode="floor")
    return Interval(
        (lo % divisor).masked_fill(crosses, 0), (hi % divisor).masked_fill(crosses, divisor - 1), span=(0, divisor - 1)
    )


def _remainder_of_any(value: Any, divisor: Interval) -> Interval:
    """Between 0 and the divisor, which it never reaches; the dividend itself where it is smaller."""
    lo, hi = divisor.lo.long(), divisor.hi.long()
    below, above = (hi - 1).clamp(min=0), (lo + 1).clamp(max=0)
    stays = (_lo(value) >= 0) & (_hi(value) < lo)
    out_lo = torch.where(stays, _lo(value), above)
    out_hi = torch.where(stays, _hi(value), below)
    out = Interval(out_lo.to(divisor.dtype), out_hi.to(divisor.dtype))
    return _anything_where(out, (lo <= 0) & (hi >= 0))


# -- bits --------------------------------------------------------------------------------------------------------------


def _shift_left(op: Any, value: Any, places: Any) -> Interval | None:
    values = _operands(value, places)
    if values is None or isinstance(values[1], Interval) or not isinstance(values[0], Interval):
        return None
    if values[0].dtype not in RANGES or not 0 <= values[1] < _bits(values[0].dtype):
        return None
    return _computed(values[:1], lambda los, his: (los[0] * 2 ** values[1], his[0] * 2 ** values[1]))


def _shift_right(op: Any, value: Any, places: Any) -> Interval | None:
    values = _operands(value, places)
    if values is None or isinstance(values[1], Interval) or not isinstance(values[0], Interval):
        return None
    if values[0].dtype not in RANGES or not 0 <= values[1] < _bits(values[0].dtype):
        return None
    return _divided([values[0], 2 ** values[1]], "floor", None)


def _bits(dtype: torch.dtype) -> int:
    return torch.iinfo(dtype).bits - 1


def _and(op: Any, left: Any, right: Any) -> Interval | None:
    values = _operands(left, right)
    if values is None:
        return None
    if _dtype_of(values) == torch.bool:
        return truth(_lo(values[0]) & _lo(values[1]), _hi(values[0]) & _hi(values[1]))
    for value, bits in (values, values[::-1]):  # x & 0b0111 is x % 8, for negative x too
        if isinstance(value, Interval) and isinstance(bits, int) and bits > 0 and (bits & (bits + 1)) == 0:
            return _remainder_of_number(value, bits + 1) if bits < RANGES[value.dtype][1] else None
    return _bitwise(values, lambda a, b: (torch.zeros_like(a[0] & b[0]), torch.minimum(a[1], b[1])))


def _or(op: Any, left: Any, right: Any) -> Interval | None:
    values = _operands(left, right)
    if values is None:
        return None
    if _dtype_of(values) == torch.bool:
        return truth(_lo(values[0]) | _lo(values[1]), _hi(values[0]) | _hi(values[1]))
    return _bitwise(values, lambda a, b: (torch.maximum(a[0], b[0]), _all_bits_below(torch.maximum(a[1], b[1]))))


def _xor(op: Any, left: Any, right: Any) -> Interval | None:
    values = _operands(left, right)
    if values is None:
        return None
    if _dtype_of(values) == torch.bool:
        known = _known(values[0]) & _known(values[1])
        odd = _hi(values[0]) ^ _hi(values[1])
        return truth(known & odd, ~known | odd)
    return _bitwise(values, lambda a, b: (torch.zeros_like(a[0] | b[0]), _all_bits_below(torch.maximum(a[1], b[1]))))


def _known(value: Any) -> Any:
    return value.lo == value.hi if isinstance(value, Interval) else True


def _not(op: Any, value: Interval) -> Interval | None:
    if value.dtype == torch.bool:
        return truth(~value.hi, ~value.lo)
    return Interval(~value.hi, ~value.lo)


def _all_bits_below(most: Tensor) -> Tensor:
    """The greatest number with as many bits as ``most``, a non-negative one."""
    bits = torch.frexp(most.double()).exponent.long().clamp(max=62)  # 2^62 and above: float64 may round up, so may we
    return torch.where(
        most.long() >= 2**61, RANGES[torch.int64][1], torch.bitwise_left_shift(torch.ones_like(bits), bits) - 1
    )


def _bitwise(values: list[Any], ends: Callable[[_Pair, _Pair], _Pair]) -> Interval | None:
    """For numbers that are not negative; anything where one may be."""
    dtype = _dtype_of(values)
    if dtype not in RANGES:
        return None
    like = next(value for value in values if isinstance(value, Interval))
    pairs = [(v.lo.long(), v.hi.long()) for v in (_as_interval(value, like) for value in values)]
    lo, hi = ends(*pairs)
    out = Interval(lo.clamp(*RANGES[dtype]).to(dtype), hi.clamp(*RANGES[dtype]).to(dtype))
    return _anything_where(out, (pairs[0][0] < 0) | (pairs[1][0] < 0))


# -- truth -------------------------------------------------------------------------------------------------------------


def _as_bools(rule: Rule) -> Rule:
    """A ``logical_*`` operation: its bitwise twin on the truth of its arguments."""

    def on_truth(op: Any, *args: Interval) -> Interval | None:
        casts = [cast(argument, torch.bool) for argument in args]
        return None if any(value is None for value in casts) else rule(op, *casts)

    return on_truth


def _less(op: Any, left: Any, right: Any) -> Interval | None:
    return _compared(left, right, lambda a, b: truth(_hi(a) < _lo(b), _lo(a) < _hi(b)))


def _less_or_equal(op: Any, left: Any, right: Any) -> Interval | None:
    return _compared(left, right, lambda a, b: truth(_hi(a) <= _lo(b), _lo(a) <= _hi(b)))


def _equal(op: Any, left: Any, right: Any) -> Interval | None:
    def same(a: Any, b: Any) -> Interval:
        return truth((_lo(a) == _hi(b)) & (_hi(a) == _lo(b)), (_lo(a) <= _hi(b)) & (_hi(a) >= _lo(b)))

    return _compared(left, right, same)


def _compared(left: Any, right: Any, rule: Callable[[Any, Any], Interval]) -> Interval | None:
    values = _operands(left, right, wide=True)
    if values is None:
        return None
    out = rule(*values)
    nan = _nan_of(*values)
    return out if nan is None else truth(out.lo & ~nan, out.hi)  # no comparison is True of NaN, != apart


def _unequal(op: Any, left: Any, right: Any) -> Interval | None:
    out = _equal(op, left, right)
    return None if out is None else _not(op, out)


def _swapped(rule: Rule) -> Rule:
    return lambda op, left, right: rule(op, right, left)


def _is_nan(op: Any, value: Interval) -> Interval | None:
    value = value.loose()
    if value.nan is None:
        never = torch.zeros_like(value.lo, dtype=torch.bool)
        return Interval.exactly(never)
    return truth(value.nan & (value.lo > value.hi), value.nan)


# -- choice, casts, reductions, shapes ---------------------------------------------------------------------------------


def _where(op: Any, condition: Interval, left: Any, right: Any) -> Interval | None:
    if not isinstance(left, Interval) and not isinstance(right, Interval):
        return _where_numbers(condition, left, right)
    values = _operands(left, right)
    if values is None:
        return None
    like = next(value for value in values if isinstance(value, Interval))
    condition, left, right = _aligned([condition, *(_as_interval(value, like) for value in values)])
    lo = torch.where(condition.lo, left.lo, torch.where(condition.hi, torch.minimum(left.lo, right.lo), right.lo))
    hi = torch.where(condition.lo, left.hi, torch.where(condition.hi, torch.maximum(left.hi, right.hi), right.hi))
    least, most = zip(left.bounds, right.bounds, strict=True) if like.dtype in RANGES else ((0,), (0,))
    return Interval(lo, hi, _nan_of(left, right), (min(least), max(most)) if like.dtype in RANGES else None)


def _where_numbers(condition: Interval, left: Any, right: Any) -> Interval | None:
    dtype = torch.result_type(left, right)
    if (isinstance(left, float) and math.isnan(left)) or (isinstance(right, float) and math.isnan(right)):
        return None
    always = [torch.where(truth_value, left, right).to(dtype) for truth_value in (condition.lo, condition.hi)]
    low, high = always if left >= right else always[::-1]  # True chooses left
    return Interval(low, high)


def _to_copy(op: Any, value: Interval, *, dtype: torch.dtype | None = None, **_: Any) -> Interval | None:
    return value if dtype is None else cast(value, dtype)


def _same(op: Any, value: Interval, **_: Any) -> Interval:
    return value


def _by_ends(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Interval | None:
    """Operations that never fall when their input rises, and round exactly: floor, ceil, round, trunc, sqrt."""
    value = value.loose()
    if not value.dtype.is_floating_point and value.dtype not in RANGES:
        return None
    lo, hi = (op(end, *args, **kwargs) for end in (value.lo, value.hi))
    return as_float(lo, hi, value.nan) if lo.dtype.is_floating_point else Interval(lo, hi)


def _root(op: Any, value: Interval) -> Interval | None:
    return _by_ends(op, value) if value.dtype.is_floating_point else None


def _any_or_all(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Interval | None:
    flags = cast(value, torch.bool)
    return None if flags is None else _each_end(op, flags, *args, **kwargs)


def _extreme(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Any:
    if args and isinstance(args[0], Interval):
        return (_minimum if op.overloadpacket is _aten.min else _maximum)(op, value, args[0])
    if op.overloadpacket in (_aten.max, _aten.min) and args:
        return None  # also says where: no rule
    value = value.loose()
    out = _each_end(op, value, *args, **kwargs)
    if out is None or value.nan is None:
        return out
    nan = lifted(_aten.any.dims if args else _aten.any.default, [value.nan, *args], kwargs, LEAD)
    return Interval(out.lo, out.hi, nan)


def _sum(op: Any, value: Interval, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Interval | None:
    """Of integers and bools; the order of a float sum, and so its rounding, is not known."""
    if value.dtype.is_floating_point or kwargs.get("dtype") not in (None, torch.int64):
        return None
    reach = max(map(abs, value.bounds)) * math.prod(value.lo.shape[LEAD:])
    if reach > RANGES[torch.int64][1]:
        return None
    options = [] if dim is None else [dim, keepdim]
    ends = [lifted(op, [end.long(), *options], {}, LEAD) for end in (value.lo, value.hi)]
    return None if ends[0] is None else Interval(ends[0], ends[1], span=(-reach, reach))


def _each_end(op: Any, value: Interval, *args: Any, **kwargs: Any) -> Any:
    ends = [lifted(op, [end, *args], kwargs, LEAD) for end in (value.lo, value.hi)]
    return None if ends[0] is None or ends[1] is None else Interval(ends[0], ends[1])


def _reshaped(op: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Shape operations, also of a list of values: the same on each end."""
    values = value if isinstance(value, list) else [value]
    dtype = common_dtype([item.lo for item in values], LEAD)
    casts = [cast(item, dtype) for item in values]
    if any(item is None for item in casts):
        return None
    loose = [item.loose() for item in casts if item is not None]
    parts = [[item.lo for item in loose], [item.hi for item in loose]]
    if any(item.nan is not None for item in loose):
        parts.append([torch.zeros_like(item.lo, dtype=torch.bool) if item.nan is None else item.nan for item in loose])
    outs = [lifted(op, [part if isinstance(value, list) else part[0], *args], kwargs, LEAD) for part in parts]
    if isinstance(outs[0], (tuple, list)):
        return tuple(Interval(*ends) for ends in zip(*outs, strict=True))
    return Interval(*outs)


def _index(op: Any, table: Interval, indices: list[Interval | None]) -> Interval | None:
    return look_up(table, indices)


_minimum, _maximum = _arithmetic(_smaller, _and), _arithmetic(_greater, _or)

RULES: dict[Any, Rule] = {
    _aten.add: _moving_runs(_arithmetic(lambda los, his: (los[0] + los[1], his[0] + his[1]), _or), 1),
    _aten.sub: _moving_runs(_arithmetic(lambda los, his: (los[0] - his[1], his[0] - los[1])), -1),
    _aten.rsub: _arithmetic(lambda los, his: (los[1] - his[0], his[1] - los[0])),
    _aten.neg: _arithmetic(lambda los, his: (-his[0], -los[0])),
    _aten.mul: _arithmetic(_products, _and),
    _aten.abs: _arithmetic(_absolute),
    _aten.minimum: _minimum,
    _aten.maximum: _maximum,
    _aten.clamp: _clamp,
    _aten.clamp_min: lambda op, value, least: _clamp(op, value, least),
    _aten.clamp_max: lambda op, value, most: _clamp(op, value, None, most),
    _aten.pow: _power,
    _aten.square: lambda op, value: _power(op, value, 2),
    _aten.div: _quotient,
    _aten.floor_divide: _floor_quotient,
    _aten.remainder: _remainder,
    _aten.bitwise_left_shift: _shift_left,
    _aten.__lshift__: _shift_left,
    _aten.bitwise_right_shift: _shift_right,
    _aten.__rshift__: _shift_right,
    _aten.bitwise_and: _and,
    _aten.bitwise_or: _or,
    _aten.bitwise_xor: _xor,
    _aten.bitwise_not: _not,
    _aten.logical_and: _as_bools(_and),
    _aten.logical_or: _as_bools(_or),
    _aten.logical_xor: _as_bools(_xor),
    _aten.logical_not: _as_bools(_not),
    _aten.lt: _less,
    _aten.le: _less_or_equal,
    _aten.gt: _swapped(_less),
    _aten.ge: _swapped(_less_or_equal),
    _aten.eq: _equal,
    _aten.ne: _unequal,
    _aten.isnan: _is_nan,
    _aten.where: _where,
    _aten._to_copy: _to_copy,
    _aten.floor: _by_ends,
    _aten.ceil: _by_ends,
    _aten.round: _by_ends,
    _aten.trunc: _by_ends,
    _aten.sqrt: _root,
    _aten.any: _any_or_all,
    _aten.all: _any_or_all,
    _aten.amin: _extreme,
    _aten.amax: _extreme,
    _aten.min: _extreme,
    _aten.max: _extreme,
    _aten.sum: _sum,
    _aten.index: _index,
    **dict.fromkeys(SHAPES, _reshaped),
    **dict.fromkeys((_aten.clone, _aten.detach, _aten.alias, _aten.lift_fresh), _same),
}
"""Overload packet → rule. An operation without one makes its result unknown, and what depends on it is evaluated."""
