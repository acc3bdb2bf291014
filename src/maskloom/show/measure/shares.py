"""The share of visible pairs in each cell of a picture, computed on the picture's own grid.

Intervals decide most cells without an element. In the others elements are counted: all of them where they are few, else
some. A cell without a visible pair among those is searched as a whole if there are few such cells; else it is undecided,
and a picture draws it as if a pair was visible. So no cell with a visible pair is ever drawn empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.blocks.tile_states import FULL, PARTIAL
from maskloom.program.elements import Elements
from maskloom.show.measure.source import Cells, Source

MOST_CELLS = 400
"""Maximum number of cells along a side of a picture."""

COUNTED = 1 << 22
"""Maximum number of elements that are evaluated to count visible pairs, and again to search for a first one."""

_AT_ONCE = 1 << 18  # elements

LEAST, MOST = 1e-9, 1 - 1e-6  # the share of a cell that is not empty, or not full, where the count says so


@dataclass(frozen=True)
class Shares:
    """What is visible in each cell of one batch row and head.

    Attributes:
        cells: the cells.
        share: float64 (rows, columns), from 0 to 1. It is 0 only where no pair is visible, and 1 only where all are.
        is_exact: whether every share was counted from all pairs.
        undecided: bool (rows, columns): no visible pair was found, and there may be one.
    """

    cells: Cells
    share: Tensor
    is_exact: bool
    undecided: Tensor

    @property
    def visible(self) -> int | None:
        """The number of visible pairs; None if it is not known exactly."""
        if not self.is_exact:
            return None
        rows, columns = pairs_along(self.cells)
        return int((self.share * rows[:, None] * columns).sum().round())


def cells_of(queries: range, keys: range, block: tuple[int, int] | None = None) -> Cells:
    """The cells of a picture of these queries and keys: ``block`` positions, or so many that there are few cells."""
    q_block, kv_block = block or (_block(len(queries)), _block(len(keys)))
    return Cells(1, 1, len(queries), len(keys), q_block, kv_block, queries.start, keys.start)


def at(cells: Cells, row: int, head: int) -> Cells:
    """The same cells of another batch row and head."""
    return Cells(
        1, 1, cells.q_len, cells.kv_len, cells.q_block, cells.kv_block, cells.q_offset, cells.kv_offset, row, head
    )


def _block(length: int) -> int:
    """The least power of two of positions with which the cells are few enough."""
    return 1 << (-(-length // MOST_CELLS) - 1).bit_length()


def pairs_along(cells: Cells) -> tuple[Tensor, Tensor]:
    """The number of queries in each row of cells, and of keys in each column; the last may be fewer."""
    rows, columns = (
        torch.full((-(-length // block),), block)
        for length, block in ((cells.q_len, cells.q_block), (cells.kv_len, cells.kv_block))
    )
    rows[-1], columns[-1] = cells.q_len - (len(rows) - 1) * rows[0], cells.kv_len - (len(columns) - 1) * columns[0]
    return rows, columns


def shares_of(source: Source, cells: Cells, counted: int = COUNTED) -> Shares:
    """What is visible in each cell; at most ``counted`` elements are evaluated to count, and again to search."""
    states = source.states(cells)
    share = (states == FULL).double()
    undecided = torch.zeros_like(states, dtype=torch.bool)
    tiles = (states == PARTIAL).nonzero()
    if not len(tiles):
        return Shares(cells, share, True, undecided)
    whole = cells.q_block * cells.kv_block
    if len(tiles) * whole <= counted:
        share[tuple(tiles.T)] = _counted(source, cells, tiles)
        return Shares(cells, share, True, undecided)
    found = _sampled(source, cells, tiles, counted)
    none = found == 0
    if int(none.sum()) * whole <= counted:
        if none.any():
            found[none] = _counted(source, cells, tiles[none])
        none = torch.zeros_like(none)
    share[tuple(tiles.T)] = torch.where(none, LEAST, found)
    undecided[tuple(tiles[none].T)] = True
    return Shares(cells, share, False, undecided)


def _counted(source: Source, cells: Cells, tiles: Tensor) -> Tensor:
    """The exact share of each of the cells, given as rows of (row, column)."""
    (tall, wide), parts = pairs_along(cells), []
    queries, keys = torch.arange(cells.q_block), torch.arange(cells.kv_block)
    for part in _parts(tiles, cells.q_block * cells.kv_block):
        rows, columns = tall[part[:, 0], None], wide[part[:, 1], None]
        answers = source.answers(_elements(cells, part, queries.minimum(rows - 1), keys.minimum(columns - 1)))
        real = (queries < rows)[:, :, None] & (keys < columns)[:, None, :]  # a cut cell repeats its last position
        parts.append((answers & real).flatten(1).sum(1) / (rows * columns)[:, 0].double())
    return torch.cat(parts)


def _sampled(source: Source, cells: Cells, tiles: Tensor, counted: int) -> Tensor:
    """An estimate of the share of each cell: 0 if no visible pair was seen, below 1 otherwise."""
    side = max(1, int((counted / len(tiles)) ** 0.5) - 2)
    sides = min(side, cells.q_block), min(side * side // min(side, cells.q_block), cells.kv_block)
    generator = torch.Generator().manual_seed(0)
    (tall, wide), parts = pairs_along(cells), []
    for part in _parts(tiles, (sides[0] + 2) * (sides[1] + 2)):
        queries = _spread(tall[part[:, 0]], sides[0], generator)
        keys = _spread(wide[part[:, 1]], sides[1], generator)
        answers = source.answers(_elements(cells, part, queries, keys))
        share = answers[:, 1:-1, 1:-1].double().flatten(1).mean(1)  # without the edges, which stand for no part of it
        parts.append(torch.where(answers.flatten(1).any(1), share.clamp(min=LEAST), share))
    return torch.cat(parts).clamp(max=MOST)


def _spread(lengths: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The first position in each of some cells, ``count`` random ones, one in each part of it, and the last."""
    strata = torch.arange(count) + torch.rand(len(lengths), count, generator=generator)
    positions = (strata * lengths[:, None] / count).long()
    last = lengths[:, None] - 1
    return torch.cat([torch.zeros_like(last), positions.minimum(last), last], 1)


def _elements(cells: Cells, tiles: Tensor, queries: Tensor, keys: Tensor) -> Elements:
    one = torch.ones(len(tiles), dtype=torch.int64)
    first_query = tiles[:, :1] * cells.q_block + cells.q_offset
    first_key = tiles[:, 1:] * cells.kv_block + cells.kv_offset
    return Elements(one * cells.row, one * cells.head, first_query + queries, first_key + keys)


def _parts(tiles: Tensor, elements: int) -> Iterator[Tensor]:
    """The tiles, so few at a time that little memory is used."""
    yield from tiles.split(max(1, _AT_ONCE // elements))
