"""Recorded operations in fewer launches: on a GPU an operation on few values takes as long as its launch does.

Each rule joins an operation with the one that it reads, whatever their values: the second is left out where nothing else reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.replay.plan import Call
from maskloom.program.program import Value, mapped

_aten = torch.ops.aten

_BESIDE_NOT = {_aten.bitwise_and.Tensor: _aten.gt.Tensor, _aten.bitwise_or.Tensor: _aten.ge.Tensor}
"""Of bools, ``a & ~b`` is ``a > b``, and ``a | ~b`` is ``a >= b``."""

_COMPARISONS = {getattr(_aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def in_fewer(calls: Sequence[Call], values: Sequence[Tensor]) -> list[Call]:
    """Calls with the same results, some of which no longer read what others compute.

    Args:
        values: the values of a run, by their slots. Each new call is tried on them: its result must lie in memory as the old one
            did, because views of it are taken by that.
    """
    makers = {slot: call for call in calls for slot in call.results}
    found = []
    for call in calls:
        new = _without_negation(call, makers, values) or _without_widening(call, makers, values)
        found.append(call if new is None or not _lies_alike(new, values) else new)
    return found


def _without_negation(call: Call, makers: dict[int, Call], values: Sequence[Tensor]) -> Call | None:
    op = _BESIDE_NOT.get(call.op)
    if op is None or not all(_value(argument, values).dtype == torch.bool for argument in call.args):
        return None
    for this, other in (call.args, call.args[::-1]):
        negated = _read(other, makers, lambda made: made.op is _aten.bitwise_not.default)
        if negated is not None:
            return call.changed(op, [this, negated])
    return None


def _without_widening(call: Call, makers: dict[int, Call], values: Sequence[Tensor]) -> Call | None:
    """Without copies in a wider dtype, to which a comparison promotes by itself."""
    if call.op not in _COMPARISONS:
        return None
    dtype = torch.result_type(*(_value(argument, values) for argument in call.args))
    narrow = [_narrow(argument, makers, values, dtype) for argument in call.args]
    if all(new is old for new, old in zip(narrow, call.args, strict=True)):
        return None
    if torch.result_type(*(_value(argument, values) for argument in narrow)) != dtype:
        return None
    return call.changed(call.op, narrow)


def _narrow(argument: Any, makers: dict[int, Call], values: Sequence[Tensor], dtype: torch.dtype) -> Any:
    source = _read(argument, makers, lambda made: made.op is _aten._to_copy.default and set(made.kwargs) == {"dtype"})
    if source is None or _value(argument, values).dtype != dtype:
        return argument
    narrow = _value(source, values).dtype
    exact = not (narrow.is_floating_point or dtype.is_floating_point or narrow.is_complex or dtype.is_complex)
    return source if exact and torch.promote_types(narrow, dtype) == dtype else argument


def _read(argument: Any, makers: dict[int, Call], is_such: Callable[[Call], bool]) -> Any | None:
    """What such a call reads whose result the argument is; None if it is not."""
    made = makers.get(argument.slot) if isinstance(argument, Value) else None
    return made.args[0] if made is not None and is_such(made) else None


def _value(argument: Any, values: Sequence[Tensor]) -> Any:
    return values[argument.slot] if isinstance(argument, Value) else argument


def _lies_alike(call: Call, values: Sequence[Tensor]) -> bool:
    old = values[call.results[0]]
    new = call.op(*mapped(call.args, lambda leaf: _value(leaf, values)))
    return new.dtype == old.dtype and _layout(new) == _layout(old)


def _layout(tensor: Tensor) -> tuple[torch.Size, list[int]]:
    """How it lies in memory: steps along dimensions of one entry lead nowhere."""
    return tensor.shape, [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
