"""The ways to share one sequence among ranks: which can be, and what each costs."""

import math
from collections.abc import Sequence

from torch import Tensor

from maskloom.distributed.sharing.assignment import Assignment, balanced, in_order
from maskloom.distributed.sharing.scheme import Scheme, Sizes, StrategyName
from maskloom.distributed.sharing.tiles import Tiles


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
    rows = next((name for name in names if name != "heads"), None)
    groups = math.prod(ranks) // parts
    assignment = None
    if groups > 1:
        assignment = in_order(tiles.number, groups) if rows == "needed" else balanced(tiles.counts.sum(0), groups)
    longest = sizes.length if assignment is None else max(tiles.positions_in(own) for own in assignment.tiles)
    each = -(-longest // parts)
    loads = _loads(tiles, assignment, parts, sizes)
    foreign = _foreign(tiles, assignment) if rows == "needed" and assignment is not None else None
    fetched = [(groups - 1) * parts * each] * groups if foreign is None else list(map(tiles.positions_in, foreign))
    received = _received(each, parts, fetched, sizes)
    return Scheme(tuple(names), parts, groups, each, assignment, loads, received, foreign)


def kv_shares(sizes: Sizes, parts: int) -> int:
    """The heads of keys and values that a part has."""
    share = sizes.heads // parts
    return share // math.gcd(share, sizes.heads // sizes.kv_heads)


def _loads(tiles: Tiles, assignment: Assignment | None, parts: int, sizes: Sizes) -> tuple[int, ...]:
    """Tiles times heads of each rank, over the batch."""
    counts = tiles.counts.expand(sizes.heads, -1).unflatten(0, (parts, -1)).sum(1)
    rows = 1 if "b" in tiles.marks else sizes.batch
    own = [list(found) for found in assignment.tiles] if assignment is not None else [list(range(tiles.number))]
    return tuple(int(counts[part, of].sum()) * rows for of in own for part in range(parts))


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
