"""An object without its tensors: made once of one that holds some, and filled with others of the same places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from torch import Tensor

from maskloom.core import captures
from maskloom.core.flatten import flatten

T = TypeVar("T")

_Made = dict[int, Any]
_Filler = Callable[[Sequence[Any], _Made], Any]


@dataclass(frozen=True)
class Slot(captures.Opaque):
    """The place of a tensor, or of a remark."""

    number: int


class Template(Generic[T]):
    """What an object is but for its tensors; `template_of` makes one."""

    def __init__(self, held: T, remarks: Sequence[captures.Remark] = ()) -> None:
        self._held = held
        self._no_remarks = [type(remark)() for remark in remarks]
        self._filler = _filler_of(held, {})

    def filled(self, tensors: Sequence[Tensor], remarks: Sequence[captures.Remark] | None = None) -> T:
        """The object with these tensors, and the remarks on them, in its slots."""
        if self._filler is None:
            return self._held
        remarks = self._no_remarks if remarks is None else remarks
        return cast(T, self._filler([*tensors, *remarks], {}))


def template_of(held: T, tensors: Sequence[Tensor], remarks: Sequence[captures.Remark] = ()) -> Template[T] | None:
    """The template of an object, whose slots are numbered as ``tensors`` and then ``remarks`` are; None if it holds another tensor.

    Other remarks are left out: they are on tensors that the template does not hold.
    """
    places = {id(leaf): Slot(number) for number, leaf in enumerate([*tensors, *remarks])}
    if not all(id(tensor) in places for tensor in captures.tensors(held)):
        return None
    without_tensors = captures.moved(held, lambda tensor: places[id(tensor)])
    held = captures.moved(without_tensors, lambda remark: places.get(id(remark)) or type(remark)(), of=captures.Remark)
    return Template(held, remarks)


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
    def filler(tensors: Sequence[Any], made: _Made) -> Any:
        if name not in made:
            made[name] = unflatten(tuple([part if fill is None else fill(tensors, made) for part, fill in parts]))
        return made[name]

    return filler
