"""A mask_mod as a straight-line program: run once on scalars, every operation written down.

torch lifts a mask_mod by vmap, and vmap sees a scalar function: no branch on data, the same operations for every
element. So one run on scalars without dimensions shows all that the mask can ever do. `pads[b][kv_idx]`,
``torch.stack([...]).any(0)`` and ``(starts[b] <= q_idx).any()`` are recorded as vmap sees them, and whoever reads the
program (`reading`, and the builder of block masks) reads the mask itself, not a second definition of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskloom.masks.modes import uncompiled

Index = Literal["b", "h", "q_idx", "kv_idx"]
INDICES: tuple[Index, ...] = ("b", "h", "q_idx", "kv_idx")

_aten = torch.ops.aten
_READS_NO_VALUE = {
    _aten.new_ones, _aten.new_zeros, _aten.new_full, _aten.new_empty, _aten.new_empty_strided,
    _aten.ones_like, _aten.zeros_like, _aten.full_like, _aten.empty_like,
}  # fmt: skip
_POSITIONS = (torch.int64, torch.int32, torch.int16, torch.int8)
ASKS_PYTHON = {_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero, _aten.nonzero, _aten.masked_select}


_OUT_OF_PLACE = {
    getattr(getattr(_aten, f"{name}_"), overload): getattr(getattr(_aten, name), overload)
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "add", "sub", "mul")
    for overload in ("Tensor", "Scalar")
}


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
    """One aten operation. Arguments are Refs, captured or constant tensors, and Python values, lists of them too."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Ref, ...]

    @property
    def refs(self) -> Iterator[Ref]:
        """The values that it reads."""
        return _refs_in((self.args, *self.kwargs.values()))


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
            yield from _tensors_in((*step.args, *step.kwargs.values()))
        if isinstance(self.answer, Tensor):
            yield self.answer

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


def record(mask_mod: Any, device: torch.device | str, held: Sequence[Tensor] = ()) -> Program:
    """Run ``mask_mod`` once on scalars and write down what it does.

    Args:
        mask_mod: ``(b, h, q_idx, kv_idx) -> bool``.
        device: where the mask's tensors are.
        held: all tensors that it holds, if the program is to say whether it is `of_structure`.

    Raises:
        TypeError: it does not answer with one bool, or decides in Python on an index's value.
        ValueError: it reads a table on another device.
        What it raises itself comes through, with a note.
    """
    return uncompiled(_record)(mask_mod, device, held)


def _record(mask_mod: Any, device: torch.device | str, held: Sequence[Tensor]) -> Program:
    recorder = _Recorder(held=frozenset(map(id, held)))
    with torch.no_grad(), torch._C._DisableFuncTorch():  # inside torch.func.grad too, scalars are plain tensors
        scalars = [torch.zeros((), dtype=torch.int64, device=device) for _ in INDICES]
        for scalar in scalars:
            recorder.name(scalar)
        try:
            with recorder, _IndexByTensors():
                answer = mask_mod(*scalars)
        except Exception as error:
            error.add_note(f"raised by the mask_mod {_name_of(mask_mod)}, run on scalars b, h, q_idx, kv_idx")
            raise
    _check_answer(mask_mod, answer)
    answered = recorder.value(answer)
    return Program(
        tuple(recorder.steps), answered, tuple(recorder.metas), recorder.obstacle,
        of_structure=not (recorder.used_alone or recorder.used_others) and recorder.obstacle is None,
        reads_numbers=recorder.read_numbers,
        reads_wholes=recorder.used_alone or recorder.used_made,
    )  # fmt: skip


def _check_answer(mask_mod: Any, answer: object) -> None:
    what = None
    if not isinstance(answer, Tensor):
        what = f"{type(answer).__name__} {answer!r}"
    elif answer.dtype != torch.bool or answer.ndim:
        what = f"{str(answer.dtype).removeprefix('torch.')} of shape {tuple(answer.shape)}"
    if what is not None:
        raise TypeError(
            f"a mask_mod answers with one bool for one (b, h, q_idx, kv_idx); {_name_of(mask_mod)} gave {what}"
        )


def _name_of(mask_mod: Any) -> str:
    return getattr(mask_mod, "__name__", None) or repr(mask_mod)


