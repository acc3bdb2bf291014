"""A mask_mod as a straight-line program: all operations that it runs for one query and one key, recorded.

torch batches a mask_mod by vmap, and vmap sees a scalar function: no branch on data, the same operations for every
element. So one run on scalars (`program.record`) shows everything that the mask can do. `dependence` and the builder of
block masks read this program, which is the mask itself and not a second definition of it.
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
    """A value slot: inputs first (for a mask the four indices), then results."""

    slot: int


@dataclass(frozen=True, slots=True)
class CaptureSlot:
    """The slot of a captured tensor in a program without tensors; ``place`` is its number in `captures.tensors`."""

    place: int


class TensorMeta(NamedTuple):
    """dtype and shape of a value in the scalar function; an index has shape ()."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One aten operation. Arguments are Values, captured or constant tensors, Python values, and lists of these.

    The results are all tensors that it returns, in order; tuples and lists are flattened.
    """

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value, ...]

    @property
    def refs(self) -> Iterator[Value]:
        """The values that it reads."""
        return leaves((self.args, *self.kwargs.values()), Value)

    def filled(self, change: Callable[[Any], Any]) -> tuple[list[Any], dict[str, Any]]:
        """Its arguments, with ``change(leaf)`` for each Value, tensor and Python value."""
        return mapped(self.args, change), {name: mapped(item, change) for name, item in self.kwargs.items()}


@dataclass(frozen=True)
class Program:
    """The operations of a mask_mod, in order.

    Attributes:
        steps: the operations whose result depends on an index, in order.
        answer: the bool that the mask_mod returned; a tensor if it depends on no index.
        metas: dtype and shape of every slot.
        unsupported_reason: why the steps cannot be replayed (a write into a shared tensor, for example); None if they
            can.
        of_structure: whether another mask of the same structure has the same program, except for the tensors it holds.
            So no captured tensor was used without an index or asked for its values, and no tensor was read that the
            mask does not hold.
        reads_uncaptured: whether it reads a tensor that the mask does not hold, such as a global one.
        reads_scalar_tensor: whether it reads a tensor without dimensions that existed before the run, held or global.
        uses_unindexed_capture: whether a tensor that existed before the run is used by an operation without an index,
            or whether it reads a tensor with dimensions that it makes itself.
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
        """The tensors in the program: those that the mask holds, and those that it made in the run."""
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
        """The program with slots in place of the tensors that its mask holds, so that it keeps none of them alive."""
        slots = {id(tensor): CaptureSlot(place) for place, tensor in enumerate(held)}
        return self._changed(lambda value: slots.get(id(value), value) if isinstance(value, Tensor) else value)

    def holding(self, held: Sequence[Tensor]) -> "Program":
        """The program of a mask that holds these tensors; the inverse of `without`."""
        return self._changed(lambda value: held[value.place] if isinstance(value, CaptureSlot) else value)

    def _changed(self, change: Callable[[Any], Any]) -> "Program":
        steps = []
        for step in self.steps:
            args, kwargs = step.filled(change)
            steps.append(Op(step.op, tuple(args), kwargs, step.results))
        return replace(self, steps=tuple(steps), answer=mapped(self.answer, change))


def leaves(arguments: Any, kind: type[T]) -> Iterator[T]:
    """All values of one type in an argument, nested lists and tuples included."""
    if not isinstance(arguments, (list, tuple)):
        arguments = (arguments,)
    for item in arguments:
        if isinstance(item, (list, tuple)):
            yield from leaves(item, kind)
        elif isinstance(item, kind):
            yield item


def mapped(arguments: Any, change: Callable[[Any], Any]) -> Any:
    """The argument with ``change(leaf)`` for each leaf; tuples become lists.

    (This is no recursive closure: its reference cycle would keep tensors alive until the garbage collector runs.)
    """
    if not isinstance(arguments, (list, tuple)):
        return change(arguments)
    return [mapped(item, change) if isinstance(item, (list, tuple)) else change(item) for item in arguments]


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(b, h, q_idx, kv_idx) -> bool``: torch's mask_mod signature. Every `Mask` is one."""
