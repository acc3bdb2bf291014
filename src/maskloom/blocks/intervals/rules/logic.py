"""Rules of logical and bitwise operations (and, or, xor, not), and of comparisons."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import RANGES, Interval, cast, truth
from maskloom.blocks.intervals.rules.operands import (
    Pair,
    Rule,
    anything_where,
    as_interval,
    dtype_of,
    hi_of,
    lo_of,
    nan_of,
    operands,
    remainder_of_number,
)


def conjunction(op: Any, left: Any, right: Any) -> Interval | None:
    """``&`` of bools or of bits."""
    values = operands(left, right)
    if values is None:
        return None
    if dtype_of(values) == torch.bool:
        return truth(lo_of(values[0]) & lo_of(values[1]), hi_of(values[0]) & hi_of(values[1]))
    for value, bits in (values, values[::-1]):  # x & 0b0111 is x % 8, for negative x too
        if isinstance(value, Interval) and isinstance(bits, int) and bits > 0 and (bits & (bits + 1)) == 0:
            return remainder_of_number(value, bits + 1) if bits < RANGES[value.dtype][1] else None
    return _bitwise(values, lambda a, b: (torch.zeros_like(a[0] & b[0]), torch.minimum(a[1], b[1])))


def disjunction(op: Any, left: Any, right: Any) -> Interval | None:
    """``|`` of bools or of bits."""
    values = operands(left, right)
    if values is None:
        return None
    if dtype_of(values) == torch.bool:
        return truth(lo_of(values[0]) | lo_of(values[1]), hi_of(values[0]) | hi_of(values[1]))
    return _bitwise(values, lambda a, b: (torch.maximum(a[0], b[0]), _all_bits_below(torch.maximum(a[1], b[1]))))


def exclusive(op: Any, left: Any, right: Any) -> Interval | None:
    """``^`` of bools or of bits."""
    values = operands(left, right)
    if values is None:
        return None
    if dtype_of(values) == torch.bool:
        known = _known(values[0]) & _known(values[1])
        odd = hi_of(values[0]) ^ hi_of(values[1])
        return truth(known & odd, ~known | odd)
    return _bitwise(values, lambda a, b: (torch.zeros_like(a[0] | b[0]), _all_bits_below(torch.maximum(a[1], b[1]))))


def _known(value: Any) -> Any:
    return value.lo == value.hi if isinstance(value, Interval) else True


def negation(op: Any, value: Interval) -> Interval | None:
    """``~`` of bools or of bits."""
    if value.dtype == torch.bool:
        return truth(~value.hi, ~value.lo)
    return Interval(~value.hi, ~value.lo)


def _all_bits_below(most: Tensor) -> Tensor:
    """The largest number with as many bits as ``most``, which is not negative."""
    bits = torch.frexp(most.double()).exponent.long().clamp(max=62)  # float64 may round up from 2^62; so may this
    return torch.where(
        most.long() >= 2**61, RANGES[torch.int64][1], torch.bitwise_left_shift(torch.ones_like(bits), bits) - 1
    )


def _bitwise(values: list[Any], ends: Callable[[Pair, Pair], Pair]) -> Interval | None:
    """For numbers that are not negative; anything where one may be negative."""
    dtype = dtype_of(values)
    if dtype not in RANGES:
        return None
    like = next(value for value in values if isinstance(value, Interval))
    pairs = [(v.lo.long(), v.hi.long()) for v in (as_interval(value, like) for value in values)]
    lo, hi = ends(*pairs)
    out = Interval(lo.clamp(*RANGES[dtype]).to(dtype), hi.clamp(*RANGES[dtype]).to(dtype))
    return anything_where(out, (pairs[0][0] < 0) | (pairs[1][0] < 0))


def as_bools(rule: Rule) -> Rule:
    """A ``logical_*`` operation: the bitwise rule on the arguments cast to bool."""

    def on_truth(op: Any, *args: Interval) -> Interval | None:
        casts = [cast(argument, torch.bool) for argument in args]
        return None if any(value is None for value in casts) else rule(op, *casts)

    return on_truth


def less(op: Any, left: Any, right: Any) -> Interval | None:
    """``<``."""
    return _compared(left, right, lambda a, b: truth(hi_of(a) < lo_of(b), lo_of(a) < hi_of(b)))


def less_or_equal(op: Any, left: Any, right: Any) -> Interval | None:
    """``<=``."""
    return _compared(left, right, lambda a, b: truth(hi_of(a) <= lo_of(b), lo_of(a) <= hi_of(b)))


def equal(op: Any, left: Any, right: Any) -> Interval | None:
    """``==``: it must be True where both sides are one and the same value."""

    def same(a: Any, b: Any) -> Interval:
        return truth((lo_of(a) == hi_of(b)) & (hi_of(a) == lo_of(b)), (lo_of(a) <= hi_of(b)) & (hi_of(a) >= lo_of(b)))

    return _compared(left, right, same)


def _compared(left: Any, right: Any, rule: Callable[[Any, Any], Interval]) -> Interval | None:
    values = operands(left, right, wide=True)
    if values is None:
        return None
    out = rule(*values)
    nan = nan_of(*values)
    return out if nan is None else truth(out.lo & ~nan, out.hi)  # comparisons with NaN are False, except !=


def unequal(op: Any, left: Any, right: Any) -> Interval | None:
    """``!=``, which is True for NaN."""
    out = equal(op, left, right)
    return None if out is None else negation(op, out)


def swapped(rule: Rule) -> Rule:
    """The rule with exchanged arguments: ``>`` from ``<``."""
    return lambda op, left, right: rule(op, right, left)


def is_nan(op: Any, value: Interval) -> Interval | None:
    """It must be NaN where no other value is possible (the ends cross)."""
    value = value.loose()
    if value.nan is None:
        never = torch.zeros_like(value.lo, dtype=torch.bool)
        return Interval.wrap(never)
    return truth(value.nan & (value.lo > value.hi), value.nan)
