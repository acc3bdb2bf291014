"""The ints of masks and score mods while torch traces: an int that changes between calls is a symbol without value.

Under dynamo a symbol looks like an int; in a trace that is not strict it is a SymInt. Code that asks for its value
(``int(n)``, ``operator.index(n)``, ``n`` as key of a dict) makes it a constant, and torch then needs one graph per
value. Comparisons keep it a symbol, and guard the graph by their result.

A kernel cannot hold a symbol. So `maskloom.core.values.numbers_as_tensors`, and nothing else, turns the symbols that
`flex_attention` captures into tensors, just before the call. Everywhere else a symbol is used like an int.
"""

from typing import TypeGuard

import torch
from torch import Tensor


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is an int or a symbol for an int; False for a bool."""
    return type(value) is int or isinstance(value, torch.SymInt)


def known(condition: bool) -> bool:
    """Whether it is known to be true; False for a number that a trace knows nothing about (from ``tensor.item()``)."""
    if torch.compiler.is_dynamo_compiling() or isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(condition)
    return condition


def is_dynamic(number: int) -> bool:
    """Whether torch traces, and the number is a symbol without one known value."""
    if torch.compiler.is_dynamo_compiling() or isinstance(number, torch.SymInt):
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return not has_static_value(number)
    return False


def is_one_of(found: object, *others: object) -> bool:
    """Whether it equals one of the others. Never as ``size in (1, other)``: dynamo says False where one is a number and the other a
    symbol of the same value (torch 2.11 to 2.13).
    """
    return any(found == other for other in others)


def as_tensor(number: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """A number as an int64 tensor without dimensions, which keeps the symbol in a trace; a tensor unchanged."""
    return number if isinstance(number, Tensor) else torch.full((), number, dtype=torch.int64, device=device)


def ceil_div(number: int, by: int) -> int:
    """Parts of ``by`` that hold a number, the last one cut. Never as ``-(-number // by)``: the Triton code that torch makes for
    tensors with such symbols as sizes cannot split their elements among dimensions (``CantSplit``, torch 2.11 to 2.13).
    """
    return (number + by - 1) // by
