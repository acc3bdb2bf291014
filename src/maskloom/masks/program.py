"""A mask_mod as a straight-line program: every operation that it does for one query and one key, written down.

torch lifts a mask_mod by vmap, and vmap sees a scalar function: no branch on data, the same operations for every
element. So one run on scalars (`masks.record`) shows all that the mask can ever do, and whoever reads the program (`reading`,
and the builder of block masks) reads the mask itself, not a second definition of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

Index = Literal["b", "h", "q_idx", "kv_idx"]
INDICES: tuple[Index, ...] = ("b", "h", "q_idx", "kv_idx")


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that depends on what goes in: the first slots are that itself (of a mask the four indices), the others results."""

    slot: int


@dataclass(frozen=True, slots=True)
class Held:
    """The place of a captured tensor in a program that was taken off its mask: its number among `captured.tensors`."""

    place: int


class Meta(NamedTuple):
    """dtype and shape of a value, as the scalar function sees it; an index has shape ()."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One aten operation. Arguments are Refs, captured or constant tensors, and Python values, lists of them too.

    Results are all tensors that it gives, in order: of a tuple, a list, a list in a tuple.
    """

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Ref, ...]

    @property
    def refs(self) -> Iterator[Ref]:
        """The values that it reads."""
        return refs_in((self.args, *self.kwargs.values()))


@dataclass(frozen=True)
class Program:
    """What a mask_mod does, step by step.

    Attributes:
        steps: the operations whose result depends on an index, in order.
        answer: the bool that the mask_mod returned; a tensor if it depends on nothing.
        metas: of every slot.
        obstacle: why the steps cannot be followed (a write into a shared tensor), None where they can.
        of_structure: whether another mask of the same structure has the same program, but for the tensors it holds: no
            captured tensor was computed with alone, or asked for its values, and none was read that it does not hold.
        reads_numbers: whether it reads a tensor without dimensions that was there before: one that it holds, or a global one.
        reads_wholes: whether such a tensor of any dimensions goes into an operation that no index goes into, or a tensor with
            dimensions is read that it makes itself.
    """

    steps: tuple[Step, ...]
    answer: Ref | Tensor
    metas: tuple[Meta, ...]
    obstacle: str | None = None
    of_structure: bool = False
    reads_numbers: bool = False
    reads_wholes: bool = False

    def meta(self, value: Ref | Tensor) -> Meta:
        """dtype and shape of a value of the program or of a constant tensor."""
        return self.metas[value.slot] if isinstance(value, Ref) else Meta(value.dtype, tuple(value.shape))

    @property
    def constants(self) -> Iterator[Tensor]:
        """The tensors in it: those that the mask holds, and those that it made on the way."""
        for step in self.steps:
            yield from tensors_in((*step.args, *step.kwargs.values()))
        if isinstance(self.answer, Tensor):
            yield self.answer

    def without_unused(self) -> "Program":
        """The program without the operations that the answer does not depend on."""
        needed, steps = set(refs_in([self.answer])), []
        for step in reversed(self.steps):
            if not needed.isdisjoint(step.results):
                needed.update(step.refs)
                steps.append(step)
        return replace(self, steps=tuple(reversed(steps)))

    def without(self, held: Sequence[Tensor]) -> "Program":
        """The program with places for the tensors that its mask holds, so that it keeps none of them alive."""
        places = {id(tensor): Held(place) for place, tensor in enumerate(held)}
        return self._changed(lambda value: places.get(id(value), value) if isinstance(value, Tensor) else value)

    def holding(self, held: Sequence[Tensor]) -> "Program":
        """The program of a mask that holds these tensors, from one `without` any."""
        return self._changed(lambda value: held[value.place] if isinstance(value, Held) else value)

    def _changed(self, change: Callable[[Any], Any]) -> "Program":
        def changed(value: Any) -> Any:
            return [changed(item) for item in value] if isinstance(value, (list, tuple)) else change(value)

        steps = tuple(
            Step(step.op, tuple(map(changed, step.args)), {k: changed(v) for k, v in step.kwargs.items()}, step.results)
            for step in self.steps
        )
        return replace(self, steps=steps, answer=changed(self.answer))


def refs_in(arguments: Any) -> Iterator[Ref]:
    """The values among arguments, in lists too."""
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from refs_in(argument)


def results_in(out: Any, count: int) -> tuple[Any, ...] | None:
    """The results of an operation, as many as its step has; None if it gave others."""
    found = tuple(_leaves(out))
    return found if len(found) == count else None


def _leaves(out: Any) -> Iterator[Any]:
    if isinstance(out, (list, tuple)):
        for item in out:
            yield from _leaves(item)
    elif out is not None:
        yield out


def tensors_in(arguments: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in lists too."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from tensors_in(argument)
