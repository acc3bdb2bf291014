"""Steps of decoding: one plan for all positions, and for all values in a mask.

At each step of decoding the queries stand at another position, and the mask may hold lengths or positions that have
changed. A plan as in `plan` is made for one mask whose tensors stay as they are. Here the plan is for all masks of one
kind: at each step the mask's recorded program makes a table, by a few operations that do not wait for the device. Where the
caller has the table already, the plan is for all tables, with however many keys.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from maskloom.attention.backends.base import Backend
from maskloom.attention.backends.decode import is_few
from maskloom.attention.request import Attended, Request
from maskloom.attention.tables import table_sizes_of
from maskloom.blocks.dense import table_at
from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.core.checks import MOST_NUMBER
from maskloom.core.torch_state import can_cache, float_state, is_tracing
from maskloom.masks.algebra import Mask, everything
from maskloom.masks.patterns.shift import Shifted
from maskloom.program.mask_program import MaskProgram, program_of

_MOST_ELEMENTS = {"cpu": 1 << 22}  # of a table that is made at each call
_MOST_ELEMENTS_ELSEWHERE = 1 << 26


class StepPlan(NamedTuple):
    """What is the same at each step.

    Attributes:
        program: of the mask at this offset (a tensor), or without an offset (an int); it holds no tensors.
        sizes: B, H, Q, K of the table.
        most_offset: the last position, as an int, from which all queries lie in the tables that the mask reads.
    """

    backend: Backend
    program: MaskProgram
    sizes: tuple[int, int, int, int]
    q_idx: Tensor
    most_offset: float
    scale: float | None


_plans: LRU[Hashable, StepPlan | Literal["none"]] = LRU(256)


def run_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    q_offset: int | Tensor,
    facts: captures.Facts,
    options: tuple[Any, ...],
    checked: Callable[[], tuple[Request, Backend]],
) -> Attended | None:
    """A step by its plan; None where there is none.

    Args:
        q_offset: the position of the first query: an int from 0 on, or an integer tensor on the device of the query.
        facts: of the mask.
        options: all else that the plan depends on.
        checked: the request, all arguments checked, and the backend chosen for it.
    """
    if is_tracing() or not facts.is_plain:
        return None
    held = list(facts.tensors)
    places = [at for at, tensor in enumerate(held) if tensor is q_offset]  # the mask may hold it too
    if isinstance(q_offset, Tensor) and not places:
        held.append(q_offset)
    states = [(tensor.dtype, tensor.shape, tensor.device) for tensor in held]
    kind = facts.skeleton(mask, True), *states, *places, len(held), float_state(), options
    plan = _plans.get(kind)
    if plan is None:
        plan = _planned(mask, q_offset, *checked()) or "none"
        if can_cache():
            _plans.put(kind, plan)
    if plan == "none" or (not isinstance(q_offset, Tensor) and q_offset > plan.most_offset):
        return None
    if isinstance(q_offset, Tensor):
        table = table_at(plan.program.of(Shifted(mask, q_offset, 0, None), held), plan.sizes)
    else:
        table = table_at(plan.program.of(mask, held), plan.sizes, plan.q_idx + q_offset)
    return plan.backend.with_table(query, key, value, table, plan.scale)


def _planned(mask: Mask, q_offset: int | Tensor, request: Request, backend: Backend) -> StepPlan | None:
    if not backend.takes_tables or request.query.shape[0] == 0:
        return None
    placed = Shifted(mask, q_offset, 0, None) if isinstance(q_offset, Tensor) else mask
    program = program_of(placed, request.query.device)
    if program.key is None:
        return None
    batch, heads = table_sizes_of(request.query, request.key, placed)
    sizes = batch, heads, request.query.shape[2], request.key.shape[2]
    if math.prod(sizes) > _MOST_ELEMENTS.get(request.query.device.type, _MOST_ELEMENTS_ELSEWHERE):
        return None
    program.dependence.check_length("kv_idx", sizes[3])
    most_offset = min(min(program.dependence.sizes["q_idx"], default=math.inf) - sizes[2], MOST_NUMBER)
    with torch.inference_mode(False):
        q_idx = torch.arange(sizes[2], device=request.query.device)
    return StepPlan(backend, program.of(everything, []), sizes, q_idx, most_offset, request.scale)


_TablePlan = tuple[Backend, float | None]  # the backend that runs, and the scale
_table_plans: LRU[Hashable, _TablePlan | Literal["none"]] = LRU(256)


def run_table(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    options: Hashable,
    checked: Callable[[], tuple[Request, Backend]],
) -> Attended | None:
    """Few queries with a table in place of a mask, by the plan for all numbers of keys; None where there is none.

    Args:
        table: all other tables than of bools (1 or B, 1 or H, 1 or Q, K) have no plan.
        options, checked: as for `run_step`.
    """
    if is_tracing() or not _is_table_of_few(query, key, value, table):
        return None
    kind = (
        query.shape, key.shape[:2], key.shape[3], value.shape[:2], value.shape[3], table.shape[:3],
        query.dtype, key.dtype, value.dtype, query.device, key.device, value.device, table.device,
        torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad), options,
    )  # fmt: skip
    plan = _table_plans.get(kind)
    if plan is None:
        request, backend = checked()
        plan = (backend, request.scale) if backend.takes_tables and request.query.shape[0] > 0 else "none"
        if can_cache():
            _table_plans.put(kind, plan)
    return None if plan == "none" else plan[0].with_table(query, key, value, table, plan[1])


def _is_table_of_few(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> bool:
    """Whether it is a table of bools with an entry for each key, and there are few queries."""
    if table.dtype != torch.bool or not query.ndim == key.ndim == value.ndim == table.ndim == 4:
        return False
    return 1 < table.shape[3] == key.shape[2] == value.shape[2] and is_few(query, key)
