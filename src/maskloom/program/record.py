"""Run a mask_mod once on scalar tensors, and record its operations.

`pads[b][kv_idx]`, ``torch.stack([...]).any(0)`` and ``(starts[b] <= q_idx).any()`` are recorded as vmap sees them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from maskloom.core.torch_state import uncompiled
from maskloom.core.words import brief_name
from maskloom.program.answers import check_answer
from maskloom.program.getitem import IndexByTensors
from maskloom.program.ops import OUT_OF_PLACE, Fact, having
from maskloom.program.program import INDICES, Op, Program, TensorMeta, Value, leaves, mapped

_aten = torch.ops.aten
_READS_NO_VALUE = having(Fact.READS_NO_VALUE)
_ASKS_PYTHON = having(Fact.ASKS_PYTHON)


def record(
    mask_mod: Any, device: torch.device | str, held: Sequence[Tensor] = (), index_dtype: torch.dtype = torch.int64
) -> Program:
    """Run ``mask_mod`` once on scalars and record its operations.

    Args:
        mask_mod: ``(b, h, q_idx, kv_idx) -> bool``, with plain tensors: under torch.vmap, `one_example` of it.
        device: where the mask's tensors are.
        held: all tensors that the mask holds; needed if `Program.of_structure` is used.
        index_dtype: dtype of the four indices.

    Raises:
        TypeError: it does not return one bool, or Python code branches on an index's value.
        ValueError: it reads a table on another device.
        An exception of the mask_mod itself passes through, with a note.
    """
    return uncompiled(_record)(mask_mod, device, held, index_dtype)


def _record(mask_mod: Any, device: torch.device | str, held: Sequence[Tensor], index_dtype: torch.dtype) -> Program:
    recorder = _Recorder(held=frozenset(map(id, held)))
    try:
        answer = _run_on_scalars(mask_mod, recorder, lambda: _indices(device, index_dtype))
    except Exception as error:
        error.add_note(f"raised by the mask_mod {brief_name(mask_mod)}, run on scalars b, h, q_idx, kv_idx")
        raise
    check_answer(mask_mod, answer)
    return recorder.program(answer)


def record_score(score_mod: Any, device: torch.device, dtype: torch.dtype) -> Program:
    """Run ``score_mod`` once on a score of this dtype and four indices, and record its operations.

    Slots 0 to 3 are the indices, as for a mask; slot 4 is the score.

    A write in place makes the program unsupported: it may be right only for a score that has every dimension.

    Raises:
        TypeError: Python code branches on a value. An exception of the score_mod itself passes through.
    """
    recorder = _Recorder()

    def inputs() -> list[Tensor]:
        return [*_indices(device, torch.int64), torch.zeros((), dtype=dtype, device=device)]

    def in_order(*scalars: Tensor) -> Any:
        return score_mod(scalars[-1], *scalars[:-1])

    program = recorder.program(uncompiled(_run_on_scalars)(in_order, recorder, inputs))
    return replace(program, unsupported_reason="a write in place") if recorder.wrote else program


def _indices(device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
    return [torch.zeros((), dtype=dtype, device=device) for _ in INDICES]


def _run_on_scalars(function: Any, recorder: "_Recorder", inputs: Callable[[], list[Tensor]]) -> Any:
    """The result of a function of scalars, whose operations go to the recorder."""
    with torch.no_grad(), torch._C._DisableFuncTorch():  # so scalars are plain tensors inside torch.func.grad too
        scalars = inputs()
        for scalar in scalars:
            recorder.name(scalar)
        with recorder, _GetitemRecorder(recorder):
            return function(*scalars)


@dataclass
class _Recorder(TorchDispatchMode):
    """Records every operation on a value that depends on an index. Tensors are identified by id, and kept alive."""

    steps: list[Op] = field(default_factory=list)
    metas: list[TensorMeta] = field(default_factory=list)
    unsupported_reason: str | None = None
    held: frozenset[int] = frozenset()  # ids of the tensors that the mask holds
    used_alone: bool = False  # an operation without an index used a tensor that existed before
    used_others: bool = False  # such a tensor was read that is not in `held`, such as a global one
    used_made: bool = False  # a tensor with dimensions was read that the mask_mod made itself
    wrote: bool = False  # something was written into a value
    read_numbers: bool = False  # a tensor without dimensions was read that existed before
    _refs: dict[int, Value] = field(default_factory=dict)
    _storages: dict[int, int] = field(default_factory=dict)  # how many tensors share the storage of a value
    _alive: list[Tensor] = field(default_factory=list)
    _made: dict[int, Any] = field(default_factory=dict)  # tensors that the mask_mod made without an index

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would load torch's compiler at the first operation, which takes a second; see `record`

    def program(self, answer: Any) -> Program:
        """The program of a function that gave this answer."""
        answered = self.value(answer)
        return Program(
            tuple(self.steps), answered, tuple(self.metas), self.unsupported_reason,
            of_structure=not (self.used_alone or self.used_others) and self.unsupported_reason is None,
            reads_uncaptured=self.used_others,
            reads_scalar_tensor=self.read_numbers,
            uses_unindexed_capture=self.used_alone or self.used_made,
        )  # fmt: skip

    def name(self, tensor: Tensor) -> Value:
        """Assign a tensor to the program's next slot."""
        ref = Value(len(self.metas))
        self.metas.append(TensorMeta(tensor.dtype, tuple(tensor.shape)))
        if id(tensor) not in self._refs:
            storage = _storage(tensor)
            self._storages[storage] = self._storages.get(storage, 0) + 1
            self._alive.append(tensor)
        self._refs[id(tensor)] = ref
        return ref

    def value(self, argument: Any) -> Any:
        """An argument with each tensor that depends on an index replaced by its Value."""
        return mapped(argument, lambda leaf: self._value_of(leaf) if isinstance(leaf, Tensor) else leaf)

    def _value_of(self, tensor: Tensor) -> Value | Tensor:
        ref = self._refs.get(id(tensor))
        if ref is not None:
            return ref
        if _storage(tensor) in self._storages:
            self.unsupported_reason = "a tensor that torch handed on under another identity"
        was_there = id(tensor) not in self._made
        self.used_others |= was_there and id(tensor) not in self.held
        self.used_made |= not was_there and tensor.ndim > 0
        self.read_numbers |= was_there and not tensor.ndim
        self._alive.append(tensor)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is _aten.lift_fresh:  # torch.tensor(numbers): a new tensor, seen here first
            self._made |= {id(tensor): tensor for tensor in args}
        values = tuple(map(self.value, args))
        options = {name: self.value(item) for name, item in kwargs.items()}
        depends = any(True for _ in leaves((values, *options.values()), Value))
        if not depends:
            self.used_alone |= any(id(tensor) not in self._made for tensor in leaves((args, *kwargs.values()), Tensor))
        if depends and func.overloadpacket in _ASKS_PYTHON:
            raise _asked(func.overloadpacket.__name__)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TypeError(
                f"{func.overloadpacket.__name__} draws random numbers: a mask_mod answers the same every time"
            )
        if depends:
            self._check_devices(func, args, kwargs)
        out = func(*_with_rows(func, args), **kwargs)
        if func._schema.is_mutable:
            self._write(func, values, options, out)
        elif depends and func.overloadpacket not in _READS_NO_VALUE:
            self._record(func, values, options, out)
        else:
            self._made |= {id(made): made for made in leaves((out,), Tensor)}
        return out

    def leaves(self, name: str, arguments: Any) -> None:
        """Python reads the values of the tensors in the arguments: an error if one depends on an index."""
        for tensor in leaves(arguments, Tensor):
            if id(tensor) in self._refs:
                raise _asked(name)
            self.used_alone |= id(tensor) not in self._made

    def _check_devices(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a table on another device, such as a global one. Index tensors may be on the CPU, as in torch."""
        here = {tensor.device for tensor in leaves((args, *kwargs.values()), Tensor) if id(tensor) in self._refs}
        for tensor in leaves(args[:1] if op is _aten.index.Tensor else (args, *kwargs.values()), Tensor):
            if tensor.ndim and tensor.device not in here:
                there = ", ".join(map(str, here))
                raise ValueError(
                    f"the mask_mod reads a table of shape {tuple(tensor.shape)} on {tensor.device}, and is asked on {there}: "
                    f"move the table there, or pass device={str(tensor.device)!r}. Of a table that the mask_mod holds (in a "
                    "closure, a functools.partial, a Mask) and does not take from its module, the device is found"
                )

    def _record(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Add an operation. A result whose shape, or Python number, depends on index values is unsupported."""
        if self._has_sizes_of_values(op, args):
            self.unsupported_reason = f"{op.overloadpacket.__name__}, which gives as many numbers as the values say"
        elif any(isinstance(found, (bool, int, float)) for found in (out if isinstance(out, tuple) else (out,))):
            self.unsupported_reason = f"{op.overloadpacket.__name__}, which gives a number to Python"
        self.steps.append(Op(op, args, kwargs, tuple(map(self.name, leaves((out,), Tensor)))))

    def _has_sizes_of_values(self, op: OpOverload, args: tuple[Any, ...]) -> bool:
        if op is not _aten.index.Tensor:
            return torch.Tag.dynamic_output_shape in op.tags
        return any(self.metas[ref.slot].dtype in (torch.bool, torch.uint8) for ref in leaves(args[1], Value))

    def _write(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """``x &= y``: recorded as ``x = x & y`` if no other tensor shares x's memory; else unsupported."""
        self.wrote = True
        target = args[0] if args else None
        replaces = op in OUT_OF_PLACE and isinstance(target, Value) and self._storages[_storage(out)] == 1
        if replaces and self._dtypes(args) == {out.dtype}:
            self._record(OUT_OF_PLACE[op], args, kwargs, out)
        else:
            self.unsupported_reason = f"{op.overloadpacket.__name__}, which writes into a tensor"
            self._record(op, args, kwargs, out)

    def _dtypes(self, args: tuple[Any, ...]) -> set[torch.dtype]:
        refs = {self.metas[argument.slot].dtype for argument in args if isinstance(argument, Value)}
        return refs | {argument.dtype for argument in args if isinstance(argument, Tensor)}


class _GetitemRecorder(IndexByTensors):
    """Indexes like `IndexByTensors`, and reports to the recorder when values leave torch without an operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LEAVES_TORCH:
            self.recorder.leaves(func.__name__, args[:1])
        elif func in _MAKES_TENSORS:
            given = (*args, *(kwargs or {}).values())
            self.recorder.leaves(func.__name__, [data for data in given if isinstance(data, (list, tuple))])
        if func is F.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


_LEAVES_TORCH = {
    Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage,
}  # fmt: skip
_MAKES_TENSORS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""Functions that make a tensor of a list, and so ask each item for its value."""


def _asked(name: str) -> TypeError:
    return TypeError(
        f"{name} asks for the value of something computed from an index: a mask_mod is run for all indices at once "
        "(torch.vmap), so it cannot use .item(), int(), if, and, or, not on them, nor slice by them; write & | ~, "
        "torch.where, table[b][kv_idx]"
    )


def _with_rows(op: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with rows of zeros if the table has none (empty batch), so that an index can be read."""
    if op is not _aten.index.Tensor or args[0].numel():
        return args
    return args[0].new_zeros([max(1, size) for size in args[0].shape]), *args[1:]


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """torch's one_hot. torch reads the values first; under vmap it cannot, and needs ``num_classes``."""
    if num_classes < 1:
        raise ValueError(f"in a mask_mod one_hot is given num_classes, at least 1; got {num_classes}")
    return (tensor[..., None] == torch.arange(num_classes, device=tensor.device)).long()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
