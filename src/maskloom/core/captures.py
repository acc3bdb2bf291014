"""The captures of a mask_mod: the tensors and numbers that its fields, closures and arguments reach.

A mask_mod may be a Mask, a closure, a ``functools.partial``, a bound method or any callable object, nested in any way.
`flatten` knows the contents of each kind; everything here walks over them. What a function reads from its module's
globals is not captured.

Attention asks the same questions about a mask at every call. An object that never changes (a Mask that holds no
function) is walked once; any other object is walked again every time.
"""

import dataclasses
import enum
import functools
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from maskloom.core.flatten import Flattened, flatten, is_frozen, is_our_value
from maskloom.core.symbols import is_int
from maskloom.core.weak_table import IdentityTable
from maskloom.core.words import brief

T = TypeVar("T")


def tensors(held: object) -> list[Tensor]:
    """Every tensor that ``held`` captures, each once, in a fixed order."""
    return list(facts_of(held).tensors)


def tensors_of_fields(held: object) -> list[Tensor]:
    """Its tensors, but for those that functions capture: while torch traces, what a function in a field captures is unknown."""
    return [leaf for leaf in _leaves_of_fields(held) if isinstance(leaf, Tensor)]


def device_of(held: object, what: str = "mask") -> torch.device | None:
    """The device of the captured tensors that have dimensions; None without any. Errors call the object ``what``.

    Raises:
        TypeError: one of the tensors is a DTensor. ValueError: they lie on more than one device.
    """
    found = facts_of(held)
    if found.holds_dtensors:
        raise TypeError(
            f"the {what} holds a DTensor; give it the part of this device, tensor.to_local(), or all, tensor.full_tensor()"
        )
    devices = {tensor.device for tensor in found.tensors if tensor.ndim}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"the {what}'s tensors lie on several devices ({names}); move them with {what}.to(device)")
    return devices.pop() if devices else None


def device_for(held: object, device: torch.device | str | None) -> torch.device:
    """The device to build a block mask on: the given one, else that of the mask's tensors, else the current accelerator, else the CPU.

    Raises:
        TypeError: no device. ValueError: there is no such device, or the mask's tensors are on another one, or on several.
    """
    there = device_of(held)
    if device is None:
        return there or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    asked = checked_device(device)
    if there is not None and there != asked:
        raise ValueError(
            f"the mask's tensors lie on {there}, and the block mask is to be built on {asked}; move one to the other: "
            f"mask.to({str(asked)!r}), or device={str(there)!r}. In a module, a maskloom.nn.Holder moves the mask with it"
        )
    return asked


def checked_device(device: torch.device | str | int) -> torch.device:
    """A device with its number, "cuda" as "cuda:0"; a TypeError for what is none, a ValueError where there is no such device."""
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise TypeError(f"device is a torch.device or its name, 'cpu' or 'cuda:0' say; got {brief(device)}")
    if torch.compiler.is_dynamo_compiling():
        return torch.empty(0, device=device).device
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        first_line, *_ = str(error).splitlines() or [""]
        raise ValueError(f"device is one that torch has here; got {brief(device)}: {first_line}") from None


def is_dtensor(held: object) -> bool:
    """Whether it is torch's DTensor. Checked by attributes, because its module takes a second to load."""
    return isinstance(held, Tensor) and hasattr(held, "device_mesh") and hasattr(held, "to_local")


def moved(held: T, change: Callable[[Any], Any], of: type = Tensor) -> T:
    """A copy of ``held`` with every captured tensor replaced by ``change(tensor)``; ``held`` itself if nothing changes.

    An object that is held twice is changed once, and stays one object. If ``of`` is another type than Tensor, objects
    of that type are replaced instead, inner ones first.
    """
    return _moved(held, change, of, {})


def copied(held: T, copy: Callable[[Tensor], Tensor]) -> T:
    """`moved` to copies that hold the same values, of which all remarks are then."""
    copies: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        copies[id(tensor)] = copy(tensor)
        return copies[id(tensor)]

    return moved(moved(held, made), lambda remark: remark.of_copies(copies), of=Remark)


