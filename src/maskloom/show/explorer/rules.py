"""How each aten operation is written in instructions of the page.

An operation without a rule is one whose numbers a browser does not give exactly (``exp``, a sum of floats), or that is rare:
its mask is drawn by tiles.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from maskloom.program.program import Op, Value
from maskloom.show.explorer.instructions import NotInThePageError
from maskloom.show.explorer.lowering import Entry, Lowering, Rule, Slots, Table

_aten = torch.ops.aten
_BOOL, _INT64 = torch.bool, torch.int64
MOST_CHOICES = 256


def _meta_dtype(low: Lowering, step: Op) -> torch.dtype:
    return low.program.meta(step.results[0]).dtype


def _no_options(step: Op, *known: str) -> None:
    options = {name: item for name, item in step.kwargs.items() if name not in known and item is not None}
    if options:
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} has options: {', '.join(options)}")


# -- arithmetic and comparisons ----------------------------------------------------------------------------------------


def _compared(operation: str) -> Rule:
    def rule(low: Lowering, step: Op) -> list[Entry]:
        dtype = low.common(step.args, wide=True)
        left, right = (low.slots(argument, dtype) for argument in step.args)
        return [low.each(operation, dtype, left, right, result=_BOOL)]

    return rule


def _computed(operation: str, *, swapped: bool = False) -> Rule:
    """An operation of two numbers, in the dtype of its result."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        dtype = _meta_dtype(low, step)
        left, right = (low.slots(argument, dtype) for argument in step.args[:2])
        _check_alpha(step)
        pair = (right, left) if swapped else (left, right)
        return [low.each(operation, dtype, *pair, result=dtype)]

    return rule


def _check_alpha(step: Op) -> None:
    _no_options(step, "alpha")
    alpha = step.args[2] if len(step.args) > 2 else step.kwargs.get("alpha", 1)
    if alpha != 1:
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} has alpha={alpha}")


def _divided(low: Lowering, step: Op) -> list[Entry]:
    mode = step.kwargs.get("rounding_mode")
    operation = {None: "div", "floor": "floordiv", "trunc": "truncdiv"}[mode]
    dtype = _meta_dtype(low, step)
    if mode and dtype in (torch.float16, torch.bfloat16):
        raise NotInThePageError(f"it divides and rounds in {dtype}")
    left, right = (low.slots(argument, dtype) for argument in step.args[:2])
    return [low.each(operation, dtype, left, right, result=dtype)]


def _exactly(operation: str) -> Rule:
    """A division whose rounding in half precision is not that of float32."""
    inner = _computed(operation)

    def rule(low: Lowering, step: Op) -> list[Entry]:
        if _meta_dtype(low, step) in (torch.float16, torch.bfloat16):
            raise NotInThePageError(f"it takes {step.op.overloadpacket.__name__} in half precision")
        return inner(low, step)

    return rule


