"""Masks that read tables where a kernel reads wrongly: at a negative index, and in FLASH at one of 64 bits.

torch counts a negative index from the end of the table. The kernels do not: Triton (torch 2.11, H200) reads before the table
at a constant, ``table[-1, kv_idx]``, and at a sum, ``table[h, q_idx - kv_idx]``, and FLASH at every one. FLASH also refuses
to compile a read at an int64 index ("Type mismatch, store Int64 to Tensor with element type Int32"). Such a mask reaches the
kernel as its recorded program, in which each read is mended.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.cache import cached_with
from maskloom.masks.algebra import Mask, as_mask, mask_dataclass
from maskloom.program.mask_program import known_of
from maskloom.program.ops import Fact, names_of
from maskloom.program.program import INDICES, CaptureSlot, MaskMod, Op, Program, Value, mapped
from maskloom.program.record import record
from maskloom.program.vmapped import one_example

_aten = torch.ops.aten


def with_mended_reads(mask_mod: MaskMod, device: torch.device, *, narrow: bool = False) -> MaskMod:
    """The mask as a kernel reads it rightly: itself where nothing is to be mended.

    A function is looked at once, and one that is mended, at every call.

    Args:
        device: that of the attention.
        narrow: whether indices must have 32 bits, as FLASH wants them.
    """
    if torch.compiler.is_dynamo_compiling():  # nothing can be recorded then
        return mask_mod
    key = "reads", narrow, device

    if not cached_with(mask_mod, key, lambda: _needs_mending(mask_mod, device, narrow), functions_too=True):
        return mask_mod
    return cached_with(mask_mod, ("mended", *key), lambda: _mended(mask_mod, device, narrow))


def _needs_mending(mask_mod: MaskMod, device: torch.device, narrow: bool) -> bool:
    verdict = _verdict_of_kind(mask_mod, device, narrow)
    return (_verdict(mask_mod, device, narrow) if verdict.by_values else verdict).mends


def reads_by_values(mask_mod: MaskMod, device: torch.device) -> bool:
    """Whether the values of its tables say how a kernel reads it rightly, so that masks of its structure may differ in that."""
    return any(_verdict_of_kind(mask_mod, device, narrow).by_values for narrow in (False, True))


def _verdict_of_kind(mask_mod: MaskMod, device: torch.device, narrow: bool) -> "_Verdict":
    return known_of(mask_mod, device, ("reads", narrow), lambda: _verdict(mask_mod, device, narrow))


class _Verdict(NamedTuple):
    """Whether reads of a mask are to be mended, and whether that follows from the values of its tables."""

    mends: bool
    by_values: bool


def _verdict(mask_mod: MaskMod, device: torch.device, narrow: bool) -> _Verdict:
    program = _program_of(mask_mod, device)
    reads = _LeastValues(program, mask_mod)
    mends = program.unsupported_reason is None and any(reads.to_mend(step, narrow) for step in program.steps)
    return _Verdict(mends, reads.by_values)


def _program_of(mask_mod: MaskMod, device: torch.device) -> Program:
    """With indices of 32 bits, as the kernels have them."""
    return record(one_example(as_mask(mask_mod)), device, index_dtype=torch.int32).without_unused()


def _mended(mask_mod: MaskMod, device: torch.device, narrow: bool) -> MaskMod:
    program = _program_of(mask_mod, device)
    reads = _LeastValues(program, mask_mod)
    places = {at: reads.to_mend(step, narrow) for at, step in enumerate(program.steps)}
    sizes = [program.meta(step.args[0]).shape[dim] for at, step in enumerate(program.steps) for dim in places[at]]
    constants = list({id(tensor): tensor for tensor in program.constants}.values())
    bare = program.without(constants)
    words = repr((bare.steps, bare.answer, places))
    return Replayed(words, tuple(constants), tuple(sizes) if narrow else (), _Steps(bare, places))


class _LeastValues:
    """The least value that each slot of a program can have, as far as that is known: None where it is not."""

    def __init__(self, program: Program, mask_mod: MaskMod) -> None:
        self.program = program
        self.may_change = captures.may_change(mask_mod)  # else what is found out is forgotten at a write to its tensors
        self._steps = {result.slot: step for step in program.steps for result in step.results}
        self._least: dict[int, float | None] = dict.fromkeys(range(len(INDICES)), 0)
        self.by_values = False  # whether a table of the mask was looked into

    def to_mend(self, step: Op, narrow: bool) -> tuple[int, ...]:
        """Which indices of a table read must be mended, by their dimension."""
        if step.op is not _aten.index.Tensor:
            return ()
        return tuple(
            dim
            for dim, index in enumerate(step.args[1])
            if index is not None
            and (self.may_be_negative(index) or (narrow and self.program.meta(index).dtype == torch.int64))
        )

    def may_be_negative(self, index: Value | Tensor) -> bool:
        least = self.least(index)
        return least is None or least < 0

    def least(self, value: Any) -> float | None:
        if isinstance(value, Value):
            if value.slot not in self._least:
                self._least[value.slot] = self._of_result(self._steps[value.slot], value)
            return self._least[value.slot]
        if isinstance(value, Tensor):
            return self._of_table(value)
        return value if isinstance(value, (bool, int, float)) else None

    def _of_table(self, table: Tensor) -> float | None:
        """Reading it waits for a GPU, once for each mask that reads a table at the entries of another."""
        if table.dtype in _NEVER_NEGATIVE or not table.numel():
            return 0
        made = not table.ndim and not self.program.reads_scalar_tensor  # by the mask: it has that value for good
        if not made:
            self.by_values = True
        return None if self.may_change and not made else float(table.min())

    def _of_result(self, step: Op, result: Value) -> float | None:
        if self.program.meta(result).dtype in _NEVER_NEGATIVE:
            return 0
        rule = _LEAST.get(step.op.overloadpacket.__name__)
        return None if rule is None else rule(self, *step.args, **step.kwargs)


_NEVER_NEGATIVE = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def _same(reads: _LeastValues, value: Any, *_: Any, **options: Any) -> float | None:
    least = reads.least(value)
    return None if least is None else math.floor(least)  # of a float, what rounds it or makes an int of it


def _sum(reads: _LeastValues, a: Any, b: Any, *, alpha: float = 1) -> float | None:
    first, second = reads.least(a), reads.least(b)
    return None if first is None or second is None or alpha < 0 else first + alpha * second


def _difference(reads: _LeastValues, a: Any, b: Any, *, alpha: float = 1) -> float | None:
    first = reads.least(a)
    constant = isinstance(b, (int, float)) and alpha > 0
    return first - alpha * b if constant and first is not None else None


def _if_none_is_negative(reads: _LeastValues, *values: Any, **_: Any) -> float | None:
    """0, where no argument can be negative."""
    return 0 if all(_is_not_negative(reads, value) for value in values) else None


def _is_not_negative(reads: _LeastValues, value: Any) -> bool:
    least = reads.least(value)
    return least is not None and least >= 0


def _divided(reads: _LeastValues, a: Any, b: Any, **_: Any) -> float | None:
    return 0 if _is_not_negative(reads, a) and isinstance(b, (int, float)) and b > 0 else None


def _remainder(reads: _LeastValues, a: Any, b: Any) -> float | None:
    return 0 if isinstance(b, (int, float)) and b > 0 else None  # the sign of Python's


def _clamped(reads: _LeastValues, value: Any, least: Any = None, most: Any = None, **named: Any) -> float | None:
    least, most = named.get("min", least), named.get("max", most)
    bounds = [bound for bound in (reads.least(value), reads.least(least)) if bound is not None]
    if not bounds or (most is not None and reads.least(most) is None):
        return None
    return max(bounds) if most is None else min(max(bounds), reads.least(most) or 0)


def _greatest(reads: _LeastValues, a: Any, b: Any) -> float | None:
    return max((bound for bound in (reads.least(a), reads.least(b)) if bound is not None), default=None)


def _smallest(reads: _LeastValues, a: Any, b: Any) -> float | None:
    first, second = reads.least(a), reads.least(b)
    return None if first is None or second is None else min(first, second)


def _chosen(reads: _LeastValues, _: Any, a: Any, b: Any) -> float | None:
    return _smallest(reads, a, b)


def _never_negative(*_: Any, **options: Any) -> float:
    return 0


def _if_one_is_not_negative(reads: _LeastValues, a: Any, b: Any) -> float | None:
    return 0 if _is_not_negative(reads, a) or _is_not_negative(reads, b) else None


_LEAST: dict[str, Any] = {
    **dict.fromkeys(names_of(Fact.KEEPS_SIGN), _same),
    **dict.fromkeys(names_of(Fact.IS_A_COUNT), _never_negative),
    **dict.fromkeys(("sum", "cumsum", "prod", "sqrt"), lambda reads, value, *_, **options: _if_none_is_negative(reads, value)),
    **dict.fromkeys(("bitwise_right_shift", "__rshift__"), lambda reads, value, *_: _if_none_is_negative(reads, value)),
    **dict.fromkeys(("floor_divide", "div"), _divided),
    **dict.fromkeys(("maximum", "clamp_min"), _greatest),
    **dict.fromkeys(("minimum", "clamp_max"), _smallest),
    "add": _sum, "sub": _difference, "mul": _if_none_is_negative, "remainder": _remainder, "clamp": _clamped, "where": _chosen,
    "bitwise_and": _if_one_is_not_negative, "bitwise_or": _if_none_is_negative, "bitwise_xor": _if_none_is_negative,
}  # fmt: skip


class _Steps(captures.Opaque):
    """A program with places for its tensors, that can be run on others, and which of its reads are mended."""

    def __init__(self, bare: Program, places: dict[int, tuple[int, ...]]) -> None:
        self.steps = tuple(
            (step.op, step.args, step.kwargs, step.results, places[at]) for at, step in enumerate(bare.steps)
        )
        self.answer = bare.answer

    def run(self, indices: tuple[Tensor, ...], constants: tuple[Tensor, ...], sizes: tuple[int, ...]) -> Tensor:
        values = dict(enumerate(indices))  # by slot
        passed = 0  # reads that were mended

        def filled(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return values[leaf.slot]
            return constants[leaf.place] if isinstance(leaf, CaptureSlot) else leaf

        for op, args, kwargs, results, places in self.steps:
            given = mapped(args, filled)
            for dim in places:
                given[1][dim] = _mended_index(given[1][dim], given[0].shape[dim], sizes[passed : passed + 1])
                passed += 1
            out = op(*given, **{name: mapped(option, filled) for name, option in kwargs.items()})
            for result, value in zip(results, out if len(results) > 1 else [out], strict=True):
                values[result.slot] = value
        return filled(self.answer)


def _mended_index(index: Tensor, size: int, constant: tuple[int, ...]) -> Tensor:
    if constant:  # for FLASH, which takes no number that is dynamic
        index, size = index.to(torch.int32), constant[0]
    # not torch.where: Inductor takes that out again, since it knows that torch's own indices are counted from the end
    return index + (index < 0).to(index.dtype) * size


@mask_dataclass
class Replayed(Mask):
    """A mask by its recorded program.

    Attributes:
        words: they say the program.
        constants: its tensors.
        sizes: of the dimensions of tables that mended indices read, in their order; none where they may change.
    """

    words: str
    constants: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    steps: _Steps

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.steps.run((b, h, q_idx, kv_idx), self.constants, self.sizes)

    def __repr__(self) -> str:
        return "replayed(...)"