def structure(*held: object, numbers: bool) -> Hashable:
    """A key. It is equal for two mask_mods (or mask_mods with score_mods) exactly if one compiled graph can serve both.

    The key has a tensor's dtype, device, rank, requires_grad and which of its sizes are 1 (torch.compile treats those
    as constants), never its values. It has the type of an int, and its value if ``numbers``; the value of a float; and
    the type of an object that is not flattened: torch.compile itself guards what is read from it.
    """
    facts = [facts_of(one) for one in held]
    keys = _tensor_keys([tensor for fact in facts for tensor in fact.tensors])
    return *keys, *(fact.skeleton(one, numbers) for one, fact in zip(held, facts, strict=True))


def tensors_and_key(held: object) -> tuple[list[Tensor], Hashable | None]:
    """Its `tensors`, and a key that is equal for all objects that do the same with the values of theirs.

    No tensors and None if `structure` with numbers and the tensors do not describe it fully; see `is_plain`.
    """
    facts = facts_of(held)
    return (list(facts.tensors), structure(held, numbers=True)) if facts.is_plain else ([], None)


def has_numbers(*held: object) -> bool:
    """Whether any captured value is a Python int or float."""
    return any(not {int, float}.isdisjoint(facts_of(one).kinds) for one in held)


def has_floats(*held: object) -> bool:
    """Whether any captured value is a Python float."""
    return any(float in facts_of(one).kinds for one in held)


def holds_code(held: object) -> bool:
    """Whether it holds a function, or another callable that is not a frozen dataclass, and so may read anything."""
    return facts_of(held).holds_code


def may_change(held: object) -> bool:
    """Whether its behaviour can change other than by in-place writes to its tensors, while it stays the same object.

    True for a function, which may read anything, for a list or a dict, and for any object not known to be constant.
    """
    return facts_of(held).may_change


def is_plain(held: object) -> bool:
    """Whether `structure` with numbers and the values of its tensors describe it fully: no code, no unknown object."""
    return facts_of(held).is_plain


def is_as_known(held: object) -> bool:
    """Whether it still holds what it held when `structure` with numbers was first called on it.

    A constant object may still have cached something computed from itself (``cached_property``).
    """
    return facts_of(held).skeleton(held, True) == _structure(held, True, {})


