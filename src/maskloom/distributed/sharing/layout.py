"""Which positions of the sequence each rank holds, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.distributed.sharing.assignment import Assignment


class Runs(NamedTuple):
    """Positions in one run or two.

    Attributes:
        first: what is added to an index below ``split``.
        split: the first index of the second run; of one run the number of its positions, or more.
        second: what is added to an index from there on.
    """

    first: int
    split: int
    second: int

    @property
    def is_one(self) -> bool:
        """Whether they are one run."""
        return self.first == self.second

    def moved(self, by: int) -> "Runs":
        """All positions moved."""
        return Runs(self.first + by, self.split, self.second + by)

    def positions(self, number: int) -> Tensor:
        """The positions of so many indices: int64."""
        index = torch.arange(number)
        return index + torch.where(index >= self.split, self.second, self.first)


def runs_of(tiles: Tensor, unit: int) -> Runs | None:
    """The runs of positions in some tiles, by their rising numbers; None if they are more than two."""
    if not len(tiles):
        return Runs(0, 0, 0)
    gaps = (tiles.diff() != 1).nonzero().flatten() + 1
    if len(gaps) > 1:
        return None
    split = int(gaps[0]) if len(gaps) else len(tiles)
    last = split if len(gaps) else 0
    return Runs(int(tiles[0]) * unit, split * unit, (int(tiles[last]) - last) * unit)


@dataclass(frozen=True)
class Layout:
    """Positions for groups of ranks, and parts of these for the ranks of a group, which share its heads.

    Attributes:
        length: positions of the whole sequence.
        positions: int64 for each group, rising: those that the group holds.
        rows: of each rank; a group has ``parts * rows``, of which the last hold nothing.
        parts: ranks in a group.
    """

    length: int
    positions: tuple[Tensor, ...]
    rows: int
    parts: int

    @property
    def group_rows(self) -> int:
        """The rows of a group."""
        return self.parts * self.rows

    def of_rank(self, group: int, part: int) -> Tensor:
        """The position of each row of a rank: int64 (rows,), -1 for rows that hold nothing."""
        own = self.positions[group][part * self.rows : (part + 1) * self.rows]
        return torch.cat([own, own.new_full((self.rows - len(own),), -1)])

    def places(self) -> Tensor:
        """Where each position lies in the rows of all groups, one after another: int64 (length,)."""
        found = torch.empty(self.length, dtype=torch.int64)
        for group, own in enumerate(self.positions):
            found[own] = torch.arange(len(own)) + group * self.group_rows
        return found


def layout_of(assignment: Assignment | None, length: int, unit: int, rows: int, parts: int) -> Layout:
    """Groups that hold tiles of ``unit`` positions; without an assignment, one group that holds the sequence in its order."""
    if assignment is None:
        return Layout(length, (torch.arange(length),), rows, parts)
    return Layout(length, tuple(positions_of(own, unit, length) for own in assignment.tiles), rows, parts)


def positions_of(tiles: Sequence[int] | Tensor, unit: int, length: int) -> Tensor:
    """The positions in some tiles: int64, rising. tiles: rising numbers."""
    numbers = tiles if isinstance(tiles, Tensor) else torch.tensor(tiles, dtype=torch.int64)
    positions = (numbers[:, None] * unit + torch.arange(unit)).flatten()
    is_cut = len(numbers) > 0 and (int(numbers[-1]) + 1) * unit > length
    return positions[: len(positions) - ((int(numbers[-1]) + 1) * unit - length)] if is_cut else positions
