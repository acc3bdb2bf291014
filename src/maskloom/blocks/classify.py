"""Classify tiles as skipped, partial or full: by intervals, then witnesses, then all elements of open tiles.

    intervals   can it be True?  can it be False?      both: the tile is open
    witnesses   a few elements, corners first          one True and one False: partial
    evaluation  all elements, in chunks                certain

A tile is full if none of its elements is False and the end of the sequence does not cut it (torch's rule). It is
skipped if no element is True, and partial otherwise.
"""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from maskloom.blocks.first_sight import at_first_sight
from maskloom.blocks.grid import Grid
from maskloom.blocks.open_tiles import decide
from maskloom.blocks.replay.cached import replay
from maskloom.blocks.replay.plan import Tensors
from maskloom.blocks.tile_states import Decided
from maskloom.core.torch_state import can_cache, raw_stream, without_autocast
from maskloom.program.mask_program import MaskProgram

_MOST_PLANNED = 1 << 24
"""Maximum number of tiles of a grid whose operations are recorded: in larger grids Python takes little of the time."""


def classify(
    source: MaskProgram,
    grid: Grid,
    *,
    exact: bool = True,
    count: Decided | None = None,
    only_skipped: bool = False,
    is_recorded: bool = True,
) -> Tensor:
    """The state of every tile: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL.

    Do not write into the result: it may be cached for the next call.

    Args:
        exact: False makes every tile partial that intervals leave open. That is right for attention, where mask_mod
            decides inside a partial tile, and it does not wait for the device.
        count: receives how the tiles were decided. Counting waits for the device.
        only_skipped: leave it open which of the other tiles are full: then few elements are evaluated.
        is_recorded: whether operations may be recorded for the next call with a mask of this program.
    """
    if grid.batch == 0:
        return torch.zeros(grid.shape, dtype=torch.int8, device=source.device)
    inputs = [*source.held, *(offset for offset in (grid.q_offset, grid.kv_offset) if isinstance(offset, Tensor))]
    key = _key(source, grid, exact, inputs) if count is None and is_recorded else None
    again: Callable[[Callable[[], Tensors]], Tensors] = _at_once
    if key is not None and inputs:
        again = functools.partial(replay, key, inputs, constants=source.bare.constants, may_wait=exact)

    def states() -> Tensor:
        return _classified(source, grid, exact, count, again, only_skipped)

    return states() if key is None or inputs else replay((key, only_skipped), (), lambda: (states(),))[0]


def _at_once(compute: Callable[[], Tensors]) -> Tensors:
    return compute()


def _key(source: MaskProgram, grid: Grid, exact: bool, inputs: list[Tensor]) -> Hashable | None:
    """A key of everything that decides which operations run; None if they are not to be recorded."""
    batch, heads, rows, columns = grid.shape
    if source.key is None or batch * heads * rows * columns > _MOST_PLANNED or not can_cache():
        return None
    if source.device.type not in ("cpu", "cuda") or torch.is_inference_mode_enabled():
        return None
    # a tensor that was made on one stream may not be ready on another
    stream = raw_stream(source.device)
    places = tuple([(tensor.stride(), tensor.storage_offset()) for tensor in inputs])
    offsets = [
        (offset.dtype, offset.device, offset.shape) if isinstance(offset, Tensor) else offset
        for offset in (grid.q_offset, grid.kv_offset)
    ]
    sizes = (grid.q_len, grid.kv_len, grid.q_block, grid.kv_block)
    return source.key, batch, heads, sizes, *offsets, places, exact, stream


def _classified(
    source: MaskProgram,
    grid: Grid,
    exact: bool,
    count: Decided | None,
    again: Callable[[Callable[[], Tensors]], Tensors],
    only_skipped: bool = False,
) -> Tensor:
    """See `classify`. ``again`` runs the part of the work that neither waits nor writes, or replays it."""
    with without_autocast(source.device):
        states, *left_open = again(lambda: at_first_sight(source, grid, exact=exact, count=count))
    if not left_open or not left_open[0]:
        return states
    states, evaluated = decide(states, left_open[1].nonzero(), source, grid, only_skipped=only_skipped)
    if count is not None:
        count.evaluation += evaluated
    return states
