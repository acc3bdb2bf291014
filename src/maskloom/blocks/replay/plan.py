"""A recorded list of tensor operations, to replay them without the Python that chose them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from maskloom.blocks.replay.captured import CapturedCalls, are_allowed
from maskloom.core.forks import computed_once
from maskloom.program.program import Value, leaves

Tensors = tuple[Tensor, ...]

_MOST_CAPTURED = 1 << 26
"""Maximum bytes of all values of a list that becomes a CUDA graph: with more, its launches take little of the time."""

_aten = torch.ops.aten

# torch functions that run the aten operation of the same name, and are faster to call
_QUICKER = {
    getattr(_aten, name): getattr(torch, name)
    for name in (
        "add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not",
        "minimum", "maximum", "amin", "amax", "aminmax", "any", "where", "masked_fill", "remainder",
    )
} | {_aten.view: Tensor.view}  # fmt: skip
_FACTOR_LAST = {_aten.add.Scalar, _aten.sub.Scalar}  # the torch functions take their third argument by name only


@dataclass(frozen=True, slots=True)
class Call:
    """One operation. ``over``: slots that nothing reads after it; ``is_one``: it returns one tensor, not a list."""

    op: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    is_one: bool
    over: tuple[int, ...] = ()

    def changed(self, op: Any, args: list[Any]) -> "Call":
        """The same step of a plan by another function, without options."""
        return replace(self, op=op, args=args, kwargs={})


@dataclass(frozen=True)
class ReplayPlan:
    """A straight list of operations on some inputs.

    Attributes:
        inputs: the number of inputs; they are the first values.
        results: the results of the plan; a tensor where a result depends on no input.
        nbytes: bytes of the tensors that the plan holds.
        on_arrays: the same calls by functions of NumPy, if these give the same bits and are faster.
        work: bytes of all values, inputs too.
    """

    calls: tuple[Call, ...]
    inputs: int
    results: tuple[Value | Tensor, ...]
    nbytes: int
    on_arrays: tuple[Call, ...] | None = None
    work: int = 0

    def run(self, inputs: Sequence[Tensor]) -> Tensors:
        """Replay all operations on other inputs of the same shapes, strides, storage offsets and dtypes."""
        if self.on_arrays is None or any(type(tensor) is not Tensor for tensor in inputs):
            with torch.no_grad():
                if are_allowed() and self.work <= _MOST_CAPTURED and inputs and inputs[0].is_cuda:
                    return self._captured(inputs)
                return self._function(*inputs)
        return tuple(map(_as_tensor, self._function_of_arrays(*[tensor.numpy() for tensor in inputs])))

    def listed(self, inputs: Sequence[Tensor]) -> Tensors:
        """`run`, by the list itself: within another capture."""
        with torch.no_grad():
            return self._function(*inputs)

    @property
    def constants(self) -> list[Tensor]:
        """The tensors that its calls read and that are no inputs."""
        return list(leaves([call.args for call in self.calls], Tensor))

    @computed_once
    def _captured(self) -> CapturedCalls:
        return CapturedCalls(self._function, [self._given(result) for result in self.results])

    def _given(self, result: Value | Tensor) -> int | Tensor | None:
        if isinstance(result, Tensor):
            return result
        return result.slot if result.slot < self.inputs else None

    @computed_once
    def _function(self) -> Callable[..., Tensors]:
        return _compiled(self.calls, self.inputs, self.results)

    @computed_once
    def _function_of_arrays(self) -> Callable[..., tuple[Any, ...]]:
        return _compiled(self.on_arrays or (), self.inputs, self.results)


def _as_tensor(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else torch.from_numpy(np.asarray(result))


def _compiled(
    calls: Sequence[Call], inputs: int, results: tuple[Value | Tensor, ...]
) -> Callable[..., tuple[Any, ...]]:
    """The list as a Python function, one line per operation: the interpreter has nothing else to do."""
    constants: dict[str, Any] = {}

    lines = [f"def run({', '.join(f'v{place}' for place in range(inputs))}):"]
    for call in calls:
        arguments = [
            *(_source_of(item, constants) for item in call.args),
            *(f"{name}={_source_of(item, constants)}" for name, item in call.kwargs.items()),
        ]
        outs = ", ".join(f"v{place}" for place in call.results) + "," * (not call.is_one)
        quicker = None if call.op in _FACTOR_LAST else _QUICKER.get(getattr(call.op, "overloadpacket", None))
        lines.append(f" {outs} = {_source_of(quicker or call.op, constants)}({', '.join(arguments)})")
        lines += [f" del v{place}" for place in call.over]
    lines.append(f" return ({''.join(_source_of(result, constants) + ', ' for result in results)})")
    exec("\n".join(lines), constants)
    return cast(Callable[..., tuple[Any, ...]], constants["run"])


def _source_of(argument: Any, constants: dict[str, Any]) -> str:
    """The source text of an argument; anything but a Value gets a name among the constants."""
    if isinstance(argument, Value):
        return f"v{argument.slot}"
    if isinstance(argument, (list, tuple)) and any(leaves(argument, Value)):
        return f"[{', '.join(_source_of(item, constants) for item in argument)}]"
    constants[f"c{len(constants)}"] = argument
    return f"c{len(constants) - 1}"
