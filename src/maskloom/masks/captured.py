"""What a mask_mod holds: the tensors and numbers that its fields, closures and arguments reach.

A mask_mod may be a Mask, a closure, a ``functools.partial``, a bound method or any callable object, nested in any way.
One function here knows how to open each kind (`_open`); all else is a short walk over it. What a function reads from its
module's globals is not captured.
"""

import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_Opened = tuple[Hashable, tuple[Any, ...], Callable[[tuple[Any, ...]], Any]]


def tensors(held: object) -> list[Tensor]:
    """Every tensor that ``held`` captures, each once, in a fixed order."""
    found: dict[int, Tensor] = {}
    for leaf in _leaves(held, set()):
        if isinstance(leaf, Tensor):
            found.setdefault(id(leaf), leaf)
    return list(found.values())


def device_of(held: object) -> torch.device | None:
    """The device of the captured tensors that have a dimension, None where there is none.

    Raises:
        ValueError: they lie on more than one device.
    """
    devices = {tensor.device for tensor in tensors(held) if tensor.ndim}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"the mask's tensors lie on several devices ({names}); move them with mask.to(device)")
    return devices.pop() if devices else None


def moved(held: T, change: Callable[[Tensor], Tensor]) -> T:
    """A copy of ``held`` with every captured tensor replaced by ``change(tensor)``; itself if nothing changes.

    A tensor that is held twice is changed once, so that it stays one tensor.
    """
    return _moved(held, change, {}, set())


def structure(held: object, *, numbers: bool) -> Hashable:
    """A key that is equal for two mask_mods exactly if one compiled graph can serve both.

    Tensors count by dtype, device, rank and which of their sizes are 1 (torch.compile treats those as constants), never
    by value. Python numbers count by type, and by value too if ``numbers``.
    """
    return _structure(held, numbers, {}, set())


def has_numbers(held: object) -> bool:
    """Whether any captured value is a Python int or float."""
    return any(type(leaf) in (int, float) for leaf in _leaves(held, set()))


def _open(held: object) -> _Opened | None:
    """The kind of ``held``, what it holds, and how to make it anew from such values; None for a leaf."""
    if isinstance(held, (Tensor, type, types.ModuleType)):
        return None
    if isinstance(held, (tuple, list)) and type(held) in (tuple, list):
        return (type(held), len(held)), tuple(held), type(held)
    if type(held) is dict:
        keys = tuple(held)
        return (dict, keys), tuple(held.values()), lambda values: dict(zip(keys, values, strict=True))
    if isinstance(held, functools.partial):
        parts = (held.func, held.args, held.keywords)
        return functools.partial, parts, lambda values: functools.partial(values[0], *values[1], **values[2])
    if isinstance(held, types.MethodType):
        return types.MethodType, (held.__func__, held.__self__), lambda values: types.MethodType(*values)
    if isinstance(held, types.FunctionType):
        return _open_function(held)
    if dataclasses.is_dataclass(held) or (callable(held) and hasattr(held, "__dict__")):
        state = vars(held)
        keys = tuple(state)
        return (type(held), keys), tuple(state.values()), functools.partial(_remade, held, keys)
    return None


def _open_function(function: types.FunctionType) -> _Opened:
    cells = function.__closure__ or ()
    contents = tuple(cell.cell_contents for cell in cells if not _is_empty(cell))
    values = (contents, function.__defaults__, function.__kwdefaults__)

    def remake(values: tuple[Any, ...]) -> types.FunctionType:
        filled = iter(values[0])
        new_cells = tuple(cell if _is_empty(cell) else types.CellType(next(filled)) for cell in cells)
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, values[1], new_cells)
        new.__kwdefaults__ = values[2]
        functools.update_wrapper(new, function)
        return new

    return (types.FunctionType, function.__code__), values, remake


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _remade(held: object, keys: tuple[str, ...], values: tuple[Any, ...]) -> object:
    new = copy.copy(held)
    vars(new).update(zip(keys, values, strict=True))
    return new


def _leaves(held: object, seen: set[int]) -> Iterator[Any]:
    opened = _open(held)
    if opened is None:
        yield held
    elif id(held) not in seen:  # a recursive closure holds itself
        seen.add(id(held))
        for value in opened[1]:
            yield from _leaves(value, seen)


def _moved(held: Any, change: Callable[[Tensor], Tensor], done: dict[int, Tensor], above: set[int]) -> Any:
    if isinstance(held, Tensor):
        if id(held) not in done:
            done[id(held)] = change(held)
        return done[id(held)]
    opened = _open(held)
    if opened is None or id(held) in above:
        return held
    _, values, remake = opened
    new = tuple(_moved(value, change, done, above | {id(held)}) for value in values)
    same = all(before is after for before, after in zip(values, new, strict=True))
    return held if same else remake(new)


def _structure(held: object, numbers: bool, order: dict[int, int], above: set[int]) -> Hashable:
    if isinstance(held, Tensor):
        ones = tuple(size == 1 for size in held.shape)
        which = order.setdefault(id(held), len(order))  # two equal tensors are not one tensor held twice
        return (Tensor, which, held.dtype, held.device, ones, held.requires_grad)
    opened = _open(held)
    if opened is None:
        return _leaf_key(held, numbers)
    if id(held) in above:
        return "itself"
    kind, values, _ = opened
    return (kind, *(_structure(value, numbers, order, above | {id(held)}) for value in values))


def _leaf_key(leaf: Any, numbers: bool) -> tuple[type, Any] | type:
    if type(leaf) in (int, float):
        return (type(leaf), leaf) if numbers else type(leaf)
    return type(leaf), (leaf if type(leaf).__hash__ is not None else id(leaf))
