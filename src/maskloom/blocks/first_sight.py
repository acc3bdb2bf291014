"""The states of tiles at first sight: by intervals, and by the corners of tiles that intervals leave open.

This part of the work neither waits for the device nor writes into a tensor, so that its operations can be recorded.
"""

import torch
from torch import Tensor

from maskloom.blocks.grid import Grid
from maskloom.blocks.intervals.analysis import analyse
from maskloom.blocks.intervals.interval import LEAD, Interval
from maskloom.blocks.replay.plan import Tensors
from maskloom.blocks.tile_states import Decided
from maskloom.core.forks import ends_along
from maskloom.program.elements import run_at, size_of
from maskloom.program.mask_program import MaskProgram
from maskloom.program.program import Program

BAND = {"cpu": 1 << 22}
BAND_ELSEWHERE = 1 << 24
"""Maximum number of tiles whose intervals are computed at once (at least one row of tiles). On the CPU, 32 MiB for each
int64 end, which stays near the cache; on a GPU, 128 MiB, because each band costs about forty launches."""

# Maximum bytes at the corners of tiles, if the corners of all tiles are evaluated. On the CPU, where nothing waits,
# this pays for a thousand tiles; at 32k it would cost four times as much as gathering the open tiles. On an H100 both
# cost the same for eight million tiles (100 MiB), since a gather takes the host a millisecond.
_AT_ALL_CORNERS = {"cpu": 1 << 15}
_AT_ALL_CORNERS_ELSEWHERE = 1 << 25

_ANY_LAYOUT = 1 << 18
"""Maximum number of states whose order in memory does not matter: to write the tables from them takes little time."""


@torch.no_grad()
def at_first_sight(source: MaskProgram, grid: Grid, *, exact: bool, count: Decided | None) -> Tensors:
    """The states of all tiles, with open tiles partial.

    If ``exact``, also whether there are undecided tiles (open tiles that their corners do not show to be partial), and
    which tiles these are.
    """
    found = []
    for band in grid.bands(BAND.get(source.device.type, BAND_ELSEWHERE)):
        indices, whole = band.indices(source.device), band.whole_tiles(source.device)
        distinct = band.distinct(source.dependence.marks)
        analysis = analyse(source.program, indices)
        must, may = analysis.answer.over(distinct)
        states = may.view(torch.int8) + (must if whole is None else must & whole)
        is_open = may > must
        if count is not None:
            count.add(states, is_open, analysis.unsupported_ops)
        # one band may be exact and another not: fewer facts are known of a table that is read before its first position
        if exact and not analysis.answer.is_singleton:
            is_open = _not_witnessed(is_open, source.program, indices, band, whole)
        states = states if states.numel() <= _ANY_LAYOUT else states.contiguous()
        found.append((states, is_open) if exact else (states,))
    states, *undecided = found[0] if len(found) == 1 else (torch.cat(parts, 2) for parts in zip(*found, strict=True))
    return states, *(tiles.any() for tiles in undecided), *undecided


def _not_witnessed(
    is_open: Tensor, program: Program, indices: list[Interval], grid: Grid, whole: Tensor | None
) -> Tensor:
    """The open tiles that are not proved partial by their four corners: bool like ``is_open``.

    If there are few tiles, the corners of all tiles are evaluated before it is known which tiles are open: to find the
    open tiles waits for the device, and gathering them is more work than broadcasting.
    """
    batch, heads, rows, columns = grid.shape
    most = _AT_ALL_CORNERS.get(is_open.device.type, _AT_ALL_CORNERS_ELSEWHERE)
    if size_of(program, (batch, heads, 2 * rows, 2 * columns)) > most:
        return is_open
    b, h, queries, keys = indices
    q_ends, kv_ends = (torch.stack((index.lo, index.hi), -1) for index in (queries, keys))
    corners = [b.lo[..., None, None], h.lo[..., None, None], q_ends[..., None], kv_ends[..., None, :]]
    answers = run_at(program, corners, LEAD + 2)
    if answers is None:
        return is_open
    every, some = ends_along(answers[: is_open.shape[0], : is_open.shape[1]].flatten(-2), -1)
    return is_open > (some > (every if whole is None else every & whole))
