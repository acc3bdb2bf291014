"""Record tensor operations as a `ReplayPlan`: the operations that depend on an input, and their arguments.

Values that depend on no input are computed once and stay in the plan as constants.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskloom.blocks.replay.fewer import in_fewer
from maskloom.blocks.replay.on_arrays import on_arrays
from maskloom.blocks.replay.plan import Call, ReplayPlan, Tensors
from maskloom.program.ops import Fact, having
from maskloom.program.program import Value, leaves, mapped

_MOST_LOOKED_AT = 1 << 22  # maximum entries of a table, or of a read from it, in the check whether the read is a view

_INDICES = {torch.int64, torch.int32, torch.int16, torch.int8}

_aten = torch.ops.aten

_ASKS_PYTHON = having(Fact.ASKS_PYTHON)


def record_replay(
    compute: Callable[[], Tensors],
    inputs: Sequence[Tensor],
    constants: Iterable[Tensor] = (),
    *,
    may_wait: bool = False,
) -> tuple[Tensors, ReplayPlan | None]:
    """The results of ``compute``, and a plan to compute them for other inputs; without inputs, it holds the results.

    The plan is None if ``compute`` writes into a tensor, asks for a value, or reads a tensor that is not an input, not
    a constant and not made in the run: a list of operations cannot repeat that.

    Args:
        may_wait: whether to wait for the device to read constant indices: a gather at equal steps then becomes a view.
    """
    if not inputs:
        results = compute()
        return results, ReplayPlan((), 0, results, _bytes_of(results))
    recorder = _ReplayRecorder(inputs, constants, may_wait)
    with recorder:
        results = compute()
    return results, recorder.plan(results)


class _ReplayRecorder(TorchDispatchMode):
    """Records each operation that depends on an input. Tensors are identified by id, and kept alive."""

    def __init__(self, inputs: Sequence[Tensor], constants: Iterable[Tensor], may_wait: bool) -> None:
        super().__init__()
        self.possible = True
        self._calls: list[Call] = []
        self._values: list[Tensor] = []
        self._places: dict[int, int] = {}
        self._owners: dict[int, int] = {}  # view → the value that owns its memory
        self._done: dict[Hashable, tuple[int, ...]] = {}
        self._again: list[Tensor] = []
        self._constants = {id(tensor): tensor for tensor in constants}
        self._inputs = len(inputs)
        self._may_wait = may_wait
        for tensor in inputs:
            self._named(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would load torch's compiler at the first operation; `replay` keeps dynamo out instead

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorded, options = self._recorded(args), {name: self._recorded(item) for name, item in kwargs.items()}
        read = [tensor for tensor in leaves(args, Tensor) if id(tensor) in self._places]
        result = self._view_of_read(args) if self._may_wait and func is _aten.index.Tensor else None
        result = func(*args, **kwargs) if result is None else result
        outs = result if isinstance(result, (list, tuple)) else (result,)
        asks = bool(read) and func.overloadpacket in _ASKS_PYTHON
        if (
            func._schema.is_mutable
            or asks
            or any(leaves(list(options.values()), Value))
            or (read and not all(isinstance(out, Tensor) for out in outs))
        ):
            self.possible = False
        elif read and all(_memory(out) == _memory(read[0]) and out.dtype == read[0].dtype for out in outs):
            for view in outs:
                self._record_view(view, self._places[id(read[0])])
        elif read:
            self._record(func, recorded, options, result)
        else:
            self._constants |= {id(out): out for out in outs}
        return result

    def plan(self, results: Tensors) -> ReplayPlan | None:
        """The plan of the recorded operations, without those that no result needs."""
        ends = tuple(self._recorded(results))
        if not self.possible:
            return None
        needed = {value.slot for value in leaves(ends, Value)}
        calls: list[Call] = []
        for call in reversed(in_fewer(self._calls, self._values) if _are_launched(self._values) else self._calls):
            if needed.isdisjoint(call.results):
                continue
            read = {value.slot for value in leaves(call.args, Value)}
            calls.append(dataclasses.replace(call, over=tuple(read - needed)))
            needed |= read
        held = {id(found): found for found in leaves([ends, *(call.args for call in calls)], Tensor)}
        calls.reverse()
        work = sum(value.nbytes for value in self._values)
        return ReplayPlan(
            tuple(calls), self._inputs, ends, _bytes_of(held.values()), on_arrays(calls, self._values), work
        )

    def _view_of_read(self, args: Any) -> Tensor | None:
        """A gather at constant indices, as a view, if the indices have equal steps (the ends of tiles have)."""
        table, indices = args
        constant = all(index is None or (id(index) in self._constants and index.dtype in _INDICES) for index in indices)
        if id(table) not in self._places or not constant:
            return None
        steps = equal_steps(table, indices)
        return None if steps is None else table.as_strided(*steps)

    def _record_view(self, view: Tensor, place: int) -> None:
        """Record a view (also of views) as one step from the value that owns the memory."""
        owner = self._owners.get(place, place)
        if _layout(view) == _layout(self._values[owner]):
            self._alias(view, owner)
            return
        args = [Value(owner), *_layout(view)]
        self._record(torch.as_strided, args, {}, view)  # faster than the aten operation
        self._owners[self._places[id(view)]] = owner

    def _record(self, op: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor | Sequence[Tensor]) -> None:
        """Record an operation, unless the same one was recorded before: a mask may read one table for queries and keys."""
        outs = (result,) if isinstance(result, Tensor) else result
        same = op, _hashable(args), _hashable(list(kwargs.items()))
        if same in self._done:
            for out, place in zip(outs, self._done[same], strict=True):
                self._alias(out, place)
        else:
            self._done[same] = tuple(map(self._named, outs))
            self._calls.append(Call(op, args, kwargs, self._done[same], isinstance(result, Tensor)))

    def _alias(self, tensor: Tensor, place: int) -> None:
        self._places[id(tensor)] = place
        self._again.append(tensor)  # kept alive, because it is identified by id

    def _named(self, tensor: Tensor) -> int:
        self.possible &= id(tensor) not in self._places  # one tensor as two values would be ambiguous
        self._places[id(tensor)] = len(self._values)
        self._values.append(tensor)
        return len(self._values) - 1

    def _recorded(self, argument: Any) -> Any:
        return mapped(argument, self._value_of)

    def _value_of(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if id(leaf) in self._places:
                return Value(self._places[id(leaf)])
            self.possible &= id(leaf) in self._constants  # else it may have been computed from an input before
        return leaf


def _are_launched(values: Sequence[Tensor]) -> bool:
    """Whether operations on them are put into the queue of a device, one by one."""
    return any(value.device.type != "cpu" for value in values)


def equal_steps(table: Tensor, indices: Sequence[Tensor | None]) -> tuple[list[int], list[int], int] | None:
    """The shape, strides and offset of a view that equals ``table[indices]``; None if there is none.

    It reads the values of the indices, and so waits for the device.
    """
    reach = 1 + sum((size - 1) * step for size, step in zip(table.shape, table.stride(), strict=True))
    if reach > _MOST_LOOKED_AT or not table.numel():
        return None
    memory = torch.arange(reach)
    there = [None if index is None else index.cpu() for index in indices]
    places = _aten.index.Tensor(memory.as_strided(table.shape, table.stride()), there)
    if not 0 < places.numel() <= _MOST_LOOKED_AT:
        return None
    first = places[(0,) * places.ndim]
    lines = [places[(*(0,) * dim, slice(None), *(0,) * (places.ndim - dim - 1))] for dim in range(places.ndim)]
    steps = [int(line[1] - line[0]) if len(line) > 1 else 0 for line in lines]
    for dim, step in enumerate(steps):
        first = first + step * torch.arange(places.shape[dim]).view(-1, *(1,) * (places.ndim - dim - 1))
    if min(steps, default=0) < 0 or not torch.equal(first, places):
        return None
    return list(places.shape), steps, int(places.flatten()[0]) + int(table.storage_offset())


def _hashable(arguments: Any) -> Hashable:
    """A key that is equal for the same arguments: tensors by id, numbers by type (1, 1.0 and True are equal) and sign."""
    if isinstance(arguments, (list, tuple)):
        return tuple(_hashable(argument) for argument in arguments)
    if isinstance(arguments, Tensor):
        return id(arguments)
    return type(arguments), repr(arguments) if isinstance(arguments, float) else arguments  # 0.0 and -0.0 are equal


def _layout(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
