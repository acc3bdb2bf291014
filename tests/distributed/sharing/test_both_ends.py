"""Runs from both ends: the best of all there are, and never worse than tiles in order."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.distributed.sharing.assignment import Assignment, head_and_tail, in_order
from maskloom.distributed.sharing.both_ends import BothEnds, Fetched, fetched_by_runs
from tests.distributed.sharing.random_tiles import needs
from tests.distributed.sharing.test_assignment import check_parts

UNIT = 4


def random_case(tiles: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Work (parts, tiles), needs (tiles, tiles), and positions."""
    generator = torch.Generator().manual_seed(seed)
    work = torch.randint(40, (1 + seed % 2, tiles), generator=generator)
    return work, needs(tiles, generator), tiles * UNIT - seed % UNIT


def most_work(found: Assignment, work: torch.Tensor) -> int:
    return max(int(work[:, list(own)].sum(1).max()) for own in found.tiles)


def positions(tiles: torch.Tensor, length: int) -> int:
    return sum(min(UNIT, length - tile * UNIT) for tile in tiles.nonzero().flatten().tolist())


def received(found: Assignment, needed: torch.Tensor, length: int) -> list[int]:
    """Positions that each rank gets of others."""
    counts = []
    for own in found.tiles:
        wanted = needed[list(own)].any(0)
        wanted[list(own)] = False
        counts.append(positions(wanted, length))
    return counts


def every(tiles: int, ranks: int) -> list[Assignment]:
    """All of them, one by one."""
    each = -(-tiles // ranks)
    full = -(-tiles // each) - 1
    found = []
    for fronts in itertools.product(range(each + 1), repeat=full):
        left, own = list(range(tiles)), []
        for front in fronts:
            own.append((*left[:front], *left[len(left) - each + front :]))
            left = left[front : len(left) - each + front]
        own += [tuple(left), *[()] * (ranks - full - 1)]
        found.append(Assignment(tuple(own), each, ""))
    return found


def upper_bound(own: tuple[int, ...], fetched: Fetched, tiles: int) -> int:
    """What `Fetched` says of some tiles."""
    first = [tile for tile in own if tile - 1 not in own]
    end = [tile + 1 for tile in own if tile + 1 not in own]
    runs = sum(int(fetched.before[a] + fetched.behind[b]) for a, b in zip(first, end, strict=True))
    return min(runs, (tiles - len(own)) * UNIT)


@given(st.integers(1, 90), st.integers(2, 6), st.integers(0, 99))
def test_every_tile_has_one_rank_of_two_runs_at_most(tiles, ranks, seed):
    work, needed, length = random_case(tiles, seed)
    ways = BothEnds(work, ranks, fetched_by_runs(needed, UNIT, length))
    found = ways.best()
    for most in (None, length // 3, length // 9, 0):
        limited = ways.best(most)
        if limited is None:
            assert most is not None
            continue
        check_parts(limited, tiles, ranks)
        assert [len(own) for own in limited.tiles] == [len(own) for own in in_order(tiles, ranks).tiles]
        assert all(sum(b - a > 1 for a, b in itertools.pairwise(own)) <= 1 for own in limited.tiles)
        assert most_work(found, work) <= most_work(limited, work)
        assert most is None or max(received(limited, needed, length)) <= most
    assert most_work(found, work) <= most_work(in_order(tiles, ranks), work)
    if tiles % (2 * ranks) == 0:
        assert most_work(found, work) <= most_work(head_and_tail(tiles, ranks), work)


@given(st.integers(1, 12), st.integers(2, 4), st.integers(0, 99))
def test_it_is_the_best_of_all(tiles, ranks, seed):
    work, needed, length = random_case(tiles, seed)
    fetched = fetched_by_runs(needed, UNIT, length)
    ways = BothEnds(work, ranks, fetched)
    for most in (None, length // 2, length // 5, 0):
        may = [
            one for one in every(tiles, ranks)
            if most is None or all(upper_bound(own, fetched, tiles) <= most for own in one.tiles if own)
        ]  # fmt: skip
        found = ways.best(most)
        assert (found is None) == (not may)
        if found is not None:
            assert most_work(found, work) == min(most_work(one, work) for one in may)


@given(st.integers(1, 40), st.integers(0, 99))
def test_what_moves_over_a_cut(tiles, seed):
    _, needed, length = random_case(tiles, seed)
    found = fetched_by_runs(needed, UNIT, length)
    for cut in range(tiles + 1):
        before, behind = (torch.zeros(tiles, dtype=torch.bool) for _ in range(2))
        before[:cut] = needed[cut:].any(0)[:cut]
        behind[cut:] = needed[:cut].any(0)[cut:]
        assert (int(found.before[cut]), int(found.behind[cut])) == (
            positions(before, length),
            positions(behind, length),
        )


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_even_work_stays_in_order(ranks):
    tiles = ranks * 13 - 1
    fetched = fetched_by_runs(torch.eye(tiles).bool(), UNIT, tiles * UNIT)
    ways = BothEnds(torch.ones(1, tiles, dtype=torch.int64), ranks, fetched)
    assert ways.best().tiles == in_order(tiles, ranks).tiles
    assert ways.best(0).tiles == in_order(tiles, ranks).tiles


def test_causal_work_is_a_head_and_a_tail():
    costs = torch.arange(1, 9)[None]
    found = BothEnds(costs, 2, fetched_by_runs(torch.ones(8, 8).tril().bool(), UNIT, 8 * UNIT)).best()
    assert found.tiles == head_and_tail(8, 2).tiles
    assert found.how == "runs from both ends"
