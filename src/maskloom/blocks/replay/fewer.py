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

_NEVER = {
    "lt": torch.iinfo(torch.int64).min, "le": torch.iinfo(torch.int64).min,
    "gt": torch.iinfo(torch.int64).max, "ge": torch.iinfo(torch.int64).max,
}  # fmt: skip
"""For ``x < number``, and so on: a number with which that is False for each x of fewer bits than int64; for "lt" and "gt" of int64 too."""

_OTHER_WAY = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_EXTREMES = (_aten.amin.default, _aten.amax.default)
_LOGIC = {_aten.bitwise_and.Tensor, _aten.bitwise_or.Tensor, _aten.bitwise_xor.Tensor}
_MIRRORED = {
    getattr(_aten, name).Tensor: getattr(_aten, other).Tensor
    for name, other in (("eq", "eq"), ("ne", "ne"), *_OTHER_WAY.items())
}
_NAMES = {getattr(_aten, name).Tensor: name for name in _NEVER}
_FEW = 1 << 18
"""Entries that a constant may have after a join: of more tiles, a launch takes little of the time."""

_NARROWER = {
    torch.int64: {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32},
    torch.int32: {torch.bool, torch.uint8, torch.int8, torch.int16},
    torch.int16: {torch.bool, torch.uint8, torch.int8},
}
"""Dtypes whose values all have a place in another, to which torch promotes them beside it."""


def in_fewer(calls: Sequence[Call], values: list[Tensor]) -> list[Call]:
    """Calls with the same results, some of which no longer read what others compute.

    Args:
        values: the values of a run, by their slots; those of new calls are added. Each new call is run on them: its result must lie in
            memory as the old one did, because views are taken by that, and torch lays results out by it.
    """
    makers = {slot: call for call in calls for slot in call.results}
    found: list[Call] = []
    for call in calls:
        views: list[Call] = []
        new = (
            _without_negation(call, makers, values, views)
            or _without_widening(call, makers, values, views)
            or _without_conjunction(call, makers, values)
            or _without_twin(call, makers, values, views)
        )
        if new is None or not _gives_what_lies_alike(new, values):
            found.append(call)
            continue
        found += [*views, new]
        makers |= dict.fromkeys(new.results, new)
    return _with_extremes_joined(found, values)


def _with_extremes_joined(calls: Sequence[Call], values: Sequence[Tensor]) -> list[Call]:
    """Calls of which one finds the least and the greatest along a dimension, where two did."""
    found: list[Call] = []
    first: dict[tuple[Any, ...], int] = {}  # the place of the call that found one of the two
    for call in calls:
        what = _extreme_of(call)
        place = first.setdefault(what, len(found)) if what else len(found)
        joined = _both_extremes(found[place], call, values) if place < len(found) else None
        if joined is None:
            found.append(call)
        else:
            found[place] = joined
    return found


def _extreme_of(call: Call) -> tuple[Any, ...] | None:
    """Of what a call finds the least or the greatest: the value, the dimension, and whether this is kept."""
    if call.op not in _EXTREMES or call.kwargs or not isinstance(call.args[0], Value) or len(call.args) < 2:
        return None
    value, dims, *keepdim = call.args
    return (value.slot, *dims, bool(keepdim and keepdim[0])) if len(dims) == 1 else None


def _both_extremes(first: Call, second: Call, values: Sequence[Tensor]) -> Call | None:
    """The call that finds both, if its results lie as theirs do; None too where both find the same."""
    ends = {first.op: first.results[0], second.op: second.results[0]}
    if len(ends) < 2 or first.op not in _EXTREMES:
        return None
    slots = tuple([ends[op] for op in _EXTREMES])
    kept, (dim,) = _extreme_of(first)[-1], first.args[1]  # type: ignore[index]
    new = _aten.aminmax.default(values[first.args[0].slot], dim=dim, keepdim=kept)
    if [one.stride() for one in new] != [values[slot].stride() for slot in slots]:
        return None
    options = {"dim": dim, "keepdim": kept}
    return Call(_aten.aminmax.default, [first.args[0]], options, slots, is_one=False)


def _without_negation(call: Call, makers: dict[int, Call], values: list[Tensor], views: list[Call]) -> Call | None:
    op = _BESIDE_NOT.get(call.op)
    if op is None or not all(_value(argument, values).dtype == torch.bool for argument in call.args):
        return None
    for this, other in (call.args, call.args[::-1]):
        made = _made_so(other, makers, lambda made: made.op is _aten.bitwise_not.default)
        if made is not None:
            return call.changed(op, [this, _read_by(made, values, views)])
    return None


def _without_widening(call: Call, makers: dict[int, Call], values: list[Tensor], views: list[Call]) -> Call | None:
    """Without copies in a wider dtype, to which a comparison promotes by itself."""
    if call.op not in _COMPARISONS:
        return None
    dtype = torch.result_type(*(_value(argument, values) for argument in call.args))
    narrow = [_narrow(argument, makers, values, views, dtype) for argument in call.args]
    if all(new is old for new, old in zip(narrow, call.args, strict=True)):
        return None
    if torch.result_type(*(_value(argument, values) for argument in narrow)) != dtype:
        return None
    return call.changed(call.op, narrow)


