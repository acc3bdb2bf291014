"""What was done to tensors, written down once and done again without the Python that chose it.

To decide tiles takes some hundred small operations, and on short sequences Python spends longer on choosing them than
torch on running them. Which they are follows from the mask's structure, its numbers and all shapes: with an equal key the
same list is run on the new tensors. What no input goes into is computed once and stays in the list.
"""

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskloom.masks.modes import uncompiled
from maskloom.masks.program import ASKS_PYTHON, Ref

Tensors = tuple[Tensor, ...]

MOST_BYTES = 1 << 26
"""Bytes of constants in all plans that are kept, at most: 64 MiB; the plan unused for longest goes first."""

MOST_BYTES_EACH = 1 << 22
"""Bytes of constants in one plan: 4 MiB, the states of all tiles of a sequence of 256 Ki positions."""

_MOST_KEYS = 256  # that are remembered, with a plan or without


@dataclass(frozen=True, slots=True)
class _Call:
    """One operation; ``over`` are the places of values that nothing reads after it, ``is_one`` says that it gives a tensor and
    not a list of them."""

    op: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    is_one: bool
    over: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A straight list of operations on some inputs.

    Attributes:
        inputs: how many there are; they are the first values.
        results: of the whole; a tensor where it depends on no input.
        nbytes: of the tensors that the plan holds.
    """

    calls: tuple[_Call, ...]
    inputs: int
    results: tuple[Ref | Tensor, ...]
    nbytes: int

    def run(self, inputs: Sequence[Tensor]) -> Tensors:
        """Everything again, for other inputs of the same shapes, strides and dtypes."""
        return self._function(*inputs)

    @functools.cached_property
    def _function(self) -> Callable[..., Tensors]:
        """The list as a function of Python, a line for each operation: the interpreter has nothing else to do."""
        constants: dict[str, Any] = {}

        def said(argument: Any) -> str:
            if isinstance(argument, Ref):
                return f"v{argument.slot}"
            if isinstance(argument, (list, tuple)) and any(_values_in(argument)):
                return f"[{', '.join(map(said, argument))}]"
            constants[f"c{len(constants)}"] = argument
            return f"c{len(constants) - 1}"

        lines = [f"def run({', '.join(f'v{place}' for place in range(self.inputs))}):"]
        for call in self.calls:
            arguments = [*map(said, call.args), *(f"{name}={said(item)}" for name, item in call.kwargs.items())]
            results = ", ".join(f"v{place}" for place in call.results) + "," * (not call.is_one)
            lines.append(f" {results} = {said(call.op)}({', '.join(arguments)})")
            lines += [f" del v{place}" for place in call.over]
        lines.append(f" return ({''.join(said(result) + ', ' for result in self.results)})")
        exec("\n".join(lines), constants)
        return cast(Callable[..., Tensors], constants["run"])


def written_down(
    compute: Callable[[], Tensors], inputs: Sequence[Tensor], constants: Iterable[Tensor] = ()
) -> tuple[Tensors, Plan | None]:
    """What ``compute`` gives, and the plan that gives it for other inputs; without inputs, that is the results.

    There is none where it writes into a tensor, asks for a value, or reads a tensor that is no input, no constant and not
    made on the way: such a thing cannot be done again by a list.
    """
    if not inputs:
        results = compute()
        return results, Plan((), 0, results, _bytes_of(results))
    writer = _Writer(inputs, constants)
    with writer:
        results = compute()
    return results, writer.plan(results)


class _Writer(TorchDispatchMode):
    """Writes down each operation that an input goes into. Tensors are known by identity, and kept alive."""

    def __init__(self, inputs: Sequence[Tensor], constants: Iterable[Tensor]) -> None:
        super().__init__()
        self.possible = True
        self._calls: list[_Call] = []
        self._values: list[Tensor] = []
        self._places: dict[int, int] = {}
        self._owners: dict[int, int] = {}  # of a value that is a view: the value that it is a view of
        self._done: dict[Hashable, tuple[int, ...]] = {}
        self._again: list[Tensor] = []
        self._constants = {id(tensor): tensor for tensor in constants}
        self._inputs = len(inputs)
        for tensor in inputs:
            self._named(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler at the first operation; `planned` keeps dynamo out instead

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written, options = self._written(args), {name: self._written(item) for name, item in kwargs.items()}
        read = [tensor for tensor in _flat(args) if isinstance(tensor, Tensor) and id(tensor) in self._places]
        result = func(*args, **kwargs)
        outs = result if isinstance(result, (list, tuple)) else (result,)
        asks = bool(read) and func.overloadpacket in ASKS_PYTHON
        if func._schema.is_mutable or asks or any(_values_in(options.values())):
            self.possible = False
        elif read and all(_memory(out) == _memory(read[0]) and out.dtype == read[0].dtype for out in outs):
            for view in outs:
                self._write_view(view, self._places[id(read[0])])
        elif read:
            self._write(func, written, options, result)
        else:
            self._constants |= {id(out): out for out in outs}
        return result

    def plan(self, results: Tensors) -> Plan | None:
        """The plan of all that was written down, without what no result needs."""
        ends = tuple(self._written(results))
        if not self.possible:
            return None
        needed = {value.slot for value in _values_in(ends)}
        calls: list[_Call] = []
        for call in reversed(self._calls):
            if needed.isdisjoint(call.results):
                continue
            read = {value.slot for value in _values_in(call.args)}
            calls.append(dataclasses.replace(call, over=tuple(read - needed)))
            needed |= read
        held = {
            id(found): found for found in _flat([ends, *(call.args for call in calls)]) if isinstance(found, Tensor)
        }
        return Plan(tuple(reversed(calls)), self._inputs, ends, _bytes_of(held.values()))

    def _write_view(self, view: Tensor, place: int) -> None:
        """A view, of views too, as one step from the value that owns the memory."""
        owner = self._owners.get(place, place)
        if _layout(view) == _layout(self._values[owner]):
            self._known_as(view, owner)
            return
        args = [Ref(owner), *_layout(view)]
        self._write(torch.as_strided, args, {}, view)  # which is quicker than the operation of aten
        self._owners[self._places[id(view)]] = owner

    def _write(self, op: Any, args: list[Any], kwargs: dict[str, Any], result: Tensor | Sequence[Tensor]) -> None:
        """One more operation, unless the very same was done before: a mask may read one table for queries and keys."""
        outs = (result,) if isinstance(result, Tensor) else result
        same = op, _hashable(args), _hashable(list(kwargs.items()))
        if same in self._done:
            for out, place in zip(outs, self._done[same], strict=True):
                self._known_as(out, place)
        else:
            self._done[same] = tuple(map(self._named, outs))
            self._calls.append(_Call(op, args, kwargs, self._done[same], isinstance(result, Tensor)))

    def _known_as(self, tensor: Tensor, place: int) -> None:
        self._places[id(tensor)] = place
        self._again.append(tensor)  # kept alive, as all that is known by identity

    def _named(self, tensor: Tensor) -> int:
        self.possible &= id(tensor) not in self._places  # one tensor twice: which of the two would it be?
        self._places[id(tensor)] = len(self._values)
        self._values.append(tensor)
        return len(self._values) - 1

    def _written(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            if id(argument) in self._places:
                return Ref(self._places[id(argument)])
            self.possible &= id(argument) in self._constants  # or it may have been computed from an input before
            return argument
        return [self._written(item) for item in argument] if isinstance(argument, (list, tuple)) else argument


def _hashable(arguments: Any) -> Hashable:
    """Equal for the same arguments: tensors by identity, numbers by type too (1, 1.0 and True are equal) and by sign."""
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


def _flat(arguments: Any) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from _flat(argument)
        else:
            yield argument


def _values_in(arguments: Any) -> Iterator[Ref]:
    return (found for found in _flat(arguments) if isinstance(found, Ref))


_plans: OrderedDict[Hashable, Plan | bool] = OrderedDict()  # False: there can be none; True: to be written down
_lock = threading.Lock()


def planned(
    key: Hashable, inputs: Sequence[Tensor], compute: Callable[[], Tensors], *, constants: Iterable[Tensor] = ()
) -> Tensors:
    """``compute()``; from the third time with an equal key on by the plan that the second one wrote down.

    Args:
        key: says everything that ``compute`` depends on but the values in ``inputs``: shapes, strides and dtypes of
            those, devices and the stream, numbers.
        compute: a function of the inputs.
        constants: tensors that it reads as well, which never change.
    """
    with _lock:
        plan = _plans.get(key)
        if plan is not None:
            _plans.move_to_end(key)
    if isinstance(plan, Plan):
        return plan.run(inputs)
    if not plan:
        results = compute()
        if plan is None:
            _keep(key, True)
        return results
    results, written = uncompiled(written_down)(compute, inputs, constants)
    _keep(key, written if written is not None and written.nbytes <= MOST_BYTES_EACH else False)
    return results


def _keep(key: Hashable, plan: Plan | bool) -> None:
    with _lock:
        _plans[key] = plan
        _plans.move_to_end(key)
        while (
            len(_plans) > _MOST_KEYS
            or sum(kept.nbytes for kept in _plans.values() if isinstance(kept, Plan)) > MOST_BYTES
        ):
            _plans.popitem(last=False)
