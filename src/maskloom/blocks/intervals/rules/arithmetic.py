"""Rules of arithmetic. Bools are added and multiplied as in torch: as | and &."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import Interval
from maskloom.blocks.intervals.rules.operands import (
    Pair,
    Rule,
    as_interval,
    computed,
    dtype_of,
    extremes,
    operands,
)


def from_ends(ends: Callable[[list[Any], list[Any]], Pair], on_bools: Rule | None = None) -> Rule:
    """A rule from a function that computes ends; see `computed`."""

    def rule(op: Any, *args: Any, alpha: Any = 1) -> Interval | None:
        values = operands(*args) if alpha == 1 and len(args) <= 2 else None  # some overloads take alpha by position
        if values is None:
            return None
        if dtype_of(values) == torch.bool:
            return on_bools(op, *args) if on_bools is not None else None
        return computed(values, ends)

    return rule


def moving_runs(rule: Rule, sign: int) -> Rule:
    """Positions plus a Python int are still a position range, which reads tables block by block."""

    def moving(op: Any, left: Any, right: Any, *rest: Any, alpha: Any = 1) -> Interval | None:
        out = rule(op, left, right, *rest, alpha=alpha)
        run = getattr(left, "run", None)
        if out is None or run is None or not isinstance(right, int) or run.start + sign * right < 0:
            return out
        if out.span is None:  # the result may wrap around
            return out
        return dataclasses.replace(out, run=dataclasses.replace(run, start=run.start + sign * right))

    return moving


def products(los: list[Any], his: list[Any]) -> Pair:
    """The extremes of a product: they are at the corners."""
    left = [los[0]] if los[0] is his[0] else [los[0], his[0]]
    right = [los[1]] if los[1] is his[1] else [los[1], his[1]]
    return extremes([a * b for a in left for b in right])


def absolute(los: list[Any], his: list[Any]) -> Pair:
    """The ends of an absolute value; 0 if the interval contains 0."""
    lo, hi = los[0], his[0]
    if isinstance(lo, Tensor):
        return torch.maximum(torch.maximum(lo, -hi), torch.zeros_like(lo)), torch.maximum(hi, -lo)
    return max(lo, -hi, 0), max(hi, -lo)


def smaller(los: list[Any], his: list[Any]) -> Pair:
    """The ends of a minimum."""
    return extremes(los)[0], extremes(his)[0]


def greater(los: list[Any], his: list[Any]) -> Pair:
    """The ends of a maximum."""
    return extremes(los)[1], extremes(his)[1]


def clamp(op: Any, value: Any, least: Any = None, most: Any = None) -> Interval | None:
    """A maximum with ``least``, then a minimum with ``most``, as in torch."""
    given = [end for end in (least, most) if end is not None]
    values = operands(value, *given)
    if values is None:
        return None
    ends = iter(values[1:])
    if least is not None:
        values[0] = computed([values[0], as_interval(next(ends), values[0])], greater)
    if most is not None:
        values[0] = computed([values[0], as_interval(next(ends), values[0])], smaller)
    return values[0]


def power(op: Any, value: Any, exponent: Any) -> Interval | None:
    """Non-negative integer powers of integers, and squares of floats (which torch computes as a product)."""
    if not isinstance(value, Interval) or not isinstance(exponent, int) or exponent < 0:
        return None
    if value.dtype == torch.bool or (value.dtype.is_floating_point and exponent != 2):
        return None
    value = value.loose()
    base = computed([value], absolute) if exponent % 2 == 0 else value
    return computed([base], lambda los, his: (los[0] ** exponent, his[0] ** exponent))
