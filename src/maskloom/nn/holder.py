"""A holder for a mask in a module: the mask's tensors become buffers and parameters, and move with the module."""

import copy
import dataclasses
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core import captures
from maskloom.core.host_count import HostCount
from maskloom.core.values import FrozenValue

M = TypeVar("M")


class Holder(nn.Module, Generic[M]):
    """Holds a mask, a score_mod or a BlockMask in a module; calling it returns that object.

    A mask is a value: as a plain attribute it does not move with its module. In a Holder its tensors are buffers, and
    those that learn are parameters::

        class Layer(torch.nn.Module):
            def __init__(self, offsets):
                super().__init__()
                self.mask = loom.nn.Holder(loom.causal & loom.documents(offsets=offsets))
                self.bias = loom.nn.Holder(loom.scores.relative_bias(torch.nn.Parameter(torch.zeros(8, 257))))

            def forward(self, q, k, v):
                return loom.attend(q, k, v, self.mask(), score_mod=self.bias())

    A call returns the same object until a tensor is replaced, so that what `attend` caches with a mask stays valid.
    ``.to(device)`` moves all tensors. ``.half()`` and ``.to(dtype)`` convert only parameters: a mask is the same in
    every dtype, and tables that do not learn (slopes, thresholds) keep their dtype. DistributedDataParallel copies
    buffers from its first process to the others, as for any module: hold what is the same for all, and make the masks
    of a batch in ``forward``.

    Args:
        held: a Mask, a mask_mod, a score_mod or a BlockMask. A Parameter in it becomes a parameter of the Holder, and
            so does a leaf tensor that requires a gradient; all other tensors become buffers.
        persistent: whether the buffers are part of ``state_dict``. By default they are not: the code that makes the
            module also makes its mask, so checkpoints with and without a Holder are compatible. A module on the meta
            device needs persistent=True: nothing else gives its buffers their values.

    Raises:
        TypeError: an object of another kind. ValueError: a tensor that was computed from a tensor that learns: no
            optimiser would see it.
    """

    def __init__(self, held: M, *, persistent: bool = False) -> None:
        super().__init__()
        if isinstance(held, nn.Module) or not (callable(held) or isinstance(held, BlockMask)):
            raise TypeError(f"a Holder holds a mask, a score_mod or a BlockMask; got {type(held).__name__}")
        self._persistent = persistent
        self._names: list[str] = []
        counted_never = _replaced(held, HostCount, lambda count: HostCount())  # a state dict brings other values
        self._template = _replaced(counted_never, Tensor, self._registered)
        self._make()

    def forward(self, *indices: object) -> M:
        """The held object, with its current tensors."""
        if indices:
            raise TypeError("a Holder is no mask or score_mod: give what holder() returns")
        if not all(map(operator.is_, self._tensors(), self._made.tensors)):
            if torch.compiler.is_dynamo_compiling():  # for example in torch.func.functional_call
                return _traced(self._template, self)
            self._make()
        return self._made.held

    if TYPE_CHECKING:  # nn.Module's own says that it returns Any

        def __call__(self) -> M: ...

    def extra_repr(self) -> str:
        """The held object, as ``print(module)`` shows it."""
        return repr(self._made.held) if callable(self._made.held) else "BlockMask"

    def _registered(self, tensor: Tensor) -> "_BufferPlace":
        """Register a tensor as a buffer or a parameter; return its slot in the template."""
        name = f"tensor{len(self._names)}"
        if tensor.requires_grad and not tensor.is_leaf:
            raise ValueError(
                f"a Holder holds what learns itself, and a tensor of shape {tuple(tensor.shape)} was computed from it: "
                "make this mask or score_mod in forward"
            )
        if tensor.requires_grad or isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor, persistent=self._persistent)
        self._names.append(name)
        return _BufferPlace(name)

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _make(self) -> None:
        held = _replaced(self._template, _BufferPlace, lambda place: getattr(self, place.name))
        self._made: _Made[M] = _Made(self._tensors(), held)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Holder[M]":
        buffers = {id(buffer) for buffer in self._buffers.values()}

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return tensor.to(new.device) if id(tensor) in buffers and new.dtype != tensor.dtype else new

        super()._apply(moved, recurse)
        self._make()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._make()  # load_state_dict(assign=True) replaces the tensors

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make()


class _BufferPlace(NamedTuple):
    """The slot of a module's tensor in the template."""

    name: str


class _Made(NamedTuple, Generic[M]):
    """The held object, and the tensors that it was made from."""

    tensors: list[Tensor]
    held: M


def _traced(held: Any, holder: nn.Module) -> Any:
    """The object of a template, built by operations that dynamo can trace; only for values."""
    if isinstance(held, _BufferPlace):
        return getattr(holder, held.name)
    if isinstance(held, tuple):
        return tuple([_traced(item, holder) for item in held])
    if isinstance(held, BlockMask) or (callable(held) and not isinstance(held, FrozenValue)):
        raise RuntimeError(
            "while torch.compile traces, only of masks and score_mods that are values can tensors be replaced"
        )
    if not isinstance(held, FrozenValue):
        return held
    fields: Any = dataclasses.fields(held)  # type: ignore[arg-type] # values are decorated
    return type(held)(*[_traced(getattr(held, field.name), holder) for field in fields])


def _replaced(held: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A mask, score_mod or BlockMask in which every object of type ``kind`` is replaced."""
    if not isinstance(held, BlockMask):
        return captures.moved(held, change, of=kind)
    new = copy.copy(held)
    for name, value in vars(held).items():
        if isinstance(value, kind):
            setattr(new, name, change(value))
    new.mask_mod = captures.moved(held.mask_mod, change, of=kind)
    return new
