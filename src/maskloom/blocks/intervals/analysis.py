"""Run a recorded mask_mod on intervals, to find which answers it can give in each tile."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.intervals.interval import LEAD, Interval, anything, constant, unknown
from maskloom.blocks.intervals.rules import RULES, Rule
from maskloom.program.batched import batched, results_of
from maskloom.program.program import Op, Program, Value

_READ = torch.ops.aten.index  # its rule handles positions and batch rows in order, without a gather


@dataclass(frozen=True)
class Analysis:
    """The result of running a mask on intervals.

    Attributes:
        answer: three-valued truth for each tile; its four dims have size 1 where the answer does not vary.
        unsupported_ops: names of operations without a usable rule, sorted.
    """

    answer: Interval
    unsupported_ops: tuple[str, ...]


def analyse(program: Program, indices: list[Interval], rules: Mapping[Any, Rule] = RULES) -> Analysis:
    """The answers that a mask can give in each tile.

    Law: if an element of a tile is True, ``answer.hi`` is True; if one is False, ``answer.lo`` is False.

    Args:
        indices: the intervals of b, h, q_idx and kv_idx of the tiles, the inputs of the mask.
    """
    device = indices[0].lo.device
    values: dict[Value, Interval | None] = {Value(i): index for i, index in enumerate(indices)}
    unruled: set[str] = set()
    for step in program.steps if program.unsupported_reason is None else ():
        outs = _run_step(step, program, values, device, rules)
        for place, ref in enumerate(step.results):
            meta = program.metas[ref.slot]
            out = outs[place] if outs is not None else None
            if out is None or out.dtype != meta.dtype or tuple(out.lo.shape[LEAD:]) != meta.shape:
                unruled.add(step.op.overloadpacket.__name__)
                out = unknown(meta.dtype, meta.shape, device)
            values[ref] = out
    if program.unsupported_reason is not None:
        return Analysis(anything(device), (program.unsupported_reason,))
    answer = values[program.answer] if isinstance(program.answer, Value) else constant(program.answer, device)
    assert answer is not None  # bools have intervals
    return Analysis(answer, tuple(sorted(unruled)))


def _run_step(
    step: Op, program: Program, values: dict[Value, Interval | None], device: torch.device, rules: Mapping[Any, Rule]
) -> tuple[Interval | None, ...] | None:
    """The results of a step: by its rule, or by the operation itself where all inputs are exact. None: not known."""
    read = {ref: values[ref] for ref in step.refs}
    known = {ref: value for ref, value in read.items() if value is not None}
    if len(known) < len(read):  # a value of a dtype that has no intervals
        return None
    exact = all(value.is_singleton for value in known.values()) and step.op.overloadpacket is not _READ

    def operand(leaf: Any) -> Any:
        if not isinstance(leaf, (Value, Tensor)):
            return leaf
        value = known[leaf] if isinstance(leaf, Value) else constant(leaf, device)
        return value.lo if exact else value

    args, kwargs = step.filled(operand)
    if exact:
        outs = results_of(step, program, functools.partial(batched, step.op, args, kwargs, LEAD))
        return None if outs is None else tuple(map(Interval.wrap, outs))
    rule = rules.get(step.op.overloadpacket, _no_rule)
    return results_of(step, program, functools.partial(rule, step.op, *args, **kwargs))


def _no_rule(*args: Any, **kwargs: Any) -> None:
    """The rule of an operation that has none."""
