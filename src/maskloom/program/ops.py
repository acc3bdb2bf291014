"""Facts about aten's operations: one table; each reader takes the facts that it needs.

Results are right for an operation without an entry too: its result is unknown, and what depends on it is evaluated element
by element. Two kinds of knowledge are code and not facts: how to run an operation with batch dims (`program.batched`), and
its interval rule (`blocks.intervals.rules`).
"""

import enum
from typing import Any

import torch

_aten = torch.ops.aten


class Fact(enum.Flag):
    """One fact about an operation."""

    COMPARES = enum.auto()  # compares two numbers and returns a bool
    COMPUTES = enum.auto()  # arithmetic: torch.vmap promotes dtypes like the scalar function
    PROMOTES = enum.auto()  # promotes its tensors to one dtype
    KEEPS_VALUE = enum.auto()  # returns its input values, perhaps in another dtype
    REDUCES = enum.auto()  # reduces over event dims
    READS_NO_VALUE = enum.auto()  # uses only the shape and dtype of a tensor
    ASKS_PYTHON = enum.auto()  # depends on values in a way that no recorded program can express
    DIVIDES = enum.auto()  # Triton 3.6 divides negative numbers wrongly
    IN_FLASH = enum.auto()  # correct in a mask inside FlashAttention 4 (4.0.0b4, H100)
    IS_A_COUNT = enum.auto()  # its result is never negative
    KEEPS_SIGN = enum.auto()  # its result is not negative if its first input is not negative


C, A, P, K, R = Fact.COMPARES, Fact.COMPUTES, Fact.PROMOTES, Fact.KEEPS_VALUE, Fact.REDUCES
F, D, N, S = Fact.IN_FLASH, Fact.DIVIDES, Fact.IS_A_COUNT, Fact.KEEPS_SIGN

_TABLE: dict[str, Fact] = {
    # comparisons and logic
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), C | P | F),
    **dict.fromkeys(("logical_and", "logical_or"), P | F),
    "logical_xor": P, "logical_not": F, "bitwise_not": F,
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), A | P | F),
    # arithmetic
    **dict.fromkeys(("add", "sub", "rsub", "mul"), A | P | F),
    **dict.fromkeys(("neg",), F), "abs": F | N, "square": N,
    **dict.fromkeys(("div", "floor_divide", "remainder", "fmod"), A | P | D),
    **dict.fromkeys(("pow", "minimum", "maximum", "bitwise_left_shift", "__lshift__"), A | P),
    **dict.fromkeys(("bitwise_right_shift", "__rshift__"), A | P),
    "clamp": P, "where": P | F,
    **dict.fromkeys(("floor", "ceil", "round", "trunc"), S),
    # values unchanged
    "_to_copy": K | S | F,
    **dict.fromkeys(("clone", "alias", "detach", "lift_fresh"), K | S),
    # shapes
    **dict.fromkeys(
        ("expand", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "select", "slice"), S
    ),
    # reads of tables
    "index": S | F, "gather": S, "index_select": S, "embedding": S,
    # reductions
    **dict.fromkeys(("any", "all", "max", "min", "mean", "cumsum", "sum", "prod"), R),
    **dict.fromkeys(("amin", "amax"), R | S),
    **dict.fromkeys(("argmax", "argmin"), R | N),
    **dict.fromkeys(("searchsorted", "bucketize", "count_nonzero"), N),
    # use only shapes and dtypes
    **dict.fromkeys(("new_ones", "new_zeros"), Fact.READS_NO_VALUE | F), **dict.fromkeys(("ones", "zeros"), F),
    **dict.fromkeys(
        ("new_full", "new_empty", "new_empty_strided", "ones_like", "zeros_like", "full_like", "empty_like"),
        Fact.READS_NO_VALUE,
    ),
    # ask for values in Python
    **dict.fromkeys(("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"), Fact.ASKS_PYTHON),
}  # fmt: skip
"""The name of an operation (an overload packet of ``torch.ops.aten``), and the facts about it."""


def names_of(fact: Fact) -> frozenset[str]:
    """The names of all operations with a fact."""
    return frozenset(name for name, facts in _TABLE.items() if fact in facts)


def having(fact: Fact) -> frozenset[Any]:
    """All operations with a fact, as overload packets."""
    return frozenset(getattr(_aten, name) for name in names_of(fact) if hasattr(_aten, name))


OUT_OF_PLACE = {
    getattr(getattr(_aten, f"{name}_"), overload): getattr(getattr(_aten, name), overload)
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "add", "sub", "mul")
    for overload in ("Tensor", "Scalar")
}
"""In-place operations, and the operations that return the same result in a new tensor."""
