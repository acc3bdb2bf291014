"""Ranks with few runs of consecutive tiles: the search for the runs that keep the busiest rank's work least.

Each rank in turn takes a run from the front and one from the back of what is left, as many tiles as its share; the last takes the rest.
Tiles in order are of this kind, all runs from the front; so are a head and a tail for every rank, and the runs of a circle of two ranks,
of which one division into equal work always exists.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.distributed.sharing.assignment import Assignment

_NEVER = 1 << 48
"""More than any work, and small enough to be multiplied by a number of tiles."""


class Fetched(NamedTuple):
    """Positions of keys that a run gets from others, at most.

    Attributes:
        before: int64 (tiles + 1,), those before a tile that this tile or later ones need: of a run which begins there.
        behind: int64 (tiles + 1,), those from a tile on that earlier ones need: of a run which ends before it.
        unit: positions in a tile.
    """

    before: Tensor
    behind: Tensor
    unit: int


def fetched_by_runs(needed: Tensor, unit: int, length: int) -> Fetched:
    """What runs get, for all runs at once: a key moves over each cut between it and its first or its last query tile.

    Args:
        needed: bool (query tiles, key tiles).
        length: positions: the last tile may be cut by it.
    """
    tiles = len(needed)
    number, by_key = torch.arange(tiles), needed.T.contiguous().to(torch.uint8)
    first, after = by_key.argmax(1), tiles - by_key.flip(1).argmax(1)  # argmax finds the first of several
    size = torch.full((tiles,), unit).index_fill(0, number[-1:], length - (tiles - 1) * unit) * needed.any(0)
    return Fetched(_over(number + 1, after, size), _over(first + 1, number + 1, size), unit)


def _over(first: Tensor, end: Tensor, size: Tensor) -> Tensor:
    """How much moves over each cut: int64 (tiles + 1,), where a key of some size moves over those from ``first`` up to ``end``."""
    moves = size * (end > first)
    steps = size.new_zeros(len(size) + 2)
    steps.index_add_(0, first, moves)
    steps.index_add_(0, end, -moves)
    return steps.cumsum(0)[:-1]


class _Ends(NamedTuple):
    """Entries of a table at the ends of two runs, from ``first`` up to ``middle`` and from ``back`` up to ``end``.

    Each is (..., taken, front): by the tiles that were taken from the front before, and those that the rank takes there.
    """

    first: Tensor
    middle: Tensor
    back: Tensor
    end: Tensor


class BothEnds:
    """All ways to give ranks runs from both ends; compared in steps of tiles squared, for all ranks together.

    Args:
        work: int64 (parts, tiles), what a tile costs each of the ranks that share its heads.
        ranks: groups of them.
        fetched: what runs get from others.
    """

    def __init__(self, work: Tensor, ranks: int, fetched: Fetched) -> None:
        self.tiles, self.ranks = work.shape[1], ranks
        self.each = -(-self.tiles // ranks)
        self._sums, self._fetched = torch.nn.functional.pad(work.cumsum(1), (1, 0)), fetched
        full = -(-self.tiles // self.each) - 1  # others have the rest, or nothing
        self._costs = [*map(self._of_next, range(full)), self._of_last(full)]

    def best(self, most: int | None = None) -> Assignment | None:
        """Those with the least work of the busiest rank; of equal ones those with more from the front. None if there are none.

        Args:
            most: positions that a rank may get from others.
        """
        costs = [work if most is None else work.masked_fill(moved > most, _NEVER) for work, moved in self._costs]
        least, choices = torch.zeros(1, dtype=torch.int64), []  # by the number of tiles that were taken from the front
        for work in costs[:-1]:
            least, fronts = _least(torch.maximum(least[:, None], work))
            choices.append(fronts)
        total = torch.maximum(least, costs[-1])
        return None if int(total.min()) >= _NEVER else self._assigned(_traced(choices, total))

    def _of_next(self, before: int) -> tuple[Tensor, Tensor]:
        """Work and positions that move, (taken, front), of a rank behind ``before`` others."""
        sums, begin, stop = (
            self._ends(table, before) for table in (self._sums, self._fetched.before, self._fetched.behind)
        )
        front, back = begin.first + stop.middle, begin.back + stop.end
        front[:, 0] = back[:, -1] = 0  # of empty runs
        moved = (front + back).clamp(max=(self.tiles - self.each) * self._fetched.unit)
        return (sums.middle - sums.first + sums.end - sums.back).amax(0), moved

    def _ends(self, table: Tensor, before: int) -> _Ends:
        """Views of a table (..., tiles + 1)."""
        taken, left = before * self.each + 1, self.tiles - before * self.each

        def moving(at: int) -> Tensor:
            return table[..., at:].unfold(-1, self.each + 1, 1)[..., :taken, :]

        first, end = (table[..., at : at + taken, None] for at in (0, left))
        return _Ends(first, moving(0), moving(left - self.each), end)

    def _of_last(self, before: int) -> tuple[Tensor, Tensor]:
        """The same, (taken,), of the rank that takes the rest."""
        left = self.tiles - before * self.each
        first, end = (slice(at, at + before * self.each + 1) for at in (0, left))
        moved = self._fetched.before[first] + self._fetched.behind[end]
        others = (self.tiles - left) * self._fetched.unit
        return (self._sums[:, end] - self._sums[:, first]).amax(0), moved.clamp(max=others)

    def _assigned(self, fronts: list[int]) -> Assignment:
        """Ranks take so many tiles from the front, and the others of their share from the back."""
        first, end, own = 0, self.tiles, []
        for front in fronts:
            back = end - self.each + front
            own.append((*range(first, first + front), *range(back, end)))
            first, end = first + front, back
        own += [tuple(range(first, end)), *[()] * (self.ranks - len(fronts) - 1)]
        return Assignment(tuple(own), self.each, "runs from both ends")


def _least(work: Tensor) -> tuple[Tensor, Tensor]:
    """For each sum of the two indices the least entry, and its second index, the largest where several are least.

    The smaller dimension is turned to the front, and its rows are moved so that equal sums stand below one another.
    """
    taken, fronts = work.shape
    code = work * fronts + torch.arange(fronts - 1, -1, -1)
    rows = code if taken < fronts else code.T
    moved = torch.nn.functional.pad(rows, (0, len(rows)), value=_NEVER * fronts).flatten()[: -len(rows)]
    least = moved.view(len(rows), -1).amin(0)
    return least // fronts, fronts - 1 - least % fronts


def _traced(choices: list[Tensor], total: Tensor) -> list[int]:
    """What ranks take from the front, from the last choice back to the first."""
    at, fronts = int((total == total.min()).nonzero()[-1]), list[int]()
    for choice in reversed(choices):
        fronts.append(int(choice[at]))
        at -= fronts[-1]
    return fronts[::-1]
