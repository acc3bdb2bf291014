"""What ranks get from one another, put together: the keys of each, by position."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.distributed.exchange.fetching import Fetching, fetching_of
from maskloom.distributed.sharing.assignment import Assignment, head_and_tail, in_order, one_by_one
from maskloom.distributed.sharing.layout import positions_of
from tests.distributed.sharing.random_tiles import needs

UNIT = 4
HOST = torch.device("cpu")


def fetchings(assignment: Assignment, needed: torch.Tensor, length: int) -> list[tuple[Fetching, torch.Tensor]]:
    foreign = []
    for own in assignment.tiles:
        wanted = needed[list(own)].any(0)
        wanted[list(own)] = False
        foreign.append(wanted)
    return [fetching_of(assignment.tiles, foreign, group, UNIT, length, HOST) for group in range(len(assignment.tiles))]


def assembled(how: Fetching, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The keys of a rank, from its rows and those that came from others."""
    found = torch.full((how.keys,), -1)
    for piece, keys in how.places:
        found[keys] = (own if piece.is_own else others)[piece.rows]
    return found


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 99))
def test_keys_lie_by_position(length, ranks, seed):
    tiles = -(-length // UNIT)
    generator = torch.Generator().manual_seed(seed)
    needed, costs = needs(tiles, generator), torch.randint(9, (tiles,), generator=generator)
    for assignment in (in_order(tiles, ranks), head_and_tail(tiles, ranks), one_by_one(costs, ranks)):
        rows = [positions_of(own, UNIT, length) for own in assignment.tiles]
        found = fetchings(assignment, needed, length)
        for rank, (how, keys) in enumerate(found):
            sent = [rows[other][of.sent[rank]] for other, (of, _) in enumerate(found)]
            assert tuple(map(len, sent)) == how.received
            assert not len(sent[rank])
            assert how.moves == any(sum(of.received) > 0 for of, _ in found)
            if not len(rows[rank]):
                assert (how.own, how.keys, len(how.pieces)) == (1, 1, 1)
                continue
            positions = assembled(how, rows[rank], torch.cat(sent))
            assert torch.equal(positions, positions_of(keys, UNIT, length))
            assert torch.equal(positions, positions.sort().values)
            wanted = needed[list(assignment.tiles[rank])].any(0)
            assert torch.isin(positions_of(wanted.nonzero().flatten(), UNIT, length), positions).all()


@pytest.mark.parametrize(("rank", "pieces"), [(0, 1), (1, 2), (2, 2)])
def test_ranks_of_one_run_copy_at_most_three_pieces(rank, pieces):
    """What comes from lower ranks, its own rows, and what comes from higher ones: each once."""
    found = fetchings(in_order(12, 3), torch.ones(12, 12).tril().bool(), 12 * UNIT)[rank][0]
    assert len(found.pieces) == pieces
    everything = fetchings(in_order(12, 3), torch.ones(12, 12).bool(), 12 * UNIT)[rank][0]
    assert len(everything.pieces) == (3 if rank == 1 else 2)


def test_the_cut_tile_may_lie_between_those_of_other_ranks():
    """Rank 0 holds the last tile, of 3 positions; rank 1 gets it, and then tiles of rank 2."""
    assignment = Assignment(((0, 5), (1, 2), (3, 4)), 2, "by hand")
    how, keys = fetchings(assignment, torch.ones(6, 6).bool(), 23)[1]
    assert keys.tolist() == list(range(6))
    rows = [positions_of(own, UNIT, 23) for own in assignment.tiles]
    assert assembled(how, rows[1], torch.cat([rows[0], rows[2]])).tolist() == list(range(23))
    assert [piece.is_own for piece in how.pieces] == [False, True, False, False]
