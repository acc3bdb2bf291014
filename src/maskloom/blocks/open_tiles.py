"""Decide the tiles that are still open by their elements: first a few witnesses, then all elements."""

import torch
from torch import Tensor

from maskloom.blocks.grid import Grid
from maskloom.core.checks import is_zero
from maskloom.program.elements import Elements, seen_in, widest
from maskloom.program.mask_program import MaskProgram
from maskloom.program.program import MaskMod, Program

CHUNK = 1 << 22
"""Maximum number of elements evaluated at once (at least one tile): 4 Mi, so 32 MiB for each int64 value."""

_WITNESSES = (2, 6)  # elements along each side of a tile: the corners, then a finer grid


@torch.no_grad()
def decide(
    states: Tensor, tiles: Tensor, source: MaskProgram, grid: Grid, *, only_skipped: bool = False
) -> tuple[Tensor, int]:
    """Write the true states of the open tiles, given as rows of (b, h, query tile, key tile), into the states.

    Args:
        only_skipped: to know which tiles are skipped is enough: a tile is decided by one True element, and may be called
            full though it is partial.

    Returns:
        The states, and the number of tiles whose elements were all evaluated; witnesses decided the others.
    """

    def look(tiles: Tensor, side: int) -> tuple[Tensor, Tensor]:
        elements = _elements(grid, tiles, side)
        return _look(source.program, source.mask, elements)

    def undecided() -> Tensor:
        return _numbers(~seen_true if only_skipped else ~(seen_true & seen_false))

    def look_again(side: int) -> None:
        true, false = look(tiles[rows], side)
        seen_true[rows] |= true
        seen_false[rows] |= false

    seen_true, seen_false = look(tiles, _WITNESSES[0])
    if grid.is_cut:
        seen_false |= _cut(tiles, grid)
    rows = undecided()
    for side in _WITNESSES[1:]:
        if len(rows):
            look_again(side)
            rows = undecided()
    if len(rows):
        look_again(max(grid.tile))
    found = seen_true.view(torch.int8) + (seen_true > seen_false)
    return states.index_put(tuple(tiles.T), found), len(rows)


def _numbers(rows: Tensor) -> Tensor:
    """The numbers of the rows that are True."""
    return rows.nonzero()[:, 0] if rows.any() else rows.new_empty(0, dtype=torch.long)


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
    parts = [elements.part(slice(at, at + step)) for at in range(0, tiles, step)]
    found = [seen_in(program, mask_mod, part) for part in parts]
    true, false = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*found, strict=True))
    return true, false
