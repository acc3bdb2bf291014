"""The states of the tiles of a picture: those of a BlockMask's tables, or of a mask on the picture's own grid."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.grid import checked_sizes
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED
from maskloom.show.measure.shares import MOST_CELLS, at, cells_of, shares_of
from maskloom.show.measure.source import Cells, OfBlockMask, Source


@dataclass(frozen=True)
class Tiles:
    """The states of the cells of a picture: a cell is one tile, or several.

    Attributes:
        cells: the cells; they start at the start of a tile.
        states: int8 (rows, columns), of SKIPPED, PARTIAL and FULL.
        undecided: the number of partial ones in which no visible pair was found.
    """

    cells: Cells
    states: Tensor
    undecided: int = 0


def block_of(mask: object, block_size: int | tuple[int, int] | None, q_len: int, kv_len: int) -> tuple[int, int]:
    """Positions in a tile: those of a BlockMask; of a mask those asked for, 128 by default."""
    if not isinstance(mask, BlockMask):
        return checked_sizes(q_len, kv_len, 128 if block_size is None else block_size)
    if block_size is not None and checked_sizes(q_len, kv_len, block_size) != tuple(mask.BLOCK_SIZE):
        raise ValueError(f"a BlockMask has its own block size, {tuple(mask.BLOCK_SIZE)}; got block_size={block_size}")
    return mask.BLOCK_SIZE


def tiles_of(source: Source, block: tuple[int, int], queries: range, keys: range, row: int, head: int) -> Tiles:
    """The tiles that these queries and keys touch."""
    queries, keys = _whole(queries, block[0], source.q_len), _whole(keys, block[1], source.kv_len)
    sides = _grouped(len(queries), block[0]), _grouped(len(keys), block[1])
    cells = at(cells_of(queries, keys, sides), row, head)
    if isinstance(source, OfBlockMask):
        return Tiles(cells, states_in_tables(source, cells))
    shares = shares_of(source, cells)
    states = torch.where(shares.share > 0, PARTIAL, SKIPPED).to(torch.int8)
    return Tiles(
        cells, states.masked_fill(_may_be_full(cells, source) & (shares.share == 1), FULL), int(shares.undecided.sum())
    )


def _whole(span: range, block: int, length: int) -> range:
    """All positions of the tiles that these touch."""
    return range(span.start // block * block, min(-(-span.stop // block) * block, length))


def _grouped(length: int, block: int) -> int:
    """Positions of a cell: of one tile, or of 2, 4, 8, ... where there would be too many cells."""
    return block << max(0, (-(-length // (block * MOST_CELLS)) - 1).bit_length())


def _may_be_full(cells: Cells, source: Source) -> Tensor:
    """The cells that the end of the sequence does not cut: a tile that it cuts is never full (torch's rule)."""
    whole = [
        torch.arange(count) * block + block + int(offset) <= length
        for count, block, offset, length in (
            (cells.shape[2], cells.q_block, cells.q_offset, source.q_len),
            (cells.shape[3], cells.kv_block, cells.kv_offset, source.kv_len),
        )
    ]
    return whole[0][:, None] & whole[1]


def states_in_tables(source: OfBlockMask, cells: Cells) -> Tensor:
    """The states in a BlockMask's tables: skipped or full only where all tiles of a cell are."""
    skipped, partial, full = source.tiles_in(cells)
    states = torch.full(skipped.shape, PARTIAL, dtype=torch.int8)
    return states.masked_fill(~partial & ~full, SKIPPED).masked_fill(~partial & ~skipped, FULL)
