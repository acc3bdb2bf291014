"""A mask_mod as a straight-line program: every operation that it does for one query and one key, written down.

torch lifts a mask_mod by vmap, and vmap sees a scalar function: no branch on data, the same operations for every
element. So one run on scalars (`program.record`) shows all that the mask can ever do, and whoever reads the program (`reading`,
and the builder of block masks) reads the mask itself, not a second definition of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

T = TypeVar("T")

Index = Literal["b", "h", "q_idx", "kv_idx"]
INDICES: tuple[Index, ...] = ("b", "h", "q_idx", "kv_idx")


@dataclass(frozen=True, slots=True)
class Value:
    """A value that depends on what goes in: the first slots are that itself (of a mask the four indices), the others results."""

    slot: int


@dataclass(frozen=True, slots=True)
class CaptureSlot:
    """The place of a captured tensor in a program that was taken off its mask: its number among `captured.tensors`."""

    place: int


class TensorMeta(NamedTuple):
    """dtype and shape of a value, as the scalar function sees it; an index has shape ()."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One aten operation. Arguments are Refs, captured or constant tensors, and Python values, lists of them too.

    Results are all tensors that it gives, in order: of a tuple, a list, a list in a tuple.
    """

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value, ...]

    @property
    def refs(self) -> Iterator[Value]:
        """The values that it reads."""
        return leaves((self.args, *self.kwargs.values()), Value)


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
        reads_uncaptured: whether it reads a tensor that the mask does not hold, a global one, say.
        reads_scalar_tensor: whether it reads a tensor without dimensions that was there before: one that it holds, or a global one.
        uses_unindexed_capture: whether such a tensor of any dimensions goes into an operation that no index goes into, or a tensor with
            dimensions is read that it makes itself.
    """

    steps: tuple[Op, ...]
    answer: Value | Tensor
    metas: tuple[TensorMeta, ...]
    unsupported_reason: str | None = None
    of_structure: bool = False
    reads_uncaptured: bool = False
    reads_scalar_tensor: bool = False
    uses_unindexed_capture: bool = False

    def meta(self, value: Value | Tensor) -> TensorMeta:
        """dtype and shape of a value of the program or of a constant tensor."""
        return self.metas[value.slot] if isinstance(value, Value) else TensorMeta(value.dtype, tuple(value.shape))

    @property
    def constants(self) -> Iterator[Tensor]:
        """The tensors in it: those that the mask holds, and those that it made on the way."""
        for step in self.steps:
            yield from leaves((step.args, *step.kwargs.values()), Tensor)
        yield from leaves(self.answer, Tensor)

    def without_unused(self) -> "Program":
        """The program without the operations that the answer does not depend on."""
        needed, steps = set(leaves(self.answer, Value)), []
        for step in reversed(self.steps):
            if not needed.isdisjoint(step.results):
                needed.update(step.refs)
                steps.append(step)
        return replace(self, steps=tuple(reversed(steps)))

    def without(self, held: Sequence[Tensor]) -> "Program":
        """The program with places for the tensors that its mask holds, so that it keeps none of them alive."""
        places = {id(tensor): CaptureSlot(place) for place, tensor in enumerate(held)}
        return self._changed(lambda value: places.get(id(value), value) if isinstance(value, Tensor) else value)

    def holding(self, held: Sequence[Tensor]) -> "Program":
        """The program of a mask that holds these tensors, from one `without` any."""
        return self._changed(lambda value: held[value.place] if isinstance(value, CaptureSlot) else value)

    def _changed(self, change: Callable[[Any], Any]) -> "Program":
        steps = tuple(
            Op(
                step.op,
                tuple(mapped(step.args, change)),
                {name: mapped(item, change) for name, item in step.kwargs.items()},
                step.results,
            )
            for step in self.steps
        )
        return replace(self, steps=steps, answer=mapped(self.answer, change))


def leaves(arguments: Any, kind: type[T]) -> Iterator[T]:
    """What an argument is or holds, lists and tuples in it opened: those of one kind."""
    if isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from leaves(item, kind)
    elif isinstance(arguments, kind):
        yield arguments


def mapped(arguments: Any, change: Callable[[Any], Any]) -> Any:
    """The argument with ``change(leaf)`` for each leaf; tuples become lists.

    (No closure calls itself: that would be a circle of references, which keeps tensors until Python looks for circles.)
    """
    if isinstance(arguments, (list, tuple)):
        return [mapped(item, change) for item in arguments]
    return change(arguments)


def results_in(out: Any, count: int) -> tuple[Any, ...] | None:
    """The results of an operation, as many as its step has; None if it gave others."""
    found = tuple(leaf for leaf in leaves(out, object) if leaf is not None)
    return found if len(found) == count else None


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(b, h, q_idx, kv_idx) -> bool``: torch's mask_mod signature. Every `Mask` is one."""