def _single(operation: str) -> Rule:
    """An operation of one number, in its dtype."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        if len(step.args) > 1:
            raise NotInThePageError(f"{step.op.overloadpacket.__name__} has options")
        _no_options(step)
        dtype = _meta_dtype(low, step)
        return [low.each(operation, dtype, low.slots(step.args[0], dtype), result=dtype)]

    return rule


def _rounded(operation: str) -> Rule:
    """Integers are whole already."""
    inner = _single(operation)

    def rule(low: Lowering, step: Op) -> list[Entry]:
        value = low.slots(step.args[0])
        return inner(low, step) if value.dtype.is_floating_point else [value]

    return rule


def _inverted(low: Lowering, step: Op) -> list[Entry]:
    value = low.slots(step.args[0])
    return [low.each("not", value.dtype, value, result=value.dtype)]


def _is_true(low: Lowering, argument: Any) -> Slots:
    """Whether a value is not zero; NaN is not."""
    if not isinstance(argument, (Value, Tensor)):
        return low.slots(bool(argument), _BOOL)
    return low.cast(low.slots(argument), _BOOL)


def _logical(operation: str) -> Rule:
    def rule(low: Lowering, step: Op) -> list[Entry]:
        parts = [_is_true(low, argument) for argument in step.args]
        return [low.each(operation, _BOOL, *parts, result=_BOOL)]

    return rule


def _is_nan(low: Lowering, step: Op) -> list[Entry]:
    value = low.slots(step.args[0])
    return [low.each("ne", value.dtype, value, value, result=_BOOL)]


def _power(low: Lowering, step: Op) -> list[Entry]:
    """Integers to any small power; floats to those that torch multiplies out."""
    value, exponent = step.args
    dtype = _meta_dtype(low, step)
    most = 3 if dtype.is_floating_point else 64
    whole = isinstance(exponent, (int, float)) and exponent == int(exponent) and 1 <= exponent <= most
    if not whole or dtype in (torch.float16, torch.bfloat16):
        raise NotInThePageError(f"it takes the power {exponent} in {dtype}")
    base = low.slots(value, dtype)
    return [functools.reduce(lambda left, right: _times(low, left, right), [base] * int(exponent))]


def _times(low: Lowering, left: Slots, right: Slots) -> Slots:
    return low.each("mul", left.dtype, left, right, result=left.dtype)


def _square(low: Lowering, step: Op) -> list[Entry]:
    base = low.slots(step.args[0], _meta_dtype(low, step))
    return [_times(low, base, base)]


def _clamped(low: Lowering, step: Op) -> list[Entry]:
    dtype = _meta_dtype(low, step)
    value = low.slots(step.args[0], dtype)
    bounds = {"min": step.kwargs.get("min"), "max": step.kwargs.get("max")}
    bounds |= dict(zip(_BOUNDS.get(step.op.overloadpacket, ("min", "max")), step.args[1:], strict=False))
    for name, operation in (("min", "max"), ("max", "min")):
        if bounds[name] is not None:
            value = low.each(operation, dtype, value, low.slots(bounds[name], dtype), result=dtype)
    return [value]


_BOUNDS = {_aten.clamp_min: ("min",), _aten.clamp_max: ("max",)}


def _where(low: Lowering, step: Op) -> list[Entry]:
    dtype = _meta_dtype(low, step)
    condition, *choices = step.args
    parts = [low.slots(choice, dtype) for choice in choices]
    return [low.each("where", dtype, _is_true(low, condition), *parts, result=dtype)]


def _kept(low: Lowering, step: Op) -> list[Entry]:
    """A copy, perhaps in another dtype."""
    return [low.slots(step.args[0], _meta_dtype(low, step))]


# -- reductions over a value's own dimensions --------------------------------------------------------------------------


def _lines(low: Lowering, step: Op, dim: Any, dtype: torch.dtype | None) -> tuple[list[Slots], tuple[int, ...]]:
    """What is reduced together: one value for each step along the reduced dimensions; and the shape of the result."""
    value = low.slots(step.args[0])
    value = value if dtype is None else low.cast(value, dtype)
    rank = value.slots.ndim
    given = list(range(rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    dims = sorted(place % rank for place in given) if rank else []
    others = [place for place in range(rank) if place not in dims]
    ordered = value.slots.permute(*dims, *others).reshape(-1, *(value.slots.shape[place] for place in others))
    if not len(ordered):
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} of no values")
    return [Slots(slots, value.dtype) for slots in ordered], low.program.meta(step.results[0]).shape


def _folded(operation: str) -> Rule:
    """any, all, min, max, and sums of integers: one number after another."""

    def rule(low: Lowering, step: Op) -> list[Entry]:
        _no_options(step, "dim", "keepdim", "dtype")
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
        if isinstance(dim, (Value, Tensor)):  # max(a, b) of two values
            return _computed(operation)(low, step)
        dtype = _meta_dtype(low, step)
        if operation in ("add", "mul") and dtype.is_floating_point:
            raise NotInThePageError(f"{step.op.overloadpacket.__name__} of floats rounds in an order of its own")
        lines, shape = _lines(low, step, dim, dtype)
        found = functools.reduce(lambda left, right: low.each(operation, dtype, left, right, result=dtype), lines)
        results: list[Entry] = [Slots(found.slots.reshape(shape), dtype)]
        if len(step.results) == 2:
            results.append(_where_first(low, lines, found, shape))
        return results

    return rule


def _where_first(low: Lowering, lines: list[Slots], found: Slots, shape: tuple[int, ...]) -> Slots:
    """The number of the first line that equals what was found."""
    if found.dtype.is_floating_point:
        raise NotInThePageError("it asks where the largest of floats is")
    place = low.slots(len(lines) - 1, _INT64)
    for number, line in reversed(list(enumerate(lines[:-1]))):
        here = low.each("eq", found.dtype, line, found, result=_BOOL)
        place = low.each("where", _INT64, here, low.slots(number, _INT64), place, result=_INT64)
    return Slots(place.slots.expand(found.slots.shape).reshape(shape), _INT64)


def _argument(operation: str) -> Rule:
    def rule(low: Lowering, step: Op) -> list[Entry]:
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
        lines, shape = _lines(low, step, dim, None)
        dtype = lines[0].dtype
        found = functools.reduce(lambda left, right: low.each(operation, dtype, left, right, result=dtype), lines)
        return [_where_first(low, lines, found, shape)]

    return rule


def _cumulative_sum(low: Lowering, step: Op) -> list[Entry]:
    dtype, value = _meta_dtype(low, step), low.slots(step.args[0])
    if dtype.is_floating_point or not value.slots.ndim:
        raise NotInThePageError("it takes a running sum of floats, or of one number")
    lines = low.cast(value, dtype).slots.movedim(step.args[1], 0)
    sums = [Slots(lines[0], dtype)]
    for line in lines[1:]:
        sums.append(low.each("add", dtype, sums[-1], Slots(line, dtype), result=dtype))
    return [Slots(torch.stack([part.slots for part in sums]).movedim(0, step.args[1]), dtype)]


# -- reading tables ----------------------------------------------------------------------------------------------------


def _indexed(low: Lowering, step: Op) -> list[Entry]:
    """``table[i, j, ...]``: a table keeps the indices, and is read where a number is needed."""
    table, given = step.args
    shape = low.program.meta(table).shape
    indices = [*given, *[None] * (len(shape) - len(given))]
    read = [dim for dim, index in enumerate(indices) if index is not None]
    parts = [low.slots(indices[dim]) for dim in read]
    if any(part.dtype in (_BOOL, torch.uint8) for part in parts):
        raise NotInThePageError("it reads a table by bools or by uint8")
    places = torch.broadcast_tensors(*(part.slots for part in parts))
    entry = low.entry(table)
    if places[0].ndim == 0 and isinstance(entry, Table):
        return [_further(entry, read, [int(place) for place in places])]
    return [_read_each(low, table, read, list(places))]


def _further(entry: Table, read: list[int], slots: list[int]) -> Table:
    """The table with more of its dimensions read by indices."""
    lead = len(entry.indices)
    rest = [dim for dim in range(entry.table.ndim - lead) if dim not in read]
    order = [*range(lead), *(lead + dim for dim in read), *(lead + dim for dim in rest)]
    return Table(entry.table.permute(order), (*entry.indices, *slots))


def _read_each(low: Lowering, table: Any, read: list[int], places: list[Tensor]) -> Slots:
    """A read for each entry of the indices, placed as advanced indexing does."""
    found = [
        _read_one(low, table, read, list(slots)) for slots in zip(*(p.flatten().tolist() for p in places), strict=True)
    ]
    shape, rank = places[0].shape, places[0].ndim
    slots = torch.stack([one.slots for one in found]).reshape(*shape, *found[0].slots.shape)
    before = read[0] if read == list(range(read[0], read[-1] + 1)) else 0
    slots = slots.movedim(tuple(range(rank, rank + before)), tuple(range(before))) if before and rank else slots
    return Slots(slots, found[0].dtype)


def _read_one(low: Lowering, table: Any, read: list[int], slots: list[int]) -> Slots:
    entry = low.entry(table)
    if isinstance(entry, Table):
        return low._read(_further(entry, read, slots))
    rest = [dim for dim in range(entry.slots.ndim) if dim not in read]
    return _chosen(low, Slots(entry.slots.permute(*read, *rest), entry.dtype), slots)


def _chosen(low: Lowering, value: Slots, slots: list[int]) -> Slots:
    """Entries of a value that is computed for each pair, by indices along its first dimensions."""
    if not slots:
        return value
    if len(value.slots) > MOST_CHOICES:
        raise NotInThePageError(f"it reads {len(value.slots)} values that it computes for one pair")
    index = Slots(torch.tensor(slots[0]), _INT64)
    inner = [_chosen(low, Slots(one, value.dtype), slots[1:]) for one in value.slots]
    return low.each("choose", value.dtype, index, *inner, result=value.dtype)


_NAMES: dict[str, Rule] = {
    **{name: _compared(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{name: _computed(name) for name in ("add", "sub", "mul")},
    "rsub": _computed("sub", swapped=True),
    "div": _divided, "floor_divide": _exactly("floordiv"),
    "remainder": _exactly("remainder"), "fmod": _exactly("fmod"),
    "minimum": _computed("min"), "maximum": _computed("max"),
    "bitwise_and": _computed("and"), "bitwise_or": _computed("or"), "bitwise_xor": _computed("xor"),
    **dict.fromkeys(("bitwise_left_shift", "__lshift__"), _computed("shl")),
    **dict.fromkeys(("bitwise_right_shift", "__rshift__"), _computed("shr")),
    "bitwise_not": _inverted,
    "logical_and": _logical("and"), "logical_or": _logical("or"), "logical_xor": _logical("xor"),
    "logical_not": _logical("not"),
    "neg": _single("neg"), "abs": _single("abs"), "sign": _single("sign"), "sqrt": _single("sqrt"),
    **{name: _rounded(name) for name in ("floor", "ceil", "round", "trunc")},
    "isnan": _is_nan, "pow": _power, "square": _square,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamped),
    "where": _where,
    **dict.fromkeys(("_to_copy", "clone", "alias", "detach", "lift_fresh"), _kept),
    "any": _folded("or"), "all": _folded("and"), "sum": _folded("add"), "prod": _folded("mul"),
    **dict.fromkeys(("max", "amax"), _folded("max")), **dict.fromkeys(("min", "amin"), _folded("min")),
    "argmax": _argument("max"), "argmin": _argument("min"), "cumsum": _cumulative_sum,
    "index": _indexed,
}  # fmt: skip
RULES: dict[Any, Rule] = {getattr(_aten, name): rule for name, rule in _NAMES.items() if hasattr(_aten, name)}
"""The rule of each operation, an overload packet of ``torch.ops.aten``."""
