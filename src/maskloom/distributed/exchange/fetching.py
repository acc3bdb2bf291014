"""Which rows of others a rank gets, and where they lie among its keys."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from maskloom.distributed.sharing.layout import positions_of

Source = Literal["own", "others", "zeros"]


class Piece(NamedTuple):
    """Rows that follow one another among a rank's keys, and where they come from.

    Attributes:
        source: whether they are this rank's, or of those that came from others, or zeros, which no query sees.
        rows: which of these.
    """

    source: Source
    rows: slice


class Fetching(NamedTuple):
    """Which rows a rank gets from which others.

    Attributes:
        sent: int64 for each rank, the rows of this one that it gets; empty for this one.
        received: for each rank the number of rows that come from it; 0 for this one.
        own: the rows of this rank that it keeps, the first ones.
        zeros: the number of rows that come from nowhere.
        moves: whether any rank gets anything.
        pieces: all its keys, by position.
    """

    sent: tuple[Tensor, ...]
    received: tuple[int, ...]
    own: int
    zeros: int
    moves: bool
    pieces: tuple[Piece, ...]

    @property
    def counts(self) -> list[int]:
        """The number of rows that each rank gets of this one."""
        return [len(places) for places in self.sent]

    @property
    def keys(self) -> int:
        """The number of rows that this rank attends to."""
        return self.own + sum(self.received) + self.zeros

    @property
    def places(self) -> Iterator[tuple[Piece, slice]]:
        """The pieces, and where each lies among the keys."""
        first = 0
        for piece in self.pieces:
            rows = piece.rows.stop - piece.rows.start
            yield piece, slice(first, first + rows)
            first += rows


_STEPS = 8
"""The tiles of a rank over the step of its number of keys: few numbers of keys, so that what is recorded for one batch serves the next."""


def fetching_of(
    tiles: Sequence[Sequence[int]],
    foreign: Sequence[Tensor],
    group: int,
    unit: int,
    length: int,
    device: torch.device,
    *,
    in_steps: bool = False,
) -> tuple[Fetching, Tensor]:
    """How a group gets keys, and the numbers of all their tiles, rising.

    Args:
        tiles: those of each group, rising.
        foreign: for each group bool (key tiles,), those that it needs of others.
        unit, length: positions in a tile, and in all; the last tile may be cut.
        in_steps: whether rows of zeros stand for tiles that it does not need, so that groups and batches have few numbers of keys.
    """

    def held_by(other: int, needed: Tensor) -> Tensor:
        own = torch.tensor(tiles[other], dtype=torch.int64)
        return own[needed[own]]

    own = torch.tensor(tiles[group], dtype=torch.int64)
    held = positions_of(own, unit, length)
    sent = [torch.searchsorted(held, positions_of(held_by(group, needed), unit, length)) for needed in foreign]
    received = [held_by(other, foreign[group]) for other in range(len(tiles))]
    kept = own if len(own) else own.new_zeros(1)  # one row at least: attention takes no empty tensors
    needed = torch.cat([kept, *received])
    step = -(-max(map(len, tiles)) // _STEPS) if in_steps and len(own) else 1
    zeros = _others(needed, len(foreign[group]), step)
    numbers = torch.cat([needed, zeros])
    rows = (length - numbers * unit).clamp(max=unit if len(own) else 1)
    keys, order = numbers.sort()
    found = Fetching(
        tuple(places.to(device, non_blocking=True) for places in sent),
        tuple(len(positions_of(tiles, unit, length)) for tiles in received),
        max(1, len(held)),
        int(rows[len(needed) :].sum()),
        any(bool(needed.any()) for needed in foreign),
        _pieces(order, rows, len(kept), len(needed)),
    )
    return found, keys


def _others(needed: Tensor, number: int, step: int) -> Tensor:
    """The tiles to add to those that are needed, so that there are a multiple of ``step``, or all; the runs of tiles stay as many.

    Those behind the first run come first, then those behind the next ones, at last those before all of them, from the back.
    """
    count = min(number, -(-len(needed) // step) * step) - len(needed)
    is_free = torch.ones(number, dtype=torch.bool).index_fill(0, needed, False)
    free, first = is_free.nonzero().flatten(), int(needed.min())
    return torch.cat([free[free > first], free[free < first].flip(0)])[:count]


def _pieces(order: Tensor, rows: Tensor, kept: int, needed: int) -> tuple[Piece, ...]:
    """Tiles, by position, as pieces.

    Args:
        order: where each tile is among this rank's, the first ``kept``, those of others, up to ``needed``, and others of zeros.
        rows: of the tiles, in that order of theirs.
    """
    ends = torch.nn.functional.pad(rows.cumsum(0), (1, 0))
    begins: dict[int, Source] = {
        0: "own",
        kept: "others",
        needed: "zeros",
    }  # a later one of the same number stands for what is there
    found = []
    for tiles in order.tensor_split(
        ((order.diff() != 1) | (order[1:] == kept) | (order[1:] == needed)).nonzero().flatten() + 1
    ):
        first, end = int(tiles[0]), int(tiles[-1]) + 1
        begin = max(at for at in begins if at <= first)
        found.append(Piece(begins[begin], slice(int(ends[first] - ends[begin]), int(ends[end] - ends[begin]))))
    return tuple(found)
