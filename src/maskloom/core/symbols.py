"""The ints of masks and score mods while torch traces, where one that changes from call to call has no value.

torch.compile and torch.export hold such an int as a symbol: under dynamo it looks like an int, in a trace that is not strict
it is a SymInt. What asks for its value (``int(n)``, ``operator.index(n)``, a use as key of a dict) makes a constant of it, and
a graph for each value. Comparisons keep it a symbol, and guard the graph by what they found.

A kernel cannot hold a symbol: what `flex_attention` captures becomes a tensor where it is called, by
`maskloom.core.values.numbers_as_tensors`, and nowhere else. Elsewhere a symbol serves as the int that it stands for.
"""

from typing import TypeGuard

import torch
from torch import Tensor


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is an int, or a symbol for one; a bool is none."""
    return type(value) is int or isinstance(value, torch.SymInt)


def known(condition: bool) -> bool:
    """Whether it is so; False of a number that torch knows nothing of while it traces, one from ``tensor.item()``."""
    if torch.compiler.is_dynamo_compiling() or isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(condition)
    return condition


def is_dynamic(number: int) -> bool:
    """Whether torch traces and holds the number as a symbol that is not known to have one value."""
    if torch.compiler.is_dynamo_compiling() or isinstance(number, torch.SymInt):
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return not has_static_value(number)
    return False


def as_tensor(number: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """A number as an int64 tensor without dimensions, which a trace holds by its symbol; a tensor as it is."""
    return number if isinstance(number, Tensor) else torch.full((), number, dtype=torch.int64, device=device)
