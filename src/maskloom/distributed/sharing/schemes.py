"""The ways to share one sequence among ranks: which can be, and what each costs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from maskloom.distributed.sharing.assignment import Assignment, balanced, in_order
from maskloom.distributed.sharing.both_ends import BothEnds, fetched_by_runs
from maskloom.distributed.sharing.scheme import Scheme, Sizes, StrategyName, computing
from maskloom.distributed.sharing.tiles import Tiles

_WORTH = 1.02
"""How much slower tiles in order may be than others: they are one run for each rank."""
_WORTH_OF_WINDOWS = 1.1
"""The same of windows: in one run their indices need no positions, which makes a kernel faster."""
_CLOSE = 1.005
"""How near to even work without any exchange the search ends."""
_ENTRIES = 1 << 23
"""How many entries of tables are looked at, about, for what ranks need of others."""


def refused(names: Sequence[StrategyName], ranks: Sequence[int], heads: int) -> str | None:
    """Why a strategy for each dimension of a mesh cannot be; None if it can."""
    if names.count("heads") > 1 or len(names) - names.count("heads") > 1:
        return (
            f'one dimension shares heads, and one rows: ("heads", "gather") or ("heads", "needed"); got {tuple(names)}'
        )
    parts = ranks[names.index("heads")] if "heads" in names else 1
    if heads % parts:
        return f'strategy "heads" gives each rank as many query heads; there are {heads} heads and {parts} ranks'
    return None


def scheme(names: Sequence[StrategyName], ranks: Sequence[int], tiles: Tiles, sizes: Sizes) -> Scheme:
    """The scheme of strategies that are not refused."""
    parts = ranks[names.index("heads")] if "heads" in names else 1
    way = _Way(tuple(names), parts, math.prod(ranks) // parts, tiles, sizes)
    if way.groups == 1:
        return way.scheme(None)
    return _of_runs(way) if "needed" in names else way.scheme(balanced(tiles.counts.sum(0), way.groups))


class _Way(NamedTuple):
    """Strategies by name, for some tiles: what is left open is which tiles each group takes."""

    names: tuple[StrategyName, ...]
    parts: int
    groups: int
    tiles: Tiles
    sizes: Sizes

    def scheme(self, assignment: Assignment | None) -> Scheme:
        """The scheme of this assignment; None for one group."""
        parts, groups, tiles, sizes = self.parts, self.groups, self.tiles, self.sizes
        longest = sizes.length if assignment is None else max(tiles.positions_in(own) for own in assignment.tiles)
        each = -(-longest // parts)
        loads = _loads(tiles, assignment, parts, sizes)
        foreign = _foreign(tiles, assignment) if "needed" in self.names and assignment is not None else None
        fetched = [(groups - 1) * parts * each] * groups if foreign is None else list(map(tiles.positions_in, foreign))
        received = _received(each, parts, fetched, sizes)
        return Scheme(self.names, parts, groups, each, assignment, loads, received, foreign)

    def seconds(self, one: Scheme) -> float:
        """The estimate of a scheme of this way."""
        return one.seconds(self.tiles.unit, self.sizes)


def _of_runs(way: _Way) -> Scheme:
    """Tiles in order, or runs from both ends where these are faster by more than `_WORTH`: queries of a rank are two runs then.

    Runs from both ends are first as even as they can be, and then as even as they can be if no rank gets more than three quarters of the
    positions that one gets so far. At most eight are weighed, and two of the largest tables, which are looked at each time.
    """
    tiles, sizes = way.tiles, way.sizes
    first = best = way.scheme(in_order(tiles.number, way.groups))
    bound, worth = first.least_seconds(tiles.unit, sizes), _WORTH_OF_WINDOWS if tiles.is_window else _WORTH
    if way.seconds(first) <= worth * bound:
        return first
    fetched = fetched_by_runs(tiles.needed, tiles.unit, sizes.length)
    ways, most = BothEnds(_work(tiles, way.parts, sizes), way.groups, fetched), None
    for _ in range(min(8, max(2, _ENTRIES // tiles.number**2))):
        runs = None if most == 0 else ways.best(most)
        if runs is None or way.seconds(best) <= _CLOSE * bound:
            break
        found = way.scheme(runs)
        if computing(max(found.loads), tiles.unit, sizes) >= way.seconds(best):
            break
        best = min(best, found, key=way.seconds)
        most = max(map(tiles.positions_in, found.foreign or ())) * 3 // 4
    return first if way.seconds(first) <= worth * way.seconds(best) else best


def kv_shares(sizes: Sizes, parts: int) -> int:
    """The heads of keys and values that a part has."""
    share = sizes.heads // parts
    return share // math.gcd(share, sizes.heads // sizes.kv_heads)


def _work(tiles: Tiles, parts: int, sizes: Sizes) -> Tensor:
    """int64 (parts or 1, query tiles): what a tile costs each of the ranks that share its heads."""
    if len(tiles.counts) == 1:
        return tiles.counts * (sizes.heads // parts)
    return tiles.counts.unflatten(0, (parts, -1)).sum(1)


def _loads(tiles: Tiles, assignment: Assignment | None, parts: int, sizes: Sizes) -> tuple[int, ...]:
    """Tiles times heads of each rank, over the batch."""
    work = _work(tiles, parts, sizes).expand(parts, -1) * (1 if "b" in tiles.marks else sizes.batch)
    own = [list(found) for found in assignment.tiles] if assignment is not None else [list(range(tiles.number))]
    return tuple(int(work[part, of].sum()) for of in own for part in range(parts))


def _foreign(tiles: Tiles, assignment: Assignment) -> tuple[Tensor, ...]:
    """Key tiles that each group needs and does not hold."""
    found = []
    for own in assignment.tiles:
        needed = tiles.needed[list(own)].any(0)
        needed[list(own)] = False
        found.append(needed)
    return tuple(found)


def _received(rows: int, parts: int, fetched: Sequence[int], sizes: Sizes) -> tuple[int, ...]:
    """Bytes for each rank: of queries, keys, values and outputs by heads, and of keys and values that groups fetch."""
    share, kv_share = sizes.heads // parts, kv_shares(sizes, parts)
    number = sizes.head_dim * sizes.itemsize * sizes.batch
    by_heads = (parts - 1) * rows * 2 * (share + kv_share) * number
    return tuple(by_heads + count * 2 * kv_share * number for count in fetched for _ in range(parts))