class _IndexByTensors(TorchFunctionMode):
    """``table[b, 3]`` as one lookup, as torch reads it in a mask_mod (its TransformGetItemToIndex, without autograd)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            table, leaves = args[0], list(_leaves_of(args[1]))
            if all(isinstance(leaf, (Tensor, int)) for leaf in leaves):
                device = table.device
                return _aten.index(
                    table, [i if isinstance(i, Tensor) else torch.tensor(int(i), device=device) for i in leaves]
                )
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_scalar, places)) and all(map(_keeps_order, places)):
                return _read_beside_slices(table, places)
        return func(*args, **(kwargs or {}))


def _is_scalar(place: Any) -> bool:
    return isinstance(place, Tensor) and not place.ndim and place.dtype in _POSITIONS


def _keeps_order(place: Any) -> bool:
    """Whether what an index leaves of a table lies in the order of the table."""
    return place is None or place is Ellipsis or type(place) in (int, slice) or _is_scalar(place)


def _read_beside_slices(table: Tensor, places: tuple[Any, ...]) -> Tensor:
    """``table[:, kv_idx]``: a view by all else, of which the dimensions that scalars read come first, and one lookup."""
    axis, read = 0, []
    rest = table.ndim - sum(place is not None and place is not Ellipsis for place in places)
    for place in places:
        if _is_scalar(place):
            read.append(axis)
        axis += rest if place is Ellipsis else type(place) is not int
    view = table[tuple(slice(None) if _is_scalar(place) else place for place in places)]
    others = [axis for axis in range(view.ndim) if axis not in read]
    return _aten.index(view.permute(*read, *others), [place for place in places if _is_scalar(place)])


def _leaves_of(index: Any) -> Iterator[Any]:
    if isinstance(index, (tuple, list)):
        for item in index:
            yield from _leaves_of(item)
    else:
        yield index


@dataclass
class _Recorder(TorchDispatchMode):
    """Writes down every operation on a value that depends on an index. Tensors are known by identity, and kept alive."""

    steps: list[Step] = field(default_factory=list)
    metas: list[Meta] = field(default_factory=list)
    obstacle: str | None = None
    held: frozenset[int] = frozenset()  # identities of the tensors that the mask holds
    used_alone: bool = False  # whether a tensor that was there before went into an operation that no index goes into
    used_others: bool = False  # whether such a tensor was read that is none of `held`: a global one, say
    used_made: bool = False  # whether a tensor with dimensions was read that it made itself
    read_numbers: bool = False  # whether a tensor without dimensions was read that was there before
    _refs: dict[int, Ref] = field(default_factory=dict)
    _storages: dict[int, int] = field(default_factory=dict)  # of values: how many tensors look at each
    _alive: list[Tensor] = field(default_factory=list)
    _made: dict[int, Any] = field(default_factory=dict)  # what it made itself, and no index goes into

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler at the first operation, which takes a second; see `record`

    def name(self, tensor: Tensor) -> Ref:
        """Make a tensor the program's next value."""
        ref = Ref(len(self.metas))
        self.metas.append(Meta(tensor.dtype, tuple(tensor.shape)))
        if id(tensor) not in self._refs:
            storage = _storage(tensor)
            self._storages[storage] = self._storages.get(storage, 0) + 1
            self._alive.append(tensor)
        self._refs[id(tensor)] = ref
        return ref

    def value(self, argument: Any) -> Any:
        """An argument with each tensor that depends on an index replaced by its Ref."""
        if isinstance(argument, Tensor):
            return self._value_of(argument)
        if isinstance(argument, (list, tuple)):
            return [self.value(item) for item in argument]
        return argument

    def _value_of(self, tensor: Tensor) -> Ref | Tensor:
        ref = self._refs.get(id(tensor))
        if ref is not None:
            return ref
        if _storage(tensor) in self._storages:
            self.obstacle = "a tensor that torch handed on under another identity"
        was_there = id(tensor) not in self._made
        self.used_others |= was_there and id(tensor) not in self.held
        self.used_made |= not was_there and tensor.ndim > 0
        self.read_numbers |= was_there and not tensor.ndim
        self._alive.append(tensor)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is _aten.lift_fresh:  # torch.tensor(numbers): a new one, seen here first
            self._made |= {id(tensor): tensor for tensor in args}
        values = tuple(map(self.value, args))
        options = {name: self.value(item) for name, item in kwargs.items()}
        depends = any(True for _ in _refs_in((values, *options.values())))
        if not depends:
            self.used_alone |= any(id(tensor) not in self._made for tensor in _tensors_in((args, *kwargs.values())))
        if depends and func.overloadpacket in ASKS_PYTHON:
            raise TypeError(
                f"{func.overloadpacket.__name__} asks for the value of something computed from an index: a mask_mod is run "
                "for all indices at once (torch.vmap), so it cannot use .item(), int(), if, and, or, not on them, nor "
                "slice by them; write & | ~, torch.where, table[b][kv_idx]"
            )
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TypeError(
                f"{func.overloadpacket.__name__} draws random numbers: a mask_mod answers the same every time"
            )
        if depends:
            self._check_devices(func, args, kwargs)
        out = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._write(func, values, options, out)
        elif depends and func.overloadpacket not in _READS_NO_VALUE:
            self._record(func, values, options, out)
        else:
            self._made |= {id(made): made for made in (out if isinstance(out, (tuple, list)) else (out,))}
        return out

    def _check_devices(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a table that is elsewhere: a global one, of which nobody knew before. torch indexes by what is on the CPU."""
        here = {tensor.device for tensor in _tensors_in((args, *kwargs.values())) if id(tensor) in self._refs}
        for tensor in _tensors_in(args[:1] if op is _aten.index.Tensor else (args, *kwargs.values())):
            if tensor.ndim and tensor.device not in here:
                there = ", ".join(map(str, here))
                raise ValueError(
                    f"the mask_mod reads a table of shape {tuple(tensor.shape)} on {tensor.device}, and is asked on {there}: "
                    f"move the table there, or pass device={str(tensor.device)!r}. Of a table that the mask_mod holds (in a "
                    "closure, a functools.partial, a Mask) and does not take from its module, the device is found"
                )

    def _record(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        results = out if isinstance(out, (tuple, list)) else (out,)
        self.steps.append(Step(op, args, kwargs, tuple(self.name(result) for result in results)))

    def _write(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """``x &= y``: as ``x = x & y`` where nothing else looks at x's memory; else the program has an obstacle."""
        target = args[0] if args else None
        alone = isinstance(target, Ref) and self._storages[_storage(out)] == 1
        if alone and op in _OUT_OF_PLACE and self._dtypes(args) == {out.dtype}:
            self._record(_OUT_OF_PLACE[op], args, kwargs, out)
        else:
            self.obstacle = f"{op.overloadpacket.__name__}, which writes into a tensor"
            self._record(op, args, kwargs, out)

    def _dtypes(self, args: tuple[Any, ...]) -> set[torch.dtype]:
        refs = {self.metas[argument.slot].dtype for argument in args if isinstance(argument, Ref)}
        return refs | {argument.dtype for argument in args if isinstance(argument, Tensor)}


def _refs_in(arguments: Any) -> Iterator[Ref]:
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _refs_in(argument)


def _tensors_in(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors_in(argument)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
