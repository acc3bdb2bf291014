"""Which tiles are skipped, partial and full: intervals first, then witnesses, then every element of what is open.

    intervals   can it be True?  can it be False?      both: the tile is open
    witnesses   a few elements, corners first          one True and one False: partial
    evaluation  all elements, in chunks                certain

A tile is full if no element of it is False and the end of the sequence does not cut it (torch's rule), skipped if no
element is True, partial otherwise.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskloom.blocks.analyse import Grid, analyse
from maskloom.blocks.evaluate import Elements, evaluate, run, widest
from maskloom.blocks.interval import LEAD, Interval
from maskloom.blocks.tables import PARTIAL
from maskloom.masks.dense import MaskMod
from maskloom.masks.program import INDICES, Index, Program
from maskloom.masks.reading import Reading

CHUNK = 1 << 22
"""Elements that are evaluated at once, at most (one tile at least): 4 Mi, so 32 MiB for each int64 value."""

BAND = {"cpu": 1 << 22}
BAND_ELSEWHERE = 1 << 24
"""Tiles whose intervals are held at once, at most (one row of them at least): 32 MiB for each int64 end on the CPU, where
that stays near the cache, and 128 MiB on a GPU, where each band costs some forty launches."""

# Values at the corners of tiles, at most, if all tiles are looked at. On the CPU, where nothing waits, that pays for a
# thousand tiles; at 32k it would cost four times what gathering the open ones does.
_AT_ALL_CORNERS = {"cpu": 1 << 12}
_AT_ALL_CORNERS_ELSEWHERE = 1 << 20  # 8 MiB for int64

_WITNESSES = (2, 6)  # along each side of a tile: its corners, then a finer net


@dataclass
class Decided:
    """How many tiles each way of deciding decided, of the tiles that differ (shared batch rows and heads count once)."""

    intervals: int = 0
    witnesses: int = 0
    evaluation: int = 0
    without_rule: tuple[str, ...] = field(default=())

    def add(self, intervals: int, witnesses: int, evaluation: int, without_rule: tuple[str, ...]) -> None:
        """Count the tiles of one more part of the grid."""
        self.intervals += intervals
        self.witnesses += witnesses
        self.evaluation += evaluation
        self.without_rule = without_rule

    @property
    def total(self) -> int:
        return self.intervals + self.witnesses + self.evaluation


def classify(
    program: Program,
    reading: Reading,
    mask_mod: MaskMod,
    grid: Grid,
    device: torch.device,
    *,
    exact: bool = True,
    count: Decided | None = None,
) -> Tensor:
    """The state of every tile: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL.

    Args:
        program, reading: of ``mask_mod``.
        exact: False takes what intervals leave open as partial. That is right for attention, where mask_mod decides
            inside a partial tile, and does not wait for the device.
        count: told how the tiles were decided. Counting waits for the device.
    """

    def band_states(band: Grid) -> Tensor:
        analysis = analyse(program, band, device)
        must, may = _over_tiles(analysis.answer, reading.marks, band)
        states = _cut_short(may.to(torch.int8, memory_format=torch.contiguous_format).add_(must), band)
        witnessed, evaluated, undecided = 0, 0, 0
        if exact and not analysis.answer.exact:
            is_open = may > must
            tiles = _not_witnessed(is_open, program, analysis.indices, band).nonzero()
            undecided = len(tiles)
            witnessed, evaluated = _decide(states, tiles, program, mask_mod, band) if undecided else (0, 0)
            if count is not None:
                witnessed += int(is_open.sum()) - undecided
        if count is not None:
            count.add(states.numel() - witnessed - evaluated, witnessed, evaluated, analysis.without_rule)
        return states

    bands = [band_states(band) for band in grid.bands(BAND.get(device.type, BAND_ELSEWHERE))]
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def _over_tiles(answer: Interval, marks: frozenset[Index], grid: Grid) -> tuple[Tensor, Tensor]:
    """Must and may, for every tile that can differ. What became unknown on the way has lost its dims: marks have not."""
    batch, heads = (size if index in marks else 1 for size, index in zip(grid.shape[:2], INDICES[:2], strict=True))
    shape = (batch, heads, *grid.shape[2:])
    return answer.lo[:batch, :heads].expand(shape), answer.hi[:batch, :heads].expand(shape)


def _cut_short(states: Tensor, grid: Grid) -> Tensor:
    """Tiles that the end of the queries or of the keys cuts are never full: in place."""
    if grid.q_len % grid.q_block:
        states[:, :, -1].clamp_(max=PARTIAL)
    if grid.kv_len % grid.kv_block:
        states[..., -1].clamp_(max=PARTIAL)
    return states


def _not_witnessed(is_open: Tensor, program: Program, indices: list[Interval], grid: Grid) -> Tensor:
    """The open tiles that their four corners do not show to be partial: bool like ``is_open``.

    Where tiles are few, the corners of all of them are looked at before it is known which are open: to know it is to wait
    for the device, and to gather them is more work than to broadcast.
    """
    most = _AT_ALL_CORNERS.get(is_open.device.type, _AT_ALL_CORNERS_ELSEWHERE)
    if 4 * widest(program) * is_open.numel() > most:
        return is_open
    b, h, queries, keys = indices
    q_ends, kv_ends = (torch.stack((index.lo, index.hi), -1) for index in (queries, keys))
    corners = [b.lo[..., None, None], h.lo[..., None, None], q_ends[..., None], kv_ends[..., None, :]]
    answers = run(program, corners, LEAD + 2)
    if answers is None:
        return is_open
    answers = answers[: is_open.shape[0], : is_open.shape[1]].flatten(-2)
    some, every = answers.any(-1), answers.all(-1)
    partial = some > every
    if grid.q_len % grid.q_block or grid.kv_len % grid.kv_block:  # what lies behind the end is never visible
        partial = torch.where(_cut(grid, is_open.device), some, partial)
    return is_open > partial


def _cut(grid: Grid, device: torch.device) -> Tensor:
    """Tiles that the end of the queries or of the keys cuts: bool (query tiles, key tiles)."""
    cut = torch.zeros(grid.shape[2:], dtype=torch.bool, device=device)
    if grid.q_len % grid.q_block:
        cut[-1] = True
    if grid.kv_len % grid.kv_block:
        cut[:, -1] = True
    return cut


def _decide(states: Tensor, tiles: Tensor, program: Program, mask_mod: MaskMod, grid: Grid) -> tuple[int, int]:
    """Write the true states of the open tiles, rows of (b, h, query tile, key tile).

    Returns:
        How many of them witnesses decided, and how many the evaluation of all their elements.
    """
    seen_true = torch.zeros(len(tiles), dtype=torch.bool, device=tiles.device)
    seen_false = _cut(grid, tiles.device)[tiles[:, 2], tiles[:, 3]]  # what lies behind the end is never visible
    rows = torch.arange(len(tiles), device=tiles.device)

    def look(side: int) -> Tensor:
        """Look at some elements of the undecided tiles; which are undecided still."""
        true, false = _look(program, mask_mod, _elements(grid, tiles[rows], side))
        seen_true[rows] |= true
        seen_false[rows] |= false
        return (~(seen_true & seen_false)).nonzero()[:, 0]

    for side in _WITNESSES:
        if len(rows):
            rows = look(side)
    if len(rows):
        look(max(grid.tile))
    states[tuple(tiles.T)] = seen_true.to(torch.int8) + (seen_true & ~seen_false)
    return len(tiles) - len(rows), len(rows)


def _elements(grid: Grid, tiles: Tensor, side: int) -> Elements:
    """At most ``side`` positions of each tile along both axes, its ends among them; all of them from there on."""
    q_idx = _spread(tiles[:, 2] * grid.q_block, min(side, grid.tile[0]), grid.q_block, grid.q_len)
    kv_idx = _spread(tiles[:, 3] * grid.kv_block, min(side, grid.tile[1]), grid.kv_block, grid.kv_len)
    return Elements(tiles[:, 0], tiles[:, 1], q_idx + grid.q_offset, kv_idx + grid.kv_offset)


def _spread(first: Tensor, side: int, block: int, length: int) -> Tensor:
    steps = torch.arange(side, device=first.device)
    last = (first + (block - 1)).clamp(max=length - 1)
    return first[:, None] + (last - first)[:, None] * steps // max(side - 1, 1)


def _look(program: Program, mask_mod: MaskMod, elements: Elements) -> tuple[Tensor, Tensor]:
    """Whether some element of each tile is True, and whether some is False."""
    tiles = len(elements.b)
    per_tile = elements.q_idx.shape[1] * elements.kv_idx.shape[1] * widest(program)
    step = max(1, CHUNK // per_tile)
    found = [_ends(evaluate(program, mask_mod, elements.part(slice(at, at + step)))) for at in range(0, tiles, step)]
    true, false = (torch.cat(part) for part in zip(*found, strict=True))
    return true, false


def _ends(answers: Tensor) -> tuple[Tensor, Tensor]:
    return answers.any(-1).any(-1), ~answers.all(-1).all(-1)
