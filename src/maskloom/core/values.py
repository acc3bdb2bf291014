"""The base of masks and score mods: values that can be compared, printed, moved and pickled."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.pickling import stand_in
from maskloom.core.symbols import as_tensor, is_dynamic, is_int, known
from maskloom.core.torch_state import counting_writes

C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def value(cls: C) -> C:
    """Make a subclass of FrozenValue a frozen dataclass; it keeps equality, hash and repr, which torch can trace."""
    made: Any = dataclass(frozen=True, eq=False, repr=False)(cls)
    made.is_decorated = True
    made.numbers = tuple(field.name for field in dataclasses.fields(made) if "Tensor" in str(field.type))
    return made


class FrozenValue:
    """An immutable value. Tensors in its fields are compared by their values, and printed by dtype and shape."""

    name: ClassVar[str]
    """The name that `repr` prints: the public function that makes such a value; by default the name of the class."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """The fields whose type annotation contains Tensor: ``int | Tensor`` and the like. See `numbers_as_tensors`."""

    decorator: ClassVar[str] = "maskloom.core.values.value"
    """The decorator of its subclasses, as errors name it."""
    is_decorated: ClassVar[bool] = False
    """Whether equality, hash, copies and what is kept for it know all that it holds: a subclass that adds fields is decorated too."""

    is_ours: ClassVar[bool] = False
    """Whether its class is one of maskloom's own. These are known to broadcast; other classes need not."""

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", cls.__name__)
        if any(name in vars(cls) for name in _ADDS):
            cls.is_decorated = False  # until the decorator has run
        cls.is_ours = cls.__module__.partition(".")[0] == "maskloom"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(map(_same, _fields(self), _fields(other)))

    def __hash__(self) -> int:
        return hash((type(self), *map(_hashable, _fields(self))))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(shown, _fields(self)))})"

    @property
    def __name__(self) -> str:  # what torch.vmap and BlockMask's repr call a function
        return type(self).__qualname__ if torch.compiler.is_dynamo_compiling() else repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return stand_in(self) or super().__reduce_ex__(protocol)

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    @counting_writes
    def to(self, device: torch.device | str) -> Self:
        """The same value with its tensors on ``device``; the value itself if they are there already.

        Raises:
            TypeError: no device, a dtype say. ValueError: there is no such device.
        """
        there = captures.checked_device(device)
        return captures.copied(self, lambda tensor: tensor.to(there))


_ADDS = ("__init__", "__annotations__", "__annotate__", "__annotate_func__")  # the last two of Python 3.14


def undecorated(held: FrozenValue) -> TypeError:
    """The error for a value of a class that was not decorated, or adds to one that was."""
    kind = "Mask" if held.decorator.startswith("maskloom.masks") else "score_mod of a class"
    return TypeError(f"a {kind} is a frozen dataclass; decorate {type(held).__name__} with {held.decorator}")


def shown(field: Any) -> str:
    """A field as repr prints it; a tensor by dtype and shape, so that repr does not wait for a device."""
    if isinstance(field, Tensor):
        return f"{str(field.dtype).removeprefix('torch.')}{list(field.shape)}"
    return repr(field)


V = TypeVar("V")


def numbers_as_tensors(held: V, device: torch.device | str) -> V:
    """A mask or score_mod that a kernel can capture while torch traces: symbols become tensors without dimensions.

    This holds for fields typed ``int | Tensor`` (or a tuple of those), also in nested values. An int that is constant
    in the trace stays an int, and so does an int in a field typed ``int``; what functions hold is not changed. This is
    the only place where an int becomes a tensor; `maskloom.core.symbols` explains symbols.
    """
    return _with_tensors(held, True, device) if _holds_symbols(held, True) else held


def with_tensors_in_memory(held: V) -> V:
    """A mask or score_mod of whose tensors torch.compile keeps each in memory of its own, for a kernel without gradients to read.

    What a graph computes, the kernel (torch 2.11 to 2.13) computes again for each pair of positions, unless the graph's backward
    needs it too; of what follows from a sum, a cumulative sum, a search or a padded tensor it cannot, and Inductor fails. A
    view by strides is what Inductor lays into memory first. It must be one of a whole tensor: of a part of another, Inductor takes it to
    begin where that begins. So it is of a copy, which Inductor does not see through, as it does through ``clone``. What functions hold is
    not changed, nor are large tables: few graphs compute these, and all would copy them.
    """
    return _in_memory(held, [])


_MOST_COPIED = 1 << 22
"""Maximum entries of a tensor that is copied."""


def _in_memory(held: Any, done: list[tuple[Tensor, Tensor]]) -> Any:
    """``done``: tensors, and what stands in their places: one tensor stays one."""
    if isinstance(held, Tensor):
        if not held.ndim or known(held.numel() > _MOST_COPIED):
            return held
        for one, own in done:
            if one is held:
                return own
        own = torch.minimum(held, held)
        done.append((held, own.as_strided(own.shape, own.stride())))
        return done[-1][1]
    if isinstance(held, tuple):
        return tuple([_in_memory(item, done) for item in held])
    if isinstance(held, FrozenValue) and captures.tensors_of_fields(held):
        return _with_fields(held, lambda name, field: _in_memory(field, done))
    return held


def _with_fields(held: Any, change: Callable[[str, Any], Any]) -> Any:
    """The same value with other fields, also those that its class takes by name alone, or makes itself."""
    new = object.__new__(type(held))
    for name in _names(held):
        object.__setattr__(new, name, change(name, getattr(held, name)))
    return new


def holds_function(held: Any) -> bool:
    """Whether it is or holds a function or a user's class: these take scalars. Our classes also take tensors."""
    if isinstance(held, tuple):
        return any(holds_function(item) for item in held)
    if isinstance(held, FrozenValue):
        return not held.is_ours or any(holds_function(field) for field in _fields(held))
    return callable(held)


def _holds_symbols(held: Any, may_change: bool) -> bool:
    if isinstance(held, tuple):
        return any(_holds_symbols(item, may_change) for item in held)
    if isinstance(held, FrozenValue):
        return any(_holds_symbols(getattr(held, name), name in held.numbers) for name in _names(held))
    return may_change and is_int(held) and is_dynamic(held)


def _with_tensors(held: Any, may_change: bool, device: torch.device | str) -> Any:
    if isinstance(held, tuple):
        return tuple([_with_tensors(item, may_change, device) for item in held])
    if isinstance(held, FrozenValue):
        return _with_fields(held, lambda name, field: _with_tensors(field, name in held.numbers, device))
    return as_tensor(held, device) if may_change and is_int(held) and is_dynamic(held) else held


def _names(held: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(held)]


def _fields(held: Any) -> list[Any]:
    # torch 2.11 hashes values that are made in a compiled region before their fields are set
    if not dataclasses.is_dataclass(held):
        raise undecorated(held)
    return [getattr(held, field.name, None) for field in dataclasses.fields(held)]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape and left.device == right.device
        return left is right or (alike and torch.equal(left, right))
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and left == right


def _hashable(field: Any) -> Any:
    # equal tensors have equal dtypes and shapes; values are not read, so that hashing never waits for a device
    if isinstance(field, Tensor):
        return field.dtype, field.shape
    return field if type(field).__hash__ is not None else type(field)