# -- what one walk over an object finds --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about an object; they do not depend on the values, shapes, dtypes, devices or gradients of its tensors.

    Attributes:
        tensors: each tensor once, in the order of the walk.
        kinds: the types of all leaves.
        holds_dtensors: whether one of the tensors is distributed over devices.
        remarks: as often as they stand in it, in the order of the walk.
    """

    tensors: tuple[Tensor, ...]
    kinds: frozenset[type]
    holds_code: bool
    may_change: bool
    is_plain: bool
    holds_dtensors: bool
    searches: bool
    remarks: tuple["Remark", ...] = ()
    _skeletons: dict[bool, Hashable] = dataclasses.field(default_factory=dict)

    def skeleton(self, held: object, numbers: bool) -> Hashable:
        """Its `structure`, without the state of its tensors."""
        if numbers not in self._skeletons:
            self._skeletons[numbers] = _structure(held, numbers, {})
        return self._skeletons[numbers]

    def with_others(self, tensors: tuple[Tensor, ...], remarks: tuple["Remark", ...]) -> "Facts":
        """The facts about an object of the same structure, which holds these."""
        new = object.__new__(Facts)  # in a third of the time that dataclasses.replace takes
        vars(new).update(vars(self), tensors=tensors, remarks=remarks)
        return new


_all_facts: IdentityTable[Facts] = IdentityTable()


def facts_of(held: object) -> Facts:
    """The facts about an object; cached with a constant object as long as it lives."""
    if torch.compiler.is_dynamo_compiling():
        return _in_trace(held)
    found = _all_facts.get(held)
    if found is None:
        found = _of_the_same_kind(held) or _found_in(held)
        if is_constant(held, found):
            _all_facts.put(held, found)
    return found


def is_constant(held: object, facts: Facts) -> bool:
    """Whether what is known of an object can be kept beside it."""
    return not facts.may_change and is_frozen(held) and type(held).__weakrefoffset__ != 0


def facts_now(held: object) -> Facts:
    """The facts about an object, with its `structure`, as it is now: what it caches in itself later is no part of them."""
    found = _found_in(held)
    for numbers in (True, False):
        found.skeleton(held, numbers)
    return found


_facts_of_kinds: dict[Hashable, Facts] = {}

_MOST_KINDS = 1024


def _of_the_same_kind(held: object) -> Facts | None:
    """The facts about an object, from those about another of the same kind; None where numbers and types do not describe it.

    A training step makes a new mask of the same kind, and a walk over that takes longer than some kernels.
    """
    tensors: list[Tensor] = []
    remarks: list[Remark] = []
    try:
        kind = _kind_of(held, {}, tensors, remarks)
    except _NotDescribedError:
        return None
    known = _facts_of_kinds.get(kind)
    if known is None:
        if len(_facts_of_kinds) >= _MOST_KINDS:
            _facts_of_kinds.clear()
        known = _facts_of_kinds[kind] = facts_now(held).with_others((), ())
    return known.with_others(tuple(tensors), tuple(remarks))


class _NotDescribedError(Exception):
    """An object is no number, tensor, tuple or value of maskloom."""


def _kind_of(held: Any, seen: dict[int, int], tensors: list[Tensor], remarks: list["Remark"]) -> Any:
    """All that facts depend on; tensors and remarks are listed in the order of `_walked`."""
    kind: Any = type(held)
    if kind in _NUMBERS:
        return kind, repr(held) if kind is float else held
    if isinstance(held, Remark):
        remarks.append(held)
        return kind
    if id(held) in seen:
        return "the same as", seen[id(held)]
    seen[id(held)] = len(seen)
    if kind in _TENSORS:
        tensors.append(held)
        return kind
    if kind is tuple:
        return kind, *[_kind_of(value, seen, tensors, remarks) for value in held]
    if not is_our_value(kind):
        raise _NotDescribedError
    fields = vars(held)
    return kind, *fields, *[_kind_of(value, seen, tensors, remarks) for value in fields.values()]


_NUMBERS = frozenset((int, bool, float, str, type(None), torch.dtype, torch.device))
_TENSORS = frozenset((Tensor, torch.nn.Parameter))


def know(held: object, facts: Facts) -> None:
    """Keep the facts about a constant object, which follow from those of one of the same structure."""
    _all_facts.put(held, facts)


def _in_trace(held: object) -> Facts:
    """`facts_of` a value while torch traces, which cannot follow `flatten`: of a function made there, 2.13 cannot either. What a function
    captures is not among the tensors."""
    has_code = any(callable(leaf) for leaf in _leaves_of_fields(held))
    found = tuple(tensors_of_fields(held))
    return Facts(
        found, frozenset(), holds_code=has_code, may_change=has_code, is_plain=not has_code,
        holds_dtensors=any(map(is_dtensor, found)), searches=False,
    )  # fmt: skip


def _leaves_of_fields(held: Any) -> list[Any]:
    inner: Iterable[Any]
    if held is None or isinstance(held, (Tensor, *_VALUES, *_FUNCTIONS, int, torch.SymInt)):
        return [held]  # torch 2.11 cannot ask there whether their classes are dataclasses
    if isinstance(held, (tuple, list)):
        inner = held
    elif dataclasses.is_dataclass(held):
        inner = [getattr(held, field.name) for field in dataclasses.fields(held)]
    else:
        return [held]
    return [leaf for item in inner for leaf in _leaves_of_fields(item)]


def _found_in(held: object) -> Facts:
    walked = list(_walked(held))
    leaves = [found for found, inside in walked if inside is None]
    others = [found for found, _ in walked if not is_frozen(found)]
    return Facts(
        tensors=tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)),
        kinds=frozenset(map(type, leaves)),
        holds_code=any(map(callable, others)),
        may_change=not all(isinstance(found, _UNCHANGING) for found in others),
        is_plain=all(isinstance(found, _PLAIN) for found in others),
        holds_dtensors=any(map(is_dtensor, leaves)),
        searches=any(getattr(type(found), "searches", False) for found, _ in walked),
        remarks=tuple(leaf for leaf in leaves if isinstance(leaf, Remark)),
    )


def _tensor_keys(found: list[Tensor]) -> list[Hashable]:
    """The tensors' part of `structure`: two equal tensors differ from one tensor that is held twice."""
    places = {id(tensor): place for place, tensor in reversed(list(enumerate(found)))}
    return [
        _tensor_key(tensor) if places[id(tensor)] == place else ("the same as", places[id(tensor)])
        for place, tensor in enumerate(found)
    ]


