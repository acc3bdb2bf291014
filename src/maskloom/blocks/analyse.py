"""Run a recorded mask_mod on intervals: what it can answer over each tile."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskloom.blocks.interval import LEAD, Interval, Run, truth, unknown
from maskloom.blocks.lifted import ambiguous, lifted
from maskloom.blocks.rules import RULES, Rule
from maskloom.masks.program import Program, Ref, Step, results_in

_READ = torch.ops.aten.index  # knows positions and batch rows in their order, which need not be gathered


@dataclass(frozen=True)
class Grid:
    """The tiles of a BlockMask.

    Attributes:
        batch, heads: B and H of the tables.
        q_len, kv_len: Q and K, in positions.
        q_block, kv_block: positions in a tile.
        q_offset, kv_offset: the position of the first query and of the first key.
    """

    batch: int
    heads: int
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    q_offset: int | Tensor = 0
    kv_offset: int | Tensor = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, query tiles, key tiles)."""
        return self.batch, self.heads, -(-self.q_len // self.q_block), -(-self.kv_len // self.kv_block)

    @property
    def tile(self) -> tuple[int, int]:
        """Elements of the largest tile along Q and K: a tile is never longer than the sequence."""
        return min(self.q_block, self.q_len), min(self.kv_block, self.kv_len)

    @property
    def is_cut(self) -> bool:
        """Whether a sequence ends inside a tile."""
        return bool(self.q_len % self.q_block or self.kv_len % self.kv_block)

    def bands(self, most: int) -> Iterator["Grid"]:
        """The grid in bands of query tiles, each of at most ``most`` tiles, but at least one row of them."""
        batch, heads, rows, columns = self.shape
        step = self.q_block * min(rows, max(1, most // (batch * heads * columns)))
        if step >= self.q_len:
            yield self
            return
        for first in range(0, self.q_len, step):
            q_len = min(step, self.q_len - first)
            yield dataclasses.replace(self, q_len=q_len, q_offset=self.q_offset + first)

    def indices(self, device: torch.device) -> list[Interval]:
        """b and h exactly, q_idx and kv_idx as intervals: what the mask_mod is run on."""
        exact = [_counted(size, axis, device) for axis, size in enumerate(self.shape[:2])]
        queries = _positions(2, self.q_len, self.q_block, self.q_offset, device)
        keys = _positions(3, self.kv_len, self.kv_block, self.kv_offset, device)
        return [*exact, queries, keys]


@dataclass(frozen=True)
class Analysis:
    """What intervals say.

    Attributes:
        answer: three-valued truth over tiles, its four dims 1 where the answer does not vary.
        without_rule: names of operations that could not be followed, sorted.
        indices: b, h, q_idx and kv_idx of the tiles, which the mask was run on.
    """

    answer: Interval
    without_rule: tuple[str, ...]
    indices: list[Interval]


def analyse(program: Program, grid: Grid, device: torch.device, rules: Mapping[Any, Rule] = RULES) -> Analysis:
    """What a mask can answer over each tile.

    Law: where an element of a tile is True, ``answer.hi`` is True; where one is False, ``answer.lo`` is False.
    """
    indices = grid.indices(device)
    if program.obstacle is not None:
        return Analysis(_anything(device), (program.obstacle,), indices)
    values: dict[Ref, Interval | None] = {Ref(i): index for i, index in enumerate(indices)}
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
    step: Step, values: dict[Ref, Interval | None], device: torch.device, rules: Mapping[Any, Rule]
) -> tuple[Interval | None, ...] | None:
    args = _filled(step.args, values, device)
    kwargs = {name: _filled(item, values, device) for name, item in step.kwargs.items()}
    given = list(_intervals_in([args, *kwargs.values()]))
    if all(interval.exact for interval in given) and step.op.overloadpacket is not _READ:
        return _exactly(step, args, kwargs)
    rule = rules.get(step.op.overloadpacket)
    out = rule(step.op, *args, **kwargs) if rule is not None else None
    return results_in(out, len(step.results))


def _exactly(step: Step, args: Any, kwargs: dict[str, Any]) -> tuple[Interval | None, ...] | None:
    """An operation on values that are exact: itself."""
    out = lifted(step.op, _tensors_in(args), {name: _tensors_in(item) for name, item in kwargs.items()}, LEAD)
    outs = results_in(out, len(step.results))
    return None if outs is None else tuple(map(Interval.exactly, outs))


class _NoInterval(Exception):  # noqa: N818 - a signal, not an error
    """A value of a dtype that has no intervals."""


def _filled(argument: Any, values: dict[Ref, Interval | None], device: torch.device) -> Any:
    if isinstance(argument, Ref):
        value = values[argument]
        if value is None:
            raise _NoInterval
        return value
    if isinstance(argument, Tensor):
        return Interval.exactly(argument.to(device).reshape(*(1,) * LEAD, *argument.shape))
    if isinstance(argument, (list, tuple)):
        return [_filled(item, values, device) for item in argument]
    return argument


def _intervals_in(arguments: Any) -> Any:
    for argument in arguments:
        if isinstance(argument, Interval):
            yield argument
        elif isinstance(argument, list):
            yield from _intervals_in(argument)


def _tensors_in(argument: Any) -> Any:
    if isinstance(argument, Interval):
        return argument.lo
    return [_tensors_in(item) for item in argument] if isinstance(argument, list) else argument


def _counted(size: int, axis: int, device: torch.device) -> Interval:
    numbers = torch.arange(size, device=device).view(*(-1 if dim == axis else 1 for dim in range(LEAD)))
    return Interval(numbers, numbers, span=(0, size - 1), run=Run(axis, 0, 1, size))


def _positions(axis: int, length: int, block: int, offset: int | Tensor, device: torch.device) -> Interval:
    shape = [-1 if dim == axis else 1 for dim in range(LEAD)]
    first = torch.arange(0, length, block, device=device).view(shape)
    last = torch.arange(block - 1, length + block - 1, block, device=device).view(shape)
    if length % block:
        last = last.clamp(max=length - 1)
    if isinstance(offset, Tensor):
        return Interval(first + offset, last + offset)
    if offset:
        first, last = first + offset, last + offset
    run = Run(axis, offset, block, length) if offset >= 0 else None
    return Interval(first, last, span=(offset, offset + length - 1), run=run)
