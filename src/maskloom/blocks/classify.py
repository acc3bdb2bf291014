"""Which tiles are skipped, partial and full: intervals first, then witnesses, then every element of what is open.

    intervals   can it be True?  can it be False?      both: the tile is open
    witnesses   a few elements, corners first          one True and one False: partial
    evaluation  all elements, in chunks                certain

A tile is full if no element of it is False and the end of the sequence does not cut it (torch's rule), skipped if no
element is True, partial otherwise.
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
from maskloom.core.torch_state import can_cache, without_autocast
from maskloom.program.elements import Elements, evaluate, run_at, size_of, widest
from maskloom.program.mask_program import MaskProgram
from maskloom.program.program import INDICES, Index, MaskMod, Program

CHUNK = 1 << 22
"""Elements that are evaluated at once, at most (one tile at least): 4 Mi, so 32 MiB for each int64 value."""

BAND = {"cpu": 1 << 22}
BAND_ELSEWHERE = 1 << 24
"""Tiles whose intervals are held at once, at most (one row of them at least): 32 MiB for each int64 end on the CPU, where
that stays near the cache, and 128 MiB on a GPU, where each band costs some forty launches."""

# Bytes at the corners of tiles, at most, if all tiles are looked at. On the CPU, where nothing waits, that pays for a
# thousand tiles; at 32k it would cost four times what gathering the open ones does. On an H100 both cost the same for eight
# million tiles (100 MiB), since to gather takes the host a millisecond.
_AT_ALL_CORNERS = {"cpu": 1 << 15}
_AT_ALL_CORNERS_ELSEWHERE = 1 << 25

_MOST_PLANNED = 1 << 24
"""Tiles of a grid for which operations are written down: with more of them Python is the lesser part."""

_WITNESSES = (2, 6)  # along each side of a tile: its corners, then a finer net


@dataclass
class Decided:
    """How many tiles each way of deciding decided, of the tiles that differ (shared batch rows and heads count once)."""

    total: int = 0
    left_open: int = 0  # by intervals
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

    Nobody may write into it: it may be kept for the next call.

    Args:
        exact: False takes what intervals leave open as partial. That is right for attention, where mask_mod decides
            inside a partial tile, and does not wait for the device.
        count: told how the tiles were decided. Counting waits for the device.
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


def is_constant(source: MaskProgram, grid: Grid) -> bool:
    """Whether states follow from numbers alone, and `classify` gives one tensor for all masks of a structure."""
    offsets = isinstance(grid.q_offset, Tensor) or isinstance(grid.kv_offset, Tensor)
    return source.key is not None and not source.held and not offsets


def _key(source: MaskProgram, grid: Grid, exact: bool, inputs: list[Tensor]) -> Hashable | None:
    """All that the operations follow from; None where they are not to be written down."""
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
    """See `classify`; ``again`` calls the part of the work that neither waits nor writes, or does what it did before."""

    def at_first_sight() -> Tensors:
        """The states by intervals, open tiles as partial; if it is to be exact, also whether there are and which are tiles
        that witnesses do not show to be that."""
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
        # one band may be exact and another not: less is known of a table that is read before its first position
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
    """Must and may, for every tile that can differ. What became unknown on the way has lost its dims: marks have not."""
    batch, heads = (size if index in marks else 1 for size, index in zip(grid.shape[:2], INDICES[:2], strict=True))
    shape = (batch, heads, *grid.shape[2:])
    return answer.lo[:batch, :heads].expand(shape), answer.hi[:batch, :heads].expand(shape)


def _not_witnessed(is_open: Tensor, program: Program, indices: list[Interval], grid: Grid) -> Tensor:
    """The open tiles that their four corners do not show to be partial: bool like ``is_open``.

    Where tiles are few, the corners of all of them are looked at before it is known which are open: to know it is to wait
    for the device, and to gather them is more work than to broadcast.
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
    every, some = torch.aminmax(answers[: is_open.shape[0], : is_open.shape[1]].flatten(-2), dim=-1)
    return is_open > (some > _uncut(every, grid))


def _uncut(tiles: Tensor, grid: Grid) -> Tensor:
    """Those of some tiles that hold no position behind the end, where nothing is visible."""
    if not grid.is_cut:
        return tiles
    whole_q, whole_kv = grid.q_len // grid.q_block, grid.kv_len // grid.kv_block
    queries, keys = (torch.arange(size, device=tiles.device) for size in grid.shape[2:])
    return tiles & (queries < whole_q)[:, None] & (keys < whole_kv)


def _decide(states: Tensor, tiles: Tensor, source: MaskProgram, grid: Grid) -> tuple[Tensor, int]:
    """The states with the true ones of the open tiles, rows of (b, h, query tile, key tile).

    Returns:
        The states, and of how many tiles all elements had to be evaluated; witnesses decided the others.
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
    """The places of tiles of which not both was seen."""
    undecided = ~(seen_true & seen_false)
    return undecided.nonzero()[:, 0] if undecided.any() else undecided.new_empty(0, dtype=torch.long)


def _cut(tiles: Tensor, grid: Grid) -> Tensor:
    """Which of the tiles, rows of (b, h, query tile, key tile), hold positions behind the end."""
    return (tiles[:, 2] >= grid.q_len // grid.q_block) | (tiles[:, 3] >= grid.kv_len // grid.kv_block)


def _elements(grid: Grid, tiles: Tensor, side: int) -> Elements:
    """At most ``side`` positions of each tile along both axes, its ends among them; all of them from there on."""
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
    """Whether some element of each tile is True, and whether some is False."""
    tiles = len(elements.b)
    per_tile = elements.q_idx.shape[1] * elements.kv_idx.shape[1] * widest(program)
    step = max(1, CHUNK // per_tile)
    found = [_ends(evaluate(program, mask_mod, elements.part(slice(at, at + step)))) for at in range(0, tiles, step)]
    true, false = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*found, strict=True))
    return true, false


def _ends(answers: Tensor) -> tuple[Tensor, Tensor]:
    every, some = torch.aminmax(answers.flatten(1), dim=-1)
    return some, ~every
