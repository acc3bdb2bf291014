"""Classify tiles as skipped, partial or full: by intervals, then witnesses, then all elements of open tiles.

    intervals   can it be True?  can it be False?      both: the tile is open
    witnesses   a few elements, corners first          one True and one False: partial
    evaluation  all elements, in chunks                certain

A tile is full if none of its elements is False and the end of the sequence does not cut it (torch's rule). It is
skipped if no element is True, and partial otherwise.
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskloom.blocks.grid import Grid
from maskloom.blocks.intervals.analysis import analyse
from maskloom.blocks.intervals.interval import LEAD, Interval
from maskloom.blocks.replay.cached import replay
from maskloom.blocks.replay.plan import Tensors
from maskloom.core.checks import is_zero
from maskloom.core.forks import ends_along
from maskloom.core.torch_state import can_cache, without_autocast
from maskloom.program.elements import Elements, evaluate, run_at, size_of, widest
from maskloom.program.mask_program import MaskProgram
from maskloom.program.program import INDICES, Index, MaskMod, Program

CHUNK = 1 << 22
"""Maximum number of elements evaluated at once (at least one tile): 4 Mi, so 32 MiB for each int64 value."""

BAND = {"cpu": 1 << 22}
BAND_ELSEWHERE = 1 << 24
"""Maximum number of tiles whose intervals are computed at once (at least one row of tiles). On the CPU, 32 MiB for each
int64 end, which stays near the cache; on a GPU, 128 MiB, because each band costs about forty launches."""

# Maximum bytes at the corners of tiles, if the corners of all tiles are evaluated. On the CPU, where nothing waits,
# this pays for a thousand tiles; at 32k it would cost four times as much as gathering the open tiles. On an H100 both
# cost the same for eight million tiles (100 MiB), since a gather takes the host a millisecond.
_AT_ALL_CORNERS = {"cpu": 1 << 15}
_AT_ALL_CORNERS_ELSEWHERE = 1 << 25

_MOST_PLANNED = 1 << 24
"""Maximum number of tiles of a grid whose operations are recorded: in larger grids Python takes little of the time."""

_WITNESSES = (2, 6)  # elements along each side of a tile: the corners, then a finer grid


@dataclass
class Decided:
    """How many tiles each method decided. Only distinct tiles count: shared batch rows and heads count once."""

    total: int = 0
    left_open: int = 0  # not decided by intervals
    evaluation: int = 0
    unsupported_ops: tuple[str, ...] = field(default=())

    @property
    def intervals(self) -> int:
        return self.total - self.left_open

    @property
    def witnesses(self) -> int:
        return self.left_open - self.evaluation


@torch.no_grad()
def classify(source: MaskProgram, grid: Grid, *, exact: bool = True, count: Decided | None = None) -> Tensor:
    """The state of every tile: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL.

    Do not write into the result: it may be cached for the next call.

    Args:
        exact: False makes every tile partial that intervals leave open. That is right for attention, where mask_mod
            decides inside a partial tile, and it does not wait for the device.
        count: receives how the tiles were decided. Counting waits for the device.
    """
    if grid.batch == 0:
        return torch.zeros(grid.shape, dtype=torch.int8, device=source.device)
    inputs = [*source.held, *(offset for offset in (grid.q_offset, grid.kv_offset) if isinstance(offset, Tensor))]
    key = _key(source, grid, exact, inputs) if count is None else None
    if key is None:
        return _classified(source, grid, exact, count, lambda compute: compute())
    if not inputs:
        return replay(key, inputs, lambda: (_classified(source, grid, exact, count, lambda compute: compute()),))[0]
    again = functools.partial(replay, key, inputs, constants=source.bare.constants, may_wait=exact)
    return _classified(source, grid, exact, count, again)


def _key(source: MaskProgram, grid: Grid, exact: bool, inputs: list[Tensor]) -> Hashable | None:
    """A key of everything that decides which operations run; None if they are not to be recorded."""
    batch, heads, rows, columns = grid.shape
    if source.key is None or batch * heads * rows * columns > _MOST_PLANNED or not can_cache():
        return None
    if source.device.type not in ("cpu", "cuda") or torch.is_inference_mode_enabled():
        return None
    # a tensor that was made on one stream may not be ready on another
    stream = torch.cuda.current_stream(source.device).cuda_stream if source.device.type == "cuda" else None
    places = tuple((tensor.stride(), tensor.storage_offset()) for tensor in inputs)
    offsets = (
        (offset.dtype, offset.device, offset.shape) if isinstance(offset, Tensor) else offset
        for offset in (grid.q_offset, grid.kv_offset)
    )
    sizes = (grid.q_len, grid.kv_len, grid.q_block, grid.kv_block)
    return source.key, batch, heads, sizes, *offsets, places, exact, stream


def _classified(
    source: MaskProgram,
    grid: Grid,
    exact: bool,
    count: Decided | None,
    again: Callable[[Callable[[], Tensors]], Tensors],
) -> Tensor:
    """See `classify`. ``again`` runs the part of the work that neither waits nor writes, or replays it."""

    def at_first_sight() -> Tensors:
        """The states by intervals, with open tiles partial. If ``exact``, also whether there are undecided tiles (open tiles
        that witnesses do not show to be partial), and which tiles these are."""
        found = [band_at_first_sight(band) for band in grid.bands(BAND.get(source.device.type, BAND_ELSEWHERE))]
        states, *undecided = (
            found[0] if len(found) == 1 else (torch.cat(parts, 2) for parts in zip(*found, strict=True))
        )
        return states, *(tiles.any() for tiles in undecided), *undecided

    def band_at_first_sight(band: Grid) -> Tensors:
        analysis = analyse(source.program, band, source.device)
        must, may = _over_tiles(analysis.answer, source.dependence.marks, band)
        states = (may.view(torch.int8) + _uncut(must, band)).contiguous()
        is_open = may > must
        if count is not None:
            count.unsupported_ops = analysis.unsupported_ops
            count.total += states.numel()
            count.left_open += int(is_open.sum())
        if not exact:
            return (states,)
        # one band may be exact and another not: fewer facts are known about a table that is read before its first
        # position
        return states, is_open if analysis.answer.is_singleton else _not_witnessed(
            is_open, source.program, analysis.indices, band
        )

    with without_autocast(source.device):
        states, *left_open = again(at_first_sight)
    if not left_open or not left_open[0]:
        return states
    states, evaluated = _decide(states, left_open[1].nonzero(), source, grid)
    if count is not None:
        count.evaluation += evaluated
    return states


def _over_tiles(answer: Interval, marks: frozenset[Index], grid: Grid) -> tuple[Tensor, Tensor]:
    """Must and may for every distinct tile, by the marks: an interval that became unknown has size 1 in all dims."""
    batch, heads = (size if index in marks else 1 for size, index in zip(grid.shape[:2], INDICES[:2], strict=True))
    shape = (batch, heads, *grid.shape[2:])
    return answer.lo[:batch, :heads].expand(shape), answer.hi[:batch, :heads].expand(shape)


def _not_witnessed(is_open: Tensor, program: Program, indices: list[Interval], grid: Grid) -> Tensor:
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
    return is_open > (some > _uncut(every, grid))


def _uncut(tiles: Tensor, grid: Grid) -> Tensor:
    """These tiles, without those that hold positions beyond the end, where nothing is visible."""
    if not grid.is_cut:
        return tiles
    whole_q, whole_kv = grid.q_len // grid.q_block, grid.kv_len // grid.kv_block
    queries, keys = (torch.arange(size, device=tiles.device) for size in grid.shape[2:])
    return tiles & (queries < whole_q)[:, None] & (keys < whole_kv)


def _decide(states: Tensor, tiles: Tensor, source: MaskProgram, grid: Grid) -> tuple[Tensor, int]:
    """Write the true states of the open tiles, given as rows of (b, h, query tile, key tile), into the states.

    Returns:
        The states, and the number of tiles whose elements were all evaluated; witnesses decided the others.
    """

    def look(tiles: Tensor, side: int) -> tuple[Tensor, Tensor]:
        return _look(source.program, source.mask, _elements(grid, tiles, side))

    def look_again(side: int) -> None:
        true, false = look(tiles[rows], side)
        seen_true[rows] |= true
        seen_false[rows] |= false

    seen_true, seen_false = look(tiles, _WITNESSES[0])
    if grid.is_cut:
        seen_false |= _cut(tiles, grid)
    rows = _undecided(seen_true, seen_false)
    for side in _WITNESSES[1:]:
        if len(rows):
            look_again(side)
            rows = _undecided(seen_true, seen_false)
    if len(rows):
        look_again(max(grid.tile))
    found = seen_true.view(torch.int8) + (seen_true > seen_false)
    return states.index_put(tuple(tiles.T), found), len(rows)


def _undecided(seen_true: Tensor, seen_false: Tensor) -> Tensor:
    """The row numbers of tiles without both a True and a False element so far."""
    undecided = ~(seen_true & seen_false)
    return undecided.nonzero()[:, 0] if undecided.any() else undecided.new_empty(0, dtype=torch.long)


def _cut(tiles: Tensor, grid: Grid) -> Tensor:
    """Which of the tiles, rows of (b, h, query tile, key tile), hold positions beyond the end."""
    return (tiles[:, 2] >= grid.q_len // grid.q_block) | (tiles[:, 3] >= grid.kv_len // grid.kv_block)


def _elements(grid: Grid, tiles: Tensor, side: int) -> Elements:
    """At most ``side`` positions of each tile along both axes, including its ends; all if ``side`` is that large."""
    q_idx = _spread(tiles[:, 2] * grid.q_block, min(side, grid.tile[0]), grid.q_block, grid.q_len)
    kv_idx = _spread(tiles[:, 3] * grid.kv_block, min(side, grid.tile[1]), grid.kv_block, grid.kv_len)
    q_idx, kv_idx = (
        positions if is_zero(offset) else positions + offset
        for positions, offset in ((q_idx, grid.q_offset), (kv_idx, grid.kv_offset))
    )
    return Elements(tiles[:, 0], tiles[:, 1], q_idx, kv_idx)


def _spread(first: Tensor, side: int, block: int, length: int) -> Tensor:
    last = (first + (block - 1)).clamp(max=length - 1)
    if side == 2:
        return torch.stack((first, last), 1)
    steps = torch.arange(side, device=first.device)
    return first[:, None] + (last - first)[:, None] * steps // max(side - 1, 1)


def _look(program: Program, mask_mod: MaskMod, elements: Elements) -> tuple[Tensor, Tensor]:
    """Whether each tile has a True element, and whether it has a False one."""
    tiles = len(elements.b)
    per_tile = elements.q_idx.shape[1] * elements.kv_idx.shape[1] * widest(program)
    step = max(1, CHUNK // per_tile)
    found = [_ends(evaluate(program, mask_mod, elements.part(slice(at, at + step)))) for at in range(0, tiles, step)]
    true, false = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*found, strict=True))
    return true, false


def _ends(answers: Tensor) -> tuple[Tensor, Tensor]:
    every, some = ends_along(answers.flatten(1), -1)
    return some, ~every
