"""Recorded operations as functions of NumPy: one on few values takes a half to a third of the time that torch takes.

Only operations on bools and integers are known here, for which both libraries give the same bits whatever the values.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskloom.blocks.replay.plan import Call
from maskloom.program.program import Value, leaves

MOST_VALUES = 1 << 15
"""Maximum number of values in a tensor: torch divides more of them among its threads."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DTYPES = (torch.bool, *_INTEGERS)
_INDICES = (torch.int8, torch.int16, torch.int32, torch.int64)  # uint8 is a mask to torch

_aten = torch.ops.aten

_UFUNCS: dict[Any, Any] = {
    getattr(_aten, name): getattr(np, known_as)
    for name, known_as in {
        "add": "add", "sub": "subtract", "mul": "multiply", "minimum": "minimum", "maximum": "maximum",
        "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
        "bitwise_and": "bitwise_and", "bitwise_or": "bitwise_or", "bitwise_xor": "bitwise_xor", "bitwise_not": "invert",
        "logical_and": "logical_and", "logical_or": "logical_or", "logical_xor": "logical_xor", "logical_not": "logical_not",
        "where": "where",
    }.items()
}  # fmt: skip

_ANY = np.logical_or.reduce


def on_arrays(calls: Sequence[Call], values: Sequence[Tensor]) -> tuple[Call, ...] | None:
    """The same calls on arrays; None if it is not known of each that NumPy gives what torch gives.

    Args:
        values: the values of a run, by their slots. Each call is tried on them: its result must have torch's dtype, shape
            and strides, because views of it are taken by these.
    """
    if not all(map(_is_known, values)):
        return None
    found = []
    for call in calls:
        new = _on_arrays(call, values)
        if new is None or not _gives(new, values):
            return None
        found.append(new)
    return tuple(found)


def _is_known(value: Tensor) -> bool:
    return (
        type(value) is Tensor and value.device.type == "cpu" and value.dtype in _DTYPES and value.numel() <= MOST_VALUES
    )


def _on_arrays(call: Call, values: Sequence[Tensor]) -> Call | None:
    """The call of NumPy's function for an operation; None if there is none."""
    if not call.is_one or not all(map(_is_known, leaves(call.args, Tensor))):
        return None
    if call.op in _WITH_OTHER_ARGUMENTS:
        return _WITH_OTHER_ARGUMENTS[call.op](call, values)
    ufunc = _UFUNCS.get(getattr(call.op, "overloadpacket", None))
    if ufunc is None or call.kwargs or not _promotes_alike(call.args, values):
        return None
    return call.changed(ufunc, list(map(_array, call.args)))


def _array(argument: Any) -> Any:
    return argument.numpy() if isinstance(argument, Tensor) else argument


def _promotes_alike(arguments: list[Any], values: Sequence[Tensor]) -> bool:
    """Whether both libraries compute in one dtype: not with floats, numbers outside a dtype, tensors without dims beside
    others."""
    given = [values[argument.slot] if isinstance(argument, Value) else argument for argument in arguments]
    tensors = [value for value in given if isinstance(value, Tensor)]
    ranges = [torch.iinfo(tensor.dtype) for tensor in tensors if tensor.dtype in _INTEGERS]
    numbers = [value for value in given if not isinstance(value, Tensor)]
    return (
        (len({tensor.dtype for tensor in tensors}) == 1 or all(tensor.ndim for tensor in tensors))
        and all(type(number) in (bool, int) for number in numbers)
        and all(limits.min <= number <= limits.max for number in numbers for limits in ranges)
    )


def _as_strided(call: Call, values: Sequence[Tensor]) -> Call:
    owner, shape, steps, first = call.args
    tensor = values[owner.slot]
    place = (first - int(tensor.storage_offset())) * tensor.itemsize
    strides = tuple(step * tensor.itemsize for step in steps)
    return call.changed(np.ndarray, [tuple(shape), tensor.numpy().dtype, owner, place, strides])


def _cast(call: Call, values: Sequence[Tensor]) -> Call | None:
    if set(call.kwargs) - {"dtype"}:
        return None
    of_bits = call.op is _aten.view.dtype
    dtype = values[call.results[0]].numpy().dtype
    return call.changed(np.ndarray.view if of_bits else np.ndarray.astype, [call.args[0], dtype])


def _read(call: Call, values: Sequence[Tensor]) -> Call | None:
    """A read at indices that never change: those are inside the table, or torch had raised."""
    table, indices = call.args
    if not all(index is None or (isinstance(index, Tensor) and index.dtype in _INDICES) for index in indices):
        return None
    places = tuple([slice(None) if index is None else index.numpy() for index in indices])
    return call.changed(operator.getitem, [_array(table), places])


def _end(function: Callable[..., Any]) -> Callable[[Call, Sequence[Tensor]], Call | None]:
    def changed(call: Call, values: Sequence[Tensor]) -> Call | None:
        value, dims, *rest = call.args
        return None if rest else call.changed(function, [value, tuple(dims)])

    return changed


def _joined(call: Call, values: Sequence[Tensor]) -> Call:
    parts, *dim = call.args
    return call.changed(np.concatenate, [list(map(_array, parts)), *dim])


def _filled(call: Call, values: Sequence[Tensor]) -> Call:
    value, where, number = map(_array, call.args)
    return call.changed(np.where, [where, number, value])


_WITH_OTHER_ARGUMENTS: dict[Any, Callable[[Call, Sequence[Tensor]], Call | None]] = {
    torch.as_strided: _as_strided,
    _aten.view.dtype: _cast,
    _aten._to_copy.default: _cast,
    _aten.clone.default: lambda call, values: call.changed(
        np.ndarray.copy, call.args
    ),  # contiguous, or it is not torch's
    _aten.index.Tensor: _read,
    _aten.any.default: lambda call, values: call.changed(_ANY, [*call.args, None]),
    _aten.amin.default: _end(np.minimum.reduce),
    _aten.amax.default: _end(np.maximum.reduce),
    _aten.cat.default: _joined,
    _aten.masked_fill.Scalar: _filled,
}


def _gives(call: Call, values: Sequence[Tensor]) -> bool:
    """Whether the call gives what torch gave in the run."""
    theirs = values[call.results[0]].numpy()
    if not theirs.ndim and call.op is not _ANY:  # NumPy warns of numbers that wrap around
        return False
    try:
        ours = np.asarray(call.op(*[_in_run(argument, values) for argument in call.args]))
    except (TypeError, ValueError, OverflowError):  # a number outside the dtype, memory with gaps
        return False
    same = ours.dtype == theirs.dtype and ours.shape == theirs.shape and _steps(ours) == _steps(theirs)
    return same and np.array_equal(ours, theirs)


def _in_run(argument: Any, values: Sequence[Tensor]) -> Any:
    if isinstance(argument, list):
        return [_in_run(item, values) for item in argument]
    return values[argument.slot].numpy() if isinstance(argument, Value) else argument


def _steps(array: np.ndarray[Any, Any]) -> list[int]:
    """The strides of the dims that are longer than 1."""
    return [step for step, size in zip(array.strides, array.shape, strict=True) if size > 1]
