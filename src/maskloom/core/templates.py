"""An object without its tensors: made once of one that holds some, and filled with others of the same places."""

from collections.abc import Callable, Mapping, Sequence
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

    def __init__(self, held: T, remarks: Sequence[captures.Remark] = (), known: "_Known | None" = None) -> None:
        self._held, self._known = held, known
        self._no_remarks = [type(remark)() for remark in remarks]
        self._filler = _filler_of(held, {})

    def filled(self, tensors: Sequence[Tensor], remarks: Sequence[captures.Remark] | None = None) -> T:
        """The object with these tensors, and the remarks on them, in its slots."""
        if self._filler is None:
            return self._held
        leaves = [*tensors, *(self._no_remarks if remarks is None else remarks)]
        filled = self._filler(leaves, {})
        if self._known is not None and len(set(map(id, tensors))) == len(tensors):
            captures.know(filled, self._known.of_others(leaves))
        return cast(T, filled)


@dataclass(frozen=True)
class _Known:
    """The facts about the object that a template was made of, and which slots its tensors and remarks are."""

    facts: captures.Facts
    tensors: tuple[int, ...]
    remarks: tuple[int, ...]

    def of_others(self, leaves: Sequence[Any]) -> captures.Facts:
        """The facts about the object that holds these in its slots, no tensor twice."""
        tensors, remarks = [leaves[slot] for slot in self.tensors], [leaves[slot] for slot in self.remarks]
        return self.facts.with_others(tuple(tensors), tuple(remarks))


def template_of(held: T, tensors: Sequence[Tensor], remarks: Sequence[captures.Remark] = ()) -> Template[T] | None:
    """The template of an object, whose slots are numbered as ``tensors`` and then ``remarks`` are; None if it holds another tensor.

    Other remarks are left out: they are on tensors that the template does not hold.
    """
    places = {id(leaf): Slot(number) for number, leaf in enumerate([*tensors, *remarks])}
    if not all(id(tensor) in places for tensor in captures.tensors(held)):
        return None
    without_tensors = captures.moved(held, lambda tensor: places[id(tensor)])
    template = captures.moved(
        without_tensors, lambda remark: places.get(id(remark)) or type(remark)(), of=captures.Remark
    )
    return Template(template, remarks, _known_of(held, places))


def _known_of(held: object, places: Mapping[int, Slot]) -> _Known | None:
    """What is known of all objects that the template of one makes; None where they are looked at one by one."""
    facts = captures.facts_now(held)
    if not captures.is_constant(held, facts) or not all(id(remark) in places for remark in facts.remarks):
        return None
    tensors, remarks = ([places[id(leaf)].number for leaf in leaves] for leaves in (facts.tensors, facts.remarks))
    return _Known(facts.with_others((), ()), tuple(tensors), tuple(remarks))


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
        if any(fillers) and _copies_fields(held) and len(values) == len(vars(held)):
            filler = _of_fields(id(held), held, dict(zip(vars(held), fillers, strict=True)))
        elif any(fillers):
            filler = _once(id(held), tuple(zip(values, fillers, strict=True)), unflatten)
    known[id(held)] = filler
    return filler


def _copies_fields(held: object) -> bool:
    """Whether a copy of it is a new object with the same ``__dict__``."""
    from maskloom.core.values import FrozenValue  # the chain of imports would be too long

    return getattr(type(held), "__copy__", None) is FrozenValue.__copy__


def _of_fields(name: int, held: object, fillers: dict[str, _Filler | None]) -> _Filler:
    """`_once` of such an object."""
    kind, fields = type(held), dict(vars(held))
    filled = tuple([(key, fill) for key, fill in fillers.items() if fill is not None])

    def filler(tensors: Sequence[Any], made: _Made) -> Any:
        if name not in made:
            made[name] = new = object.__new__(kind)
            state = vars(new)
            state.update(fields)
            for key, fill in filled:
                state[key] = fill(tensors, made)
        return made[name]

    return filler


def _once(
    name: int, parts: tuple[tuple[Any, _Filler | None], ...], unflatten: Callable[[tuple[Any, ...]], Any]
) -> _Filler:
    def filler(tensors: Sequence[Any], made: _Made) -> Any:
        if name not in made:
            made[name] = unflatten(tuple([part if fill is None else fill(tensors, made) for part, fill in parts]))
        return made[name]

    return filler