def _without_conjunction(call: Call, makers: dict[int, Call], values: Sequence[Tensor]) -> Call | None:
    """Of constant flags, and a comparison with constant numbers: that comparison, with numbers that fail where the flags are False."""
    if call.op is not _aten.bitwise_and.Tensor:
        return None
    for flags, other in (call.args, call.args[::-1]):
        made = _made_so(other, makers, lambda made: made.op in _NAMES)
        if made is None or not isinstance(flags, Tensor) or flags.dtype != torch.bool:
            continue
        name, (value, numbers) = _NAMES[made.op], made.args
        if isinstance(value, Tensor):
            name, value, numbers = _OTHER_WAY[name], numbers, value
        if (
            isinstance(value, Value)
            and isinstance(numbers, Tensor)
            and _may_never_be(name, values[value.slot], numbers)
        ):
            result = values[call.results[0]]
            if result.numel() <= _FEW:  # numbers that lie as the result does, which torch then lays out like them
                limits = torch.empty_like(result, dtype=torch.int64)
                limits.copy_(numbers.long().where(flags, _NEVER[name]))
                return call.changed(getattr(_aten, name).Tensor, [value, limits])
    return None


def _without_twin(call: Call, makers: dict[int, Call], values: list[Tensor], views: list[Call]) -> Call | None:
    """Of two comparisons that see each other's numbers turned, as those of queries and keys by one table do: one, and its transpose."""
    if call.op not in _LOGIC or not all(isinstance(argument, Value) for argument in call.args):
        return None
    first, second = (makers.get(argument.slot) for argument in call.args)
    if first is None or second is None or not _are_twins(first, second, makers, values):
        return None
    (slot,) = first.results
    one, result = values[slot], values[call.results[0]]
    if _steps(one) != _steps(result):
        return None
    # both with the strides of the result along dimensions of one entry, so that the new one lies as it does
    steps = [
        old if size == 1 else new for size, new, old in zip(one.mT.shape, one.mT.stride(), result.stride(), strict=True)
    ]
    straight = _laid_out(Value(slot), list(result.stride()), values, views)
    return call.changed(call.op, [straight, _laid_out(Value(slot), steps, values, views)])


def _are_twins(first: Call, second: Call, makers: dict[int, Call], values: Sequence[Tensor]) -> bool:
    """Whether one comparison is the transpose of the other, whatever the values."""
    if first is second or _MIRRORED.get(first.op) is not second.op:
        return False
    left, right = (_seen_in(argument, makers, values) for argument in first.args)
    again = [_seen_in(argument, makers, values, turned=True) for argument in second.args]
    return None not in again and again == [right, left]


def _seen_in(
    argument: Any, makers: dict[int, Call], values: Sequence[Tensor], *, turned: bool = False
) -> tuple[int, int, list[int], list[int]] | None:
    """Which value an argument is a view of, and where it lies there: offset, shape and strides, or those of its transpose."""
    if not isinstance(argument, Value):
        return None
    view = values[argument.slot]
    if view.ndim < 2:
        return None
    view = view.mT if turned else view
    made = _made_so(argument, makers, lambda made: made.op is torch.as_strided)
    slot = argument.slot if made is None else made.args[0].slot
    return slot, int(view.storage_offset()), list(view.shape), _steps(view)


def _may_never_be(name: str, value: Tensor, numbers: Tensor) -> bool:
    """Whether there is a number with which a comparison is False for each value of this dtype."""
    if not (value.ndim and numbers.ndim):
        return False  # what has no dimensions does not promote
    fewer_bits = value.dtype in _NARROWER[torch.int64] and value.dtype != torch.bool
    is_integer = numbers.dtype in (*_NARROWER, torch.int8, torch.uint8)
    return is_integer and (fewer_bits or (value.dtype == torch.int64 and name in ("lt", "gt")))


def _narrow(argument: Any, makers: dict[int, Call], values: list[Tensor], views: list[Call], dtype: torch.dtype) -> Any:
    """What an argument is a copy of in this, wider dtype; the argument itself if it is none."""
    made = _made_so(argument, makers, lambda made: made.op is _aten._to_copy.default and set(made.kwargs) == {"dtype"})
    if made is None or _value(argument, values).dtype != dtype:
        return argument
    if _value(made.args[0], values).dtype not in _NARROWER.get(dtype, ()):
        return argument
    return _read_by(made, values, views)


def _made_so(argument: Any, makers: dict[int, Call], is_such: Callable[[Call], bool]) -> Call | None:
    """The call whose result an argument is, if it is such a call."""
    made = makers.get(argument.slot) if isinstance(argument, Value) else None
    return made if made is not None and is_such(made) else None


def _read_by(made: Call, values: list[Tensor], views: list[Call]) -> Value:
    """What a call reads, as a view with the strides of what it makes where they differ along dimensions of one entry alone.

    There strides lead nowhere, but torch orders dimensions by them.
    """
    source, (slot,) = made.args[0], made.results
    read, result = values[source.slot], values[slot]
    if read.stride() == result.stride() or _steps(read) != _steps(result):
        return source
    return _laid_out(source, list(result.stride()), values, views)


def _laid_out(source: Value, steps: list[int], values: list[Tensor], views: list[Call]) -> Value:
    """A value as a view of the same shape, with other strides."""
    read = values[source.slot]
    if list(read.stride()) == steps:
        return source
    laid = list(read.shape), steps, int(read.storage_offset())
    values.append(read.as_strided(*laid))
    views.append(Call(torch.as_strided, [source, *laid], {}, (len(values) - 1,), is_one=True))
    return Value(len(values) - 1)


def _steps(tensor: Tensor) -> list[int]:
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def _value(argument: Any, values: Sequence[Tensor]) -> Any:
    return values[argument.slot] if isinstance(argument, Value) else argument


def _gives_what_lies_alike(call: Call, values: Sequence[Tensor]) -> bool:
    """Whether a call, which is run for it, gives what lies as the recorded result does."""
    old = values[call.results[0]]
    new = call.op(*mapped(call.args, lambda leaf: _value(leaf, values)))
    return (new.dtype, new.shape, new.stride()) == (old.dtype, old.shape, old.stride())
