"""How each aten operation is written in instructions of the page.

An operation without a rule is one whose numbers a browser does not give exactly (``exp``, a sum of floats), or that is rare:
its mask is drawn by tiles.
"""

from typing import Any

import torch

from maskloom.show.explorer.arithmetic import (
    clamped,
    compared,
    computed,
    divided,
    exactly,
    inverted,
    is_nan,
    is_within,
    kept,
    logical,
    power,
    rounded,
    single,
    square,
    where,
)
from maskloom.show.explorer.lowering import Rule
from maskloom.show.explorer.reads import indexed
from maskloom.show.explorer.reductions import argument, bucket, cumulative_sum, folded, is_among, searched

_aten = torch.ops.aten

_NAMES: dict[str, Rule] = {
    **{name: compared(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{name: computed(name) for name in ("add", "sub", "mul")},
    "rsub": computed("sub", swapped=True),
    "div": divided, "floor_divide": exactly("floordiv"),
    "remainder": exactly("remainder"), "fmod": exactly("fmod"),
    "minimum": computed("min"), "maximum": computed("max"),
    "bitwise_and": computed("and"), "bitwise_or": computed("or"), "bitwise_xor": computed("xor"),
    **dict.fromkeys(("bitwise_left_shift", "__lshift__"), computed("shl")),
    **dict.fromkeys(("bitwise_right_shift", "__rshift__"), computed("shr")),
    "bitwise_not": inverted,
    "logical_and": logical("and"), "logical_or": logical("or"), "logical_xor": logical("xor"),
    "logical_not": logical("not"),
    "neg": single("neg"), "abs": single("abs"), "sign": single("sign"), "sqrt": single("sqrt"),
    **{name: rounded(name) for name in ("floor", "ceil", "round", "trunc")},
    "isnan": is_nan, "isinf": is_within("eq"), "isfinite": is_within("lt"), "pow": power, "square": square,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), clamped),
    "where": where,
    **dict.fromkeys(("_to_copy", "clone", "alias", "detach", "lift_fresh"), kept),
    "any": folded("or"), "all": folded("and"), "sum": folded("add"), "prod": folded("mul"),
    **dict.fromkeys(("max", "amax"), folded("max")), **dict.fromkeys(("min", "amin"), folded("min")),
    "argmax": argument("max"), "argmin": argument("min"), "cumsum": cumulative_sum,
    "isin": is_among, "bucketize": bucket, "searchsorted": searched,
    "index": indexed,
}  # fmt: skip
RULES: dict[Any, Rule] = {getattr(_aten, name): rule for name, rule in _NAMES.items() if hasattr(_aten, name)}
"""The rule of each operation, an overload packet of ``torch.ops.aten``."""
