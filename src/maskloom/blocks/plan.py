"""A list of what is done to tensors, to do it again without the Python that chose it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from maskloom.masks.forks import computed_once
from maskloom.masks.program import Ref

Tensors = tuple[Tensor, ...]

_aten = torch.ops.aten

# torch's functions that are the operation of aten of their name, and quicker to call
_QUICKER = {
    getattr(_aten, name): getattr(torch, name)
    for name in (
        "add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not",
        "minimum", "maximum", "amin", "amax", "aminmax", "any", "where",
    )
}  # fmt: skip
_FACTOR_LAST = {_aten.add.Scalar, _aten.sub.Scalar}  # a third argument, which those functions take by name only


@dataclass(frozen=True, slots=True)
class Call:
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

    calls: tuple[Call, ...]
    inputs: int
    results: tuple[Ref | Tensor, ...]
    nbytes: int

    def run(self, inputs: Sequence[Tensor]) -> Tensors:
        """Everything again, for other inputs of the same shapes, strides and dtypes."""
        return self._function(*inputs)

    @computed_once
    def _function(self) -> Callable[..., Tensors]:
        """The list as a function of Python, a line for each operation: the interpreter has nothing else to do."""
        constants: dict[str, Any] = {}

        def said(argument: Any) -> str:
            if isinstance(argument, Ref):
                return f"v{argument.slot}"
            if isinstance(argument, (list, tuple)) and any(values_in(argument)):
                return f"[{', '.join(map(said, argument))}]"
            constants[f"c{len(constants)}"] = argument
            return f"c{len(constants) - 1}"

        lines = [f"def run({', '.join(f'v{place}' for place in range(self.inputs))}):"]
        for call in self.calls:
            arguments = [*map(said, call.args), *(f"{name}={said(item)}" for name, item in call.kwargs.items())]
            results = ", ".join(f"v{place}" for place in call.results) + "," * (not call.is_one)
            quicker = None if call.op in _FACTOR_LAST else _QUICKER.get(getattr(call.op, "overloadpacket", None))
            lines.append(f" {results} = {said(quicker or call.op)}({', '.join(arguments)})")
            lines += [f" del v{place}" for place in call.over]
        lines.append(f" return ({''.join(said(result) + ', ' for result in self.results)})")
        exec("\n".join(lines), constants)
        return cast(Callable[..., Tensors], constants["run"])


def flat(arguments: Any) -> Iterator[Any]:
    """What arguments hold, lists in them opened."""
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from flat(argument)
        else:
            yield argument


def values_in(arguments: Any) -> Iterator[Ref]:
    """The references to values in arguments."""
    return (found for found in flat(arguments) if isinstance(found, Ref))
