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

from maskloom.blocks.analyse import Analysis, Grid, analyse
from maskloom.blocks.evaluate import Elements, evaluate, widest
from maskloom.blocks.interval import Interval
from maskloom.blocks.tables import FULL, PARTIAL, SKIPPED
from maskloom.masks.dense import MaskMod
from maskloom.masks.program import INDICES, Index, Program
from maskloom.masks.reading import Reading

CHUNK = 1 << 22
"""Elements that are evaluated at once, at most (one tile at least): 4 Mi, so 32 MiB for each int64 value."""

_WITNESSES = (2, 6)  # along each side of a tile: its corners, then a finer net


@dataclass
class Decided:
    """How many tiles each way of deciding decided, of the tiles that differ (shared batch rows and heads count once)."""

    intervals: int = 0
    witnesses: int = 0
    evaluation: int = 0
    without_rule: tuple[str, ...] = field(default=())

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
    analysis = analyse(program, grid, device)
    must, may = _over_tiles(analysis.answer, reading.marks, grid)
    cut = _cut(grid, device)
    states = may.to(torch.int8) + (must & ~cut)  # SKIPPED, PARTIAL and FULL are 0, 1 and 2
    open_tiles = (may & ~must).nonzero() if exact and not analysis.answer.exact else None
    if count is not None:
        _tell(count, states, analysis, open_tiles)
    if open_tiles is not None and len(open_tiles):
        _decide(states, open_tiles, cut, program, mask_mod, grid, count)
    return states


def _over_tiles(answer: Interval, marks: frozenset[Index], grid: Grid) -> tuple[Tensor, Tensor]:
    """Must and may, for every tile that can differ. What became unknown on the way has lost its dims: marks have not."""
    batch, heads = (size if index in marks else 1 for size, index in zip(grid.shape[:2], INDICES[:2], strict=True))
    shape = (batch, heads, *grid.shape[2:])
    return answer.lo[:batch, :heads].expand(shape), answer.hi[:batch, :heads].expand(shape)


def _cut(grid: Grid, device: torch.device) -> Tensor:
    """Tiles that the end of the queries or of the keys cuts: bool (query tiles, key tiles)."""
    cut = torch.zeros(grid.shape[2:], dtype=torch.bool, device=device)
    if grid.q_len % grid.q_block:
        cut[-1] = True
    if grid.kv_len % grid.kv_block:
        cut[:, -1] = True
    return cut


def _tell(count: Decided, states: Tensor, analysis: Analysis, open_tiles: Tensor | None) -> None:
    count.intervals = states.numel() - (0 if open_tiles is None else len(open_tiles))
    count.without_rule = analysis.without_rule


def _decide(
    states: Tensor, tiles: Tensor, cut: Tensor, program: Program, mask_mod: MaskMod, grid: Grid, count: Decided | None
) -> None:
    """Write the true states of the open tiles, given as rows of (b, h, query tile, key tile)."""
    seen_true = torch.zeros(len(tiles), dtype=torch.bool, device=tiles.device)
    seen_false = cut[tiles[:, 2], tiles[:, 3]]  # what lies behind the end is never visible
    for side in _WITNESSES:
        still = ~(seen_true & seen_false)
        rows = still.nonzero()[:, 0]
        if not len(rows):
            break
        true, false = _look(program, mask_mod, _elements(grid, tiles[rows], side))
        seen_true[rows] |= true
        seen_false[rows] |= false
    rows = (~(seen_true & seen_false)).nonzero()[:, 0]
    if len(rows):
        true, false = _look(program, mask_mod, _elements(grid, tiles[rows], max(grid.tile)))
        seen_true[rows] |= true
        seen_false[rows] |= false
    states[tuple(tiles.T)] = torch.where(seen_true, torch.where(seen_false, PARTIAL, FULL), SKIPPED).to(torch.int8)
    if count is not None:
        count.witnesses, count.evaluation = len(tiles) - len(rows), len(rows)


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
