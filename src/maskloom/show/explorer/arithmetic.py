"""Rules of operations on numbers: arithmetic, comparisons, logic."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from maskloom.program.program import Op, Value
from maskloom.show.explorer.instructions import NotInThePageError
from maskloom.show.explorer.lowering import Entry, Lowering, Rule, Slots

_aten = torch.ops.aten
_BOOL, _INT64 = torch.bool, torch.int64


def meta_dtype(low: Lowering, step: Op) -> torch.dtype:
    """The dtype of an operation's first result."""
    return low.program.meta(step.results[0]).dtype


def no_options(step: Op, *known: str) -> None:
    """Raise NotInThePageError if the operation has other options than those named."""
    options = {name: item for name, item in step.kwargs.items() if name not in known and item is not None}
    if options:
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} has options: {', '.join(options)}")


def compared(operation: str) -> Rule:
    """A comparison, in the dtype that torch.vmap compares in."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        dtype = low.common(step.args, wide=True)
        left, right = (low.slots(argument, dtype) for argument in step.args)
        return [low.each(operation, dtype, left, right, result=_BOOL)]

    return rule


def computed(operation: str, *, swapped: bool = False) -> Rule:
    """An operation of two numbers, in the dtype of its result."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        dtype = meta_dtype(low, step)
        left, right = (low.slots(argument, dtype) for argument in step.args[:2])
        _check_alpha(step)
        pair = (right, left) if swapped else (left, right)
        return [low.each(operation, dtype, *pair, result=dtype)]

    return rule


def _check_alpha(step: Op) -> None:
    no_options(step, "alpha")
    alpha = step.args[2] if len(step.args) > 2 else step.kwargs.get("alpha", 1)
    if alpha != 1:
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} has alpha={alpha}")


def divided(low: Lowering, step: Op) -> list[Entry]:
    """``div``, exact or rounded."""
    mode = step.kwargs.get("rounding_mode")
    operation = {None: "div", "floor": "floordiv", "trunc": "truncdiv"}[mode]
    dtype = meta_dtype(low, step)
    if mode and dtype in (torch.float16, torch.bfloat16):
        raise NotInThePageError(f"it divides and rounds in {dtype}")
    left, right = (low.slots(argument, dtype) for argument in step.args[:2])
    return [low.each(operation, dtype, left, right, result=dtype)]


def exactly(operation: str) -> Rule:
    """A division whose rounding in half precision is not that of float32."""
    inner = computed(operation)

    def rule(low: Lowering, step: Op) -> list[Entry]:
        if meta_dtype(low, step) in (torch.float16, torch.bfloat16):
            raise NotInThePageError(f"it takes {step.op.overloadpacket.__name__} in half precision")
        return inner(low, step)

    return rule


def single(operation: str) -> Rule:
    """An operation of one number, in its dtype."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        if len(step.args) > 1:
            raise NotInThePageError(f"{step.op.overloadpacket.__name__} has options")
        no_options(step)
        dtype = meta_dtype(low, step)
        return [low.each(operation, dtype, low.slots(step.args[0], dtype), result=dtype)]

    return rule


def rounded(operation: str) -> Rule:
    """Integers are whole already."""
    inner = single(operation)

    def rule(low: Lowering, step: Op) -> list[Entry]:
        value = low.slots(step.args[0])
        return inner(low, step) if value.dtype.is_floating_point else [value]

    return rule


def inverted(low: Lowering, step: Op) -> list[Entry]:
    """``~``, of bools and of bits."""
    value = low.slots(step.args[0])
    return [low.each("not", value.dtype, value, result=value.dtype)]


def is_true(low: Lowering, argument: Any) -> Slots:
    """Whether a value is not zero; NaN is not."""
    if not isinstance(argument, (Value, Tensor)):
        return low.slots(bool(argument), _BOOL)
    return low.cast(low.slots(argument), _BOOL)


def logical(operation: str) -> Rule:
    """An operation on truth values, of any numbers."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        parts = [is_true(low, argument) for argument in step.args]
        return [low.each(operation, _BOOL, *parts, result=_BOOL)]

    return rule


def is_nan(low: Lowering, step: Op) -> list[Entry]:
    """NaN alone differs from itself."""
    value = low.slots(step.args[0])
    return [low.each("ne", value.dtype, value, value, result=_BOOL)]


def power(low: Lowering, step: Op) -> list[Entry]:
    """Integers to any small power; floats to those that torch multiplies out."""
    value, exponent = step.args
    dtype = meta_dtype(low, step)
    most = 3 if dtype.is_floating_point else 64
    known = isinstance(exponent, (int, float)) and (exponent in range(1, most + 1) or exponent == 0.5)
    if not known or dtype in (torch.float16, torch.bfloat16):
        raise NotInThePageError(f"it takes the power {exponent} in {dtype}")
    base = low.slots(value, dtype)
    if exponent == 0.5:
        return [low.each("sqrt", dtype, base, result=dtype)]
    return [functools.reduce(lambda left, right: _times(low, left, right), [base] * int(exponent))]


def is_within(relation: str) -> Rule:
    """Whether the size of a number is below infinity, or equals it."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        value = low.slots(step.args[0])
        if not value.dtype.is_floating_point:
            return [low.slots(relation == "lt", _BOOL)]
        size = low.each("abs", value.dtype, value, result=value.dtype)
        return [low.each(relation, value.dtype, size, low.slots(math.inf, value.dtype), result=_BOOL)]

    return rule


def _times(low: Lowering, left: Slots, right: Slots) -> Slots:
    return low.each("mul", left.dtype, left, right, result=left.dtype)


def square(low: Lowering, step: Op) -> list[Entry]:
    """A number times itself."""
    base = low.slots(step.args[0], meta_dtype(low, step))
    return [_times(low, base, base)]


def clamped(low: Lowering, step: Op) -> list[Entry]:
    """The larger of a number and a lower bound, and the smaller of that and an upper one."""
    dtype = meta_dtype(low, step)
    value = low.slots(step.args[0], dtype)
    bounds = {"min": step.kwargs.get("min"), "max": step.kwargs.get("max")}
    bounds |= dict(zip(_BOUNDS.get(step.op.overloadpacket, ("min", "max")), step.args[1:], strict=False))
    for name, operation in (("min", "max"), ("max", "min")):
        if bounds[name] is not None:
            value = low.each(operation, dtype, value, low.slots(bounds[name], dtype), result=dtype)
    return [value]


_BOUNDS = {_aten.clamp_min: ("min",), _aten.clamp_max: ("max",)}


def where(low: Lowering, step: Op) -> list[Entry]:
    """One of two values."""
    dtype = meta_dtype(low, step)
    condition, *choices = step.args
    parts = [low.slots(choice, dtype) for choice in choices]
    return [low.each("where", dtype, is_true(low, condition), *parts, result=dtype)]


def kept(low: Lowering, step: Op) -> list[Entry]:
    """A copy, perhaps in another dtype."""
    return [low.slots(step.args[0], meta_dtype(low, step))]
