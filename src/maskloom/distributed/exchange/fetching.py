"""Which rows of others a rank gets, and where they lie among its keys."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.distributed.sharing.layout import positions_of


class Piece(NamedTuple):
    """Rows that follow one another among a rank's keys, and where they come from.

    Attributes:
        is_own: whether they are this rank's, or of those that came from others.
        rows: which of these.
    """

    is_own: bool
    rows: slice


class Fetching(NamedTuple):
    """Which rows a rank gets from which others.

    Attributes:
        sent: int64 for each rank, the rows of this one that it gets; empty for this one.
        received: for each rank the number of rows that come from it; 0 for this one.
        own: the rows of this rank that it keeps, the first ones.
        moves: whether any rank gets anything.
        pieces: all its keys, by position.
    """

    sent: tuple[Tensor, ...]
    received: tuple[int, ...]
    own: int
    moves: bool
    pieces: tuple[Piece, ...]

    @property
    def counts(self) -> list[int]:
        """The number of rows that each rank gets of this one."""
        return [len(places) for places in self.sent]

    @property
    def keys(self) -> int:
        """The number of rows that this rank attends to."""
        return self.own + sum(self.received)

    @property
    def places(self) -> Iterator[tuple[Piece, slice]]:
        """The pieces, and where each lies among the keys."""
        first = 0
        for piece in self.pieces:
            rows = piece.rows.stop - piece.rows.start
            yield piece, slice(first, first + rows)
            first += rows


def fetching_of(
    tiles: Sequence[Sequence[int]], foreign: Sequence[Tensor], group: int, unit: int, length: int, device: torch.device
) -> tuple[Fetching, Tensor]:
    """How a group gets keys, and the numbers of all their tiles, rising.

    Args:
        tiles: those of each group, rising.
        foreign: for each group bool (key tiles,), those that it needs of others.
        unit, length: positions in a tile, and in all; the last tile may be cut.
    """

    def held_by(other: int, needed: Tensor) -> Tensor:
        own = torch.tensor(tiles[other], dtype=torch.int64)
        return own[needed[own]]

    own = torch.tensor(tiles[group], dtype=torch.int64)
    held = positions_of(own, unit, length)
    sent = [torch.searchsorted(held, positions_of(held_by(group, needed), unit, length)) for needed in foreign]
    received = [held_by(other, foreign[group]) for other in range(len(tiles))]
    kept = own if len(own) else own.new_zeros(1)  # one row at least: attention takes no empty tensors
    numbers = torch.cat([kept, *received])
    rows = (length - numbers * unit).clamp(max=unit if len(own) else 1)
    keys, order = numbers.sort()
    found = Fetching(
        tuple(places.to(device, non_blocking=True) for places in sent),
        tuple(len(positions_of(tiles, unit, length)) for tiles in received),
        max(1, len(held)),
        any(bool(needed.any()) for needed in foreign),
        _pieces(order, rows, len(kept)),
    )
    return found, keys


def _pieces(order: Tensor, rows: Tensor, kept: int) -> tuple[Piece, ...]:
    """Tiles, by position, as pieces.

    Args:
        order: where each tile is among this rank's, the first ``kept``, and those of others.
        rows: of the tiles, in that order of theirs.
    """
    ends = rows.cumsum(0)
    firsts = ends - rows
    own = int(ends[kept - 1])
    found = []
    for tiles in order.tensor_split(((order.diff() != 1) | (order[1:] == kept)).nonzero().flatten() + 1):
        first, end = int(firsts[tiles[0]]), int(ends[tiles[-1]])
        found.append(Piece(True, slice(first, end)) if first < own else Piece(False, slice(first - own, end - own)))
    return tuple(found)
