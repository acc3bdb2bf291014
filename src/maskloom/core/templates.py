"""An object without its tensors: made once of one that holds some, and filled with others of the same places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from torch import Tensor

from maskloom.core import captures
from maskloom.core.flatten import flatten

T = TypeVar("T")

_Made = dict[int, Any]
_Filler = Callable[[Sequence[Tensor], _Made], Any]


@dataclass(frozen=True)
class Slot(captures.Opaque):
    """The place of a tensor."""

    number: int


class Template(Generic[T]):
    """What an object is but for its tensors; `template_of` makes one."""

    def __init__(self, held: T) -> None:
        self._held = held
        self._filler = _filler_of(held, {})

    def filled(self, tensors: Sequence[Tensor]) -> T:
        """The object with these tensors in its slots."""
        return self._held if self._filler is None else cast(T, self._filler(tensors, {}))


def template_of(held: T, tensors: Sequence[Tensor]) -> Template[T] | None:
    """The template of an object, whose slots are numbered as ``tensors`` are; None if it holds another tensor."""
    places = {id(tensor): Slot(number) for number, tensor in enumerate(tensors)}
    if not all(id(tensor) in places for tensor in captures.tensors(held)):
        return None
    return Template(captures.moved(held, lambda tensor: places[id(tensor)]))


def _filler_of(held: Any, known: dict[int, _Filler | None]) -> _Filler | None:
    """What makes the object anew; None where no slot is in it. What it holds twice is made once."""
    if id(held) in known:
        return known[id(held)]
    filler: _Filler | None = None
    inside = None if isinstance(held, Slot) else flatten(held)
    if isinstance(held, Slot):
        number = held.number
        filler = lambda tensors, made: tensors[number]  # noqa: E731
    elif inside is not None:
        _, values, unflatten = inside
        fillers = [_filler_of(value, known) for value in values]
        if any(fillers):
            filler = _once(id(held), tuple(zip(values, fillers, strict=True)), unflatten)
    known[id(held)] = filler
    return filler


def _once(
    name: int, parts: tuple[tuple[Any, _Filler | None], ...], unflatten: Callable[[tuple[Any, ...]], Any]
) -> _Filler:
    def filler(tensors: Sequence[Tensor], made: _Made) -> Any:
        if name not in made:
            made[name] = unflatten(tuple([part if fill is None else fill(tensors, made) for part, fill in parts]))
        return made[name]

    return filler
