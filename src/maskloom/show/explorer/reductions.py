"""Rules of reductions over a value's own dimensions."""

import functools
from typing import Any

import torch
from torch import Tensor

from maskloom.program.program import Op, Value
from maskloom.show.explorer.arithmetic import computed, meta_dtype, no_options
from maskloom.show.explorer.instructions import NotInThePageError
from maskloom.show.explorer.lowering import Entry, Lowering, Rule, Slots

_BOOL, _INT64 = torch.bool, torch.int64


def _lines(low: Lowering, step: Op, dim: Any, dtype: torch.dtype | None) -> tuple[list[Slots], tuple[int, ...]]:
    """What is reduced together: one value for each step along the reduced dimensions; and the shape of the result."""
    value = low.slots(step.args[0])
    value = value if dtype is None else low.cast(value, dtype)
    rank = value.slots.ndim
    given = list(range(rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    dims = sorted(place % rank for place in given) if rank else []
    others = [place for place in range(rank) if place not in dims]
    ordered = value.slots.permute(*dims, *others).reshape(-1, *(value.slots.shape[place] for place in others))
    if not len(ordered):
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} of no values")
    return [Slots(slots, value.dtype) for slots in ordered], low.program.meta(step.results[0]).shape


def folded(operation: str) -> Rule:
    """any, all, min, max, and sums of integers: one number after another."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        no_options(step, "dim", "keepdim", "dtype")
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
        if isinstance(dim, (Value, Tensor)):  # max(a, b) of two values
            return computed(operation)(low, step)
        dtype = meta_dtype(low, step)
        if operation in ("add", "mul") and dtype.is_floating_point:
            raise NotInThePageError(f"{step.op.overloadpacket.__name__} of floats rounds in an order of its own")
        inner = _BOOL if operation in ("or", "and") else dtype
        lines, shape = _lines(low, step, dim, inner)
        found = functools.reduce(lambda left, right: low.each(operation, inner, left, right, result=inner), lines)
        results: list[Entry] = [low.cast(Slots(found.slots.reshape(shape), inner), dtype)]
        if len(step.results) == 2:
            results.append(_where_first(low, lines, found, shape))
        return results

    return rule


def _where_first(low: Lowering, lines: list[Slots], found: Slots, shape: tuple[int, ...]) -> Slots:
    """The number of the first line that equals what was found."""
    if found.dtype.is_floating_point:
        raise NotInThePageError("it asks where the largest of floats is")
    place = low.slots(len(lines) - 1, _INT64)
    for number, line in reversed(list(enumerate(lines[:-1]))):
        here = low.each("eq", found.dtype, line, found, result=_BOOL)
        place = low.each("where", _INT64, here, low.slots(number, _INT64), place, result=_INT64)
    return Slots(place.slots.expand(found.slots.shape).reshape(shape), _INT64)


def argument(operation: str) -> Rule:
    """``argmax`` and ``argmin`` of integers."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
        lines, shape = _lines(low, step, dim, None)
        dtype = lines[0].dtype
        found = functools.reduce(lambda left, right: low.each(operation, dtype, left, right, result=dtype), lines)
        return [_where_first(low, lines, found, shape)]

    return rule


def cumulative_sum(low: Lowering, step: Op) -> list[Entry]:
    """The running sum of integers."""
    dtype, value = meta_dtype(low, step), low.slots(step.args[0])
    if dtype.is_floating_point or not value.slots.ndim:
        raise NotInThePageError("it takes a running sum of floats, or of one number")
    lines = low.cast(value, dtype).slots.movedim(step.args[1], 0)
    sums = [Slots(lines[0], dtype)]
    for line in lines[1:]:
        sums.append(low.each("add", dtype, sums[-1], Slots(line, dtype), result=dtype))
    return [Slots(torch.stack([part.slots for part in sums]).movedim(0, step.args[1]), dtype)]


def is_among(low: Lowering, step: Op) -> list[Entry]:
    """``isin``: whether a value equals one of some others."""
    no_options(step, "assume_unique", "invert")
    dtype = low.common(step.args[:2], wide=True)
    value, others = low.slots(step.args[0], dtype), low.slots(step.args[1], dtype)
    each = Slots(others.slots.flatten(), dtype)
    found = low.slots(False, _BOOL)
    for slot in each.slots:
        here = low.each("eq", dtype, value, Slots(slot, dtype), result=_BOOL)
        found = low.each("or", _BOOL, found, here, result=_BOOL)
    return [low.each("not", _BOOL, found, result=_BOOL) if step.kwargs.get("invert") else found]


def bucket(low: Lowering, step: Op) -> list[Entry]:
    """``bucketize(value, boundaries)``: how many boundaries, which ascend, lie before the value."""
    no_options(step, "out_int32", "right")
    value, dtype = step.args[:2], low.common(step.args[:2], wide=True)
    relation = "le" if step.kwargs.get("right") else "lt"
    limits, number = low.slots(value[1], dtype), low.slots(value[0], dtype)
    result = meta_dtype(low, step)
    count = low.slots(0, result)
    for slot in limits.slots:
        below = low.each(relation, dtype, Slots(slot, dtype), number, result=_BOOL)
        count = low.each("add", result, count, low.cast(below, result), result=result)
    return [count]


def searched(low: Lowering, step: Op) -> list[Entry]:
    """``searchsorted`` in one sequence is `bucket`."""
    sequence, value, *_ = step.args
    no_options(step, "out_int32", "right", "side")
    if len(low.program.meta(sequence).shape) != 1 or not isinstance(value, (Value, Tensor)):
        raise NotInThePageError("it searches in several sequences")
    right = step.kwargs.get("right") or step.kwargs.get("side") == "right"
    return bucket(low, Op(step.op, (value, sequence), {"right": right}, step.results))
