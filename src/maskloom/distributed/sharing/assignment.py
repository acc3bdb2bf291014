"""Which query tiles each rank takes, so that all visit about equally many key tiles."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_BALANCED = 1.05
"""Largest share over the mean that a simple assignment may have; else tiles are assigned one by one."""
_SWAPS = 200


class Assignment(NamedTuple):
    """Tiles for ranks.

    Attributes:
        tiles: for each rank the numbers of its query tiles, rising.
        each: the most tiles that a rank has: all have rows for so many.
        how: "in order", "head and tail", "one by one", or "runs from both ends".
    """

    tiles: tuple[tuple[int, ...], ...]
    each: int
    how: str

    def loads(self, costs: Tensor) -> list[int]:
        """What each rank has to do."""
        return [int(costs[list(own)].sum()) if own else 0 for own in self.tiles]


def in_order(tiles: int, ranks: int) -> Assignment:
    """Consecutive tiles for each rank."""
    each = -(-tiles // ranks)
    own = tuple(tuple(range(rank * each, min((rank + 1) * each, tiles))) for rank in range(ranks))
    return Assignment(own, each, "in order")


def head_and_tail(tiles: int, ranks: int) -> Assignment:
    """Two runs of tiles for each rank, one from the front and one from the back: even where work grows along the sequence.

    Of 8 tiles, the ranks are 0 0 1 1 1 1 0 0 if there are two.
    """
    each = -(-tiles // ranks)
    head = each // 2
    tail = each - head
    own = []
    for rank in range(ranks):
        back = ranks * head + (ranks - 1 - rank) * tail
        runs = (*range(rank * head, (rank + 1) * head), *range(back, back + tail))
        own.append(tuple(tile for tile in runs if tile < tiles))
    return Assignment(tuple(own), each, "head and tail")


def one_by_one(costs: Tensor, ranks: int) -> Assignment:
    """The dearest tile first, each to the rank with the least to do that has room; then swaps between two ranks."""
    each = -(-len(costs) // ranks)
    work: list[int] = costs.tolist()
    own: list[list[int]] = [[] for _ in range(ranks)]
    waiting = [(0, rank) for rank in range(ranks)]
    for tile in sorted(range(len(work)), key=lambda tile: -work[tile]):
        load, rank = heapq.heappop(waiting)
        own[rank].append(tile)
        if len(own[rank]) < each:
            heapq.heappush(waiting, (load + work[tile], rank))
    _swap(own, work, each)
    return Assignment(tuple(tuple(sorted(tiles)) for tiles in own), each, "one by one")


def balanced(costs: Tensor, ranks: int) -> Assignment:
    """The simplest assignment that is even, or the one that is evenest.

    Args:
        costs: integers (query tiles,), what each tile costs.
    """
    simple = in_order(len(costs), ranks), head_and_tail(len(costs), ranks)
    for found in simple:
        if balance_of(found.loads(costs)) <= _BALANCED:
            return found
    return min((one_by_one(costs, ranks), *reversed(simple)), key=lambda found: max(found.loads(costs)))


def balance_of(loads: Sequence[int]) -> float:
    """The largest of some loads over their mean; 1 where there is nothing to do."""
    total = sum(loads)
    return max(loads) * len(loads) / total if total else 1.0


def _swap(own: list[list[int]], work: list[int], each: int) -> None:
    """Swap two tiles, or move one, between the busiest rank and another, as long as that helps."""
    for _ in range(_SWAPS):
        loads = [sum(work[tile] for tile in tiles) for tiles in own]
        busiest = max(range(len(own)), key=loads.__getitem__)
        ways = [_best_swap(own, work, loads, each, busiest, rank) for rank in range(len(own)) if rank != busiest]
        gain, rank, give, take = max(ways, default=(0, 0, 0, 0))
        if gain <= 0:
            return
        own[busiest].remove(give)
        own[rank].append(give)
        if take >= 0:
            own[rank].remove(take)
            own[busiest].append(take)


def _best_swap(
    own: list[list[int]], work: list[int], loads: list[int], each: int, busiest: int, rank: int
) -> tuple[int, int, int, int]:
    """By how much the busier of two ranks is relieved, by which tiles: -1 for none in return."""
    gap = loads[busiest] - loads[rank]
    mine, theirs = own[busiest], own[rank] + ([-1] if len(own[rank]) < each else [])
    costs = torch.tensor([work[tile] if tile >= 0 else 0 for tile in theirs])
    moved = torch.tensor([work[tile] for tile in mine])[:, None] - costs
    gains = torch.minimum(moved, gap - moved)
    best = int(gains.argmax())
    give, take = mine[best // len(theirs)], theirs[best % len(theirs)]
    return int(gains.max()), rank, give, take
