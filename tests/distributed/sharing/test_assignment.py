"""Tiles for ranks: as even as the issue of balance asks, with as many tiles for each."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.distributed.sharing import assignment
from maskloom.distributed.sharing.assignment import balance_of, balanced, head_and_tail, in_order, one_by_one
from maskloom.distributed.sharing.tiles import tiles_of


def check_parts(found, tiles, ranks):
    """Every tile once, rising, and no rank with more than its share."""
    assert sorted(tile for own in found.tiles for tile in own) == list(range(tiles))
    assert all(list(own) == sorted(own) and len(own) <= found.each for own in found.tiles)
    assert len(found.tiles) == ranks
    assert found.each == -(-tiles // ranks)


@pytest.mark.parametrize("tiles", [1, 2, 7, 16, 33, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_tile_has_one_rank(tiles, ranks):
    costs = torch.arange(1, tiles + 1)
    for found in (
        in_order(tiles, ranks),
        head_and_tail(tiles, ranks),
        one_by_one(costs, ranks),
        balanced(costs, ranks),
    ):
        check_parts(found, tiles, ranks)


def test_head_and_tail_is_as_it_is_drawn():
    assert head_and_tail(8, 2).tiles == ((0, 1, 6, 7), (2, 3, 4, 5))


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("each", [16, 17, 30, 64])
def test_causal_and_documents_are_even(ranks, each):
    tiles = ranks * each
    if each % 2 == 0:
        assert balanced(torch.arange(1, tiles + 1), ranks).how == "head and tail"
    offsets = sorted({0, tiles, *torch.randint(1, tiles, (9,), generator=torch.Generator().manual_seed(each)).tolist()})
    causal = torch.cat([torch.arange(1, end - first + 1) for first, end in itertools.pairwise(offsets)])
    whole = torch.cat([torch.full((end - first,), end - first) for first, end in itertools.pairwise(offsets)])
    for costs in (torch.arange(1, tiles + 1), causal, whole, torch.ones(tiles, dtype=torch.int64)):
        assert balance_of(balanced(costs, ranks).loads(costs)) <= 1.05


@given(st.lists(st.integers(0, 500), min_size=16, max_size=200), st.integers(2, 5))
def test_any_costs_come_near_what_is_possible(work, ranks):
    costs = torch.tensor(work)
    found = balanced(costs, ranks)
    check_parts(found, len(work), ranks)
    loads = found.loads(costs)
    bound = least_possible(work, ranks)
    assert balance_of(loads) <= assignment._BALANCED or max(loads) <= 1.02 * bound + 1


def least_possible(work, ranks):
    """What the busiest rank has to do at least, with no more tiles than its share."""
    each = -(-len(work) // ranks)
    fewest = len(work) - each * (ranks - 1)  # tiles that every rank takes, whatever the others do
    cheapest = sorted(work)
    return max(-(-sum(work) // ranks), cheapest[-1] + sum(cheapest[: max(0, fewest - 1)]))


def test_masks_of_long_rows_are_even():
    generator = torch.Generator().manual_seed(3)
    lens = torch.randint(500, 4000, (20,), generator=generator).cumsum(0)
    offsets = [0, *lens[lens < 16384].tolist(), 16384]
    for mask in (loom.causal, loom.causal & loom.documents(offsets=offsets), loom.documents(offsets=offsets)):
        for ranks in (2, 4, 8):
            costs = tiles_of(mask, 16384, ranks, None, 2).counts.sum(0)
            assert balance_of(balanced(costs, ranks).loads(costs)) <= 1.05


def test_nothing_to_do_is_even():
    assert balance_of([0, 0, 0]) == 1.0
    assert balance_of([3, 1, 2]) == 1.5