def _tensor_key(tensor: Tensor) -> Hashable:
    return tensor.dtype, tensor.device, sizes_of_one(tensor), tensor.requires_grad


def sizes_of_one(tensor: Tensor) -> tuple[bool, ...]:
    """Which of its sizes are 1: torch.compile treats those as constants, and other sizes as dynamic."""
    return tuple([size == 1 for size in tensor.shape])


def _walked(held: object) -> Iterator[tuple[Any, Flattened | None]]:
    """Everything that ``held`` reaches, itself first, each once (a closure may hold itself), with its `flatten`."""
    seen: dict[int, object] = {}  # keeps them alive, so that no id is reused
    seen_in_trace: list[object] = []  # where an id would tie the graph to this very object
    tracing = torch.compiler.is_dynamo_compiling()
    waiting = [held]
    while waiting:
        found = waiting.pop()
        if is_int(found) or isinstance(
            found, Remark
        ):  # a leaf; an int's id would make a constant of one that torch traces
            yield found, None
            continue
        if tracing and isinstance(found, (tuple, list, dict)):
            pass  # there `is` knows none of these; what holds itself does it by a function or an object too
        elif tracing:
            if any(found is other for other in seen_in_trace):
                continue
            seen_in_trace.append(found)
        elif id(found) in seen:
            continue
        else:
            seen[id(found)] = found
        inside = flatten(found)
        yield found, inside
        if inside is not None:
            waiting.extend(reversed(inside[1]))


def _moved(held: Any, change: Callable[[Any], Any], of: type, done: dict[int, tuple[Any, Any]]) -> Any:
    if id(held) in done:
        return done[id(held)][1]
    inside = flatten(held)
    done[id(held)] = (held, held)  # an object that holds itself keeps the old one inside
    new = held
    if inside is not None:
        _, values, unflatten = inside
        changed = tuple(_moved(value, change, of, done) for value in values)
        same = all(before is after for before, after in zip(values, changed, strict=True))
        new = held if same else unflatten(changed)
    if isinstance(new, of):
        new = change(new)
    done[id(held)] = (held, new)
    return new


def _structure(held: object, numbers: bool, seen: dict[int, tuple[object, int]]) -> Hashable:
    inside = flatten(held)
    if inside is None and not isinstance(held, Tensor):
        return _leaf_key(held, numbers)
    if id(held) in seen:  # two equal tensors differ from one tensor that is held twice
        return "the same as", seen[id(held)][1]
    seen[id(held)] = (held, len(seen))
    if isinstance(held, Tensor):
        return Tensor
    assert inside is not None
    kind, values, _ = inside
    return kind, *(_structure(value, numbers, seen) for value in values)


def _leaf_key(leaf: Any, numbers: bool) -> tuple[type, Any] | type:
    by_value = (*_CONSTANTS, int) if numbers else _CONSTANTS
    if isinstance(leaf, float):
        return type(leaf), repr(leaf)  # 0.0 and -0.0 are equal, and NaN is not equal to itself
    return (type(leaf), leaf) if isinstance(leaf, by_value) else type(leaf)


class Opaque:
    """Base of objects that never change, hold no tensor, and are fully described by the other fields beside them."""


class Remark(Opaque):
    """Base of what is known of tensors that stand beside it: objects of one structure each have their own."""

    def of_copies(self, copies: Mapping[int, Tensor]) -> "Remark":
        """The same of copies that hold the same values: by the id of each tensor, its copy."""
        return self


_VALUES = (bool, float, str, bytes, type(None), torch.dtype, torch.device, enum.Enum)
_CONSTANTS = (*_VALUES, type, types.BuiltinFunctionType)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_UNCHANGING = (*_VALUES, Opaque, Tensor, tuple, frozenset, int, complex)
_PLAIN = (*_CONSTANTS, Opaque, Tensor, tuple, int)
