"""Which positions of the sequence each rank holds, in which order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.distributed.assignment import Assignment


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


def whole_layout(length: int, parts: int) -> Layout:
    """One group that holds the sequence in its order."""
    return Layout(length, (torch.arange(length),), -(-length // parts), parts)


def tiled_layout(assignment: Assignment, length: int, unit: int, parts: int) -> Layout:
    """Groups that hold tiles of ``unit`` positions."""
    positions = []
    for own in assignment.tiles:
        all_of = (torch.tensor(own, dtype=torch.int64)[:, None] * unit + torch.arange(unit)).flatten()
        positions.append(all_of[all_of < length])
    longest = max(map(len, positions))
    return Layout(length, tuple(positions), -(-longest // parts), parts)
