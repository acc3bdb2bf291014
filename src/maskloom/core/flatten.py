"""Flatten callables and containers into leaves, and rebuild them with other values."""

import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Iterable, MutableMapping
from typing import Any

from torch import Tensor

Flattened = tuple[Hashable, tuple[Any, ...], Callable[[tuple[Any, ...]], Any]]


def flatten(held: Any) -> Flattened | None:
    """The kind of ``held``, the values in it, and a function that rebuilds it from such values; None for a leaf."""
    flattener = _flattener(type(held))  # type: ignore[arg-type]
    return None if flattener is None else flattener(held)


def is_frozen(held: Any) -> bool:
    """Whether it is a frozen dataclass."""
    return _is_frozen(type(held))  # type: ignore[arg-type]


@functools.lru_cache(1024)
def _is_frozen(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


@functools.lru_cache(1024)
def is_our_value(kind: type) -> bool:
    """Whether objects of a type are values of maskloom, all of which lies in their ``__dict__``."""
    is_ours = _is_frozen(kind) and getattr(kind, "is_ours", False)
    return is_ours and _flattener(kind) is _flatten_object and not _slots(kind)


@functools.lru_cache(1024)
def _flattener(kind: type) -> Callable[[Any], Flattened | None] | None:
    """The function that flattens objects of a type; None for leaves. Cached: attention asks for the same few types."""
    if issubclass(kind, (Tensor, type, types.ModuleType)):
        return None
    for kinds, flattener in _FLATTENERS.items():
        if issubclass(kind, kinds):
            return flattener
    if dataclasses.is_dataclass(kind):
        return _flatten_object
    return _flatten_callable if issubclass(kind, Callable) else None  # type: ignore[arg-type]


def _flatten_sequence(held: tuple[Any, ...] | list[Any]) -> Flattened:
    unflatten = getattr(type(held), "_make", type(held))  # a NamedTuple takes its fields as separate arguments
    return (type(held), len(held)), tuple(held), unflatten


def _flatten_mapping(held: MutableMapping[Any, Any]) -> Flattened:
    keys = tuple(held)
    return (type(held), keys), tuple(held.values()), functools.partial(_rebuilt_mapping, held, keys)


def _flatten_partial(held: functools.partial[Any]) -> Flattened:
    parts = (held.func, held.args, held.keywords)
    return functools.partial, parts, lambda values: functools.partial(values[0], *values[1], **values[2])


def _flatten_method(held: types.MethodType) -> Flattened:
    return types.MethodType, (held.__func__, held.__self__), lambda values: types.MethodType(*values)


def _flatten_function(function: types.FunctionType) -> Flattened:
    cells = function.__closure__ or ()
    contents = tuple(cell.cell_contents for cell in cells if not _is_empty(cell))
    values = (contents, function.__defaults__, function.__kwdefaults__)

    def unflatten(values: tuple[Any, ...]) -> types.FunctionType:
        filled = iter(values[0])
        new_cells = tuple(cell if _is_empty(cell) else types.CellType(next(filled)) for cell in cells)
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, values[1], new_cells)
        new.__kwdefaults__ = values[2]
        new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
        new.__dict__.update(function.__dict__)
        return new

    return (types.FunctionType, function.__code__), values, unflatten


def _flatten_object(held: Any) -> Flattened:
    keys = _attributes(held)
    return (type(held), keys), tuple([getattr(held, key) for key in keys]), functools.partial(_rebuilt, held, keys)


def _flatten_callable(held: Any) -> Flattened | None:
    return _flatten_object(held) if _attributes(held) else None


_FLATTENERS: dict[Any, Callable[[Any], Flattened | None]] = {
    (tuple, list): _flatten_sequence,
    MutableMapping: _flatten_mapping,
    functools.partial: _flatten_partial,
    types.MethodType: _flatten_method,
    types.FunctionType: _flatten_function,
}


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _attributes(held: Any) -> tuple[str, ...]:
    """Names of the attributes that an object stores in ``__dict__`` or in slots."""
    slots = _slots(type(held))  # type: ignore[arg-type]
    fields = tuple(getattr(held, "__dict__", ()))
    return (*fields, *[name for name in slots if hasattr(held, name)]) if slots else fields


@functools.lru_cache(1024)
def _slots(kind: type) -> tuple[str, ...]:
    names = [name for base in kind.__mro__ for name in _listed(getattr(base, "__slots__", ()))]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _listed(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _rebuilt(held: object, keys: tuple[str, ...], values: tuple[Any, ...]) -> object:
    new = _copied(held)
    for key, value in zip(keys, values, strict=True):
        object.__setattr__(new, key, value)  # works for frozen dataclasses too
    return new


def _rebuilt_mapping(held: MutableMapping[Any, Any], keys: tuple[Any, ...], values: tuple[Any, ...]) -> Any:
    before = [held[key] for key in keys]
    new = _copied(held)
    new.update(zip(keys, values, strict=True))
    if any(held[key] is not value for key, value in zip(keys, before, strict=True)):
        held.update(zip(keys, before, strict=True))
        raise _cannot_be_copied(held)
    return new


def _copied(held: Any) -> Any:
    new = copy.copy(held)
    if new is held:
        raise _cannot_be_copied(held)
    return new


def _cannot_be_copied(held: object) -> TypeError:
    kind = type(held)
    return TypeError(
        f"a mask with other tensors is to be made of one that holds an object of {kind.__module__}.{kind.__qualname__}, whose "
        "copy.copy shares what it holds with the original; give that class a __copy__ of its own, or hold something else"
    )
