"""Run a recorded mask_mod on intervals, to find which answers it can give in each tile."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.grid import Grid
from maskloom.blocks.intervals.interval import LEAD, Interval, truth, unknown
from maskloom.blocks.intervals.rules import RULES, Rule
from maskloom.program.batched import ambiguous, batched
from maskloom.program.program import Op, Program, Value, leaves, mapped, results_in

_READ = torch.ops.aten.index  # its rule handles positions and batch rows in order, without a gather


@dataclass(frozen=True)
class Analysis:
    """The result of running a mask on intervals.

    Attributes:
        answer: three-valued truth for each tile; its four dims have size 1 where the answer does not vary.
        unsupported_ops: names of operations without a usable rule, sorted.
        indices: the intervals of b, h, q_idx and kv_idx of the tiles: the inputs of the mask.
    """

    answer: Interval
    unsupported_ops: tuple[str, ...]
    indices: list[Interval]


def analyse(program: Program, grid: Grid, device: torch.device, rules: Mapping[Any, Rule] = RULES) -> Analysis:
    """The answers that a mask can give in each tile.

    Law: if an element of a tile is True, ``answer.hi`` is True; if one is False, ``answer.lo`` is False.
    """
    indices = grid.indices(device)
    if program.unsupported_reason is not None:
        return Analysis(_anything(device), (program.unsupported_reason,), indices)
    values: dict[Value, Interval | None] = {Value(i): index for i, index in enumerate(indices)}
    unruled: set[str] = set()
    for step in program.steps:
        try:
            outs = None if ambiguous(step, program) else _step(step, values, device, rules)
        except _NoInterval:
            outs = None
        for place, ref in enumerate(step.results):
            meta = program.metas[ref.slot]
            out = outs[place] if outs is not None else None
            if out is None or out.dtype != meta.dtype or tuple(out.lo.shape[LEAD:]) != meta.shape:
                unruled.add(step.op.overloadpacket.__name__)
                out = unknown(meta.dtype, meta.shape, device)
            values[ref] = out
    return Analysis(_filled(program.answer, values, device), tuple(sorted(unruled)), indices)


def _anything(device: torch.device) -> Interval:
    ends = torch.tensor([False, True], device=device).view(2, *(1,) * LEAD)
    return truth(ends[0], ends[1])


def _step(
    step: Op, values: dict[Value, Interval | None], device: torch.device, rules: Mapping[Any, Rule]
) -> tuple[Interval | None, ...] | None:
    args = _filled(step.args, values, device)
    kwargs = {name: _filled(item, values, device) for name, item in step.kwargs.items()}
    given = list(leaves([args, *kwargs.values()], Interval))
    if all(interval.is_singleton for interval in given) and step.op.overloadpacket is not _READ:
        return _exactly(step, args, kwargs)
    rule = rules.get(step.op.overloadpacket)
    out = rule(step.op, *args, **kwargs) if rule is not None else None
    return results_in(out, len(step.results))


def _exactly(step: Op, args: Any, kwargs: dict[str, Any]) -> tuple[Interval | None, ...] | None:
    """Run an operation whose inputs are all exact: the operation itself, batched."""
    out = batched(
        step.op, mapped(args, _low_end), {name: mapped(item, _low_end) for name, item in kwargs.items()}, LEAD
    )
    outs = results_in(out, len(step.results))
    return None if outs is None else tuple(map(Interval.wrap, outs))


class _NoInterval(Exception):  # noqa: N818 - a signal, not an error
    """A value of a dtype that has no intervals."""


def _filled(argument: Any, values: dict[Value, Interval | None], device: torch.device) -> Any:
    def filled(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            value = values[leaf]
            if value is None:
                raise _NoInterval
            return value
        if isinstance(leaf, Tensor):
            return Interval.wrap(leaf.to(device).reshape(*(1,) * LEAD, *leaf.shape))
        return leaf

    return mapped(argument, filled)


def _low_end(leaf: Any) -> Any:
    return leaf.lo if isinstance(leaf, Interval) else leaf
