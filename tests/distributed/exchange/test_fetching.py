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


def fetchings(
    assignment: Assignment, needed: torch.Tensor, length: int, in_steps: bool = False
) -> list[tuple[Fetching, torch.Tensor]]:
    foreign = []
    for own in assignment.tiles:
        wanted = needed[list(own)].any(0)
        wanted[list(own)] = False
        foreign.append(wanted)
    return [
        fetching_of(assignment.tiles, foreign, group, UNIT, length, HOST, in_steps=in_steps)
        for group in range(len(assignment.tiles))
    ]


def assembled(how: Fetching, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The keys of a rank, from its rows and those that came from others; of zeros -1."""
    found = torch.full((how.keys,), -2)
    sources = {"own": own, "others": others, "zeros": torch.full((how.zeros,), -1)}
    for piece, keys in how.places:
        found[keys] = sources[piece.source][piece.rows]
    return found


@given(st.integers(1, 300), st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_keys_lie_by_position(length, ranks, seed, in_steps):
    tiles = -(-length // UNIT)
    generator = torch.Generator().manual_seed(seed)
    needed, costs = needs(tiles, generator), torch.randint(9, (tiles,), generator=generator)
    for assignment in (in_order(tiles, ranks), head_and_tail(tiles, ranks), one_by_one(costs, ranks)):
        rows = [positions_of(own, UNIT, length) for own in assignment.tiles]
        found = fetchings(assignment, needed, length, in_steps)
        for rank, (how, keys) in enumerate(found):
            sent = [rows[other][of.sent[rank]] for other, (of, _) in enumerate(found)]
            assert tuple(map(len, sent)) == how.received
            assert not len(sent[rank])
            assert how.moves == any(sum(of.received) > 0 for of, _ in found)
            if not len(rows[rank]):
                assert (how.own, how.keys, len(how.pieces)) == (1, 1, 1)
                continue
            positions = assembled(how, rows[rank], torch.cat(sent))
            is_held = positions >= 0
            assert torch.equal(positions[is_held], positions_of(keys, UNIT, length)[is_held])
            assert int((~is_held).sum()) == how.zeros
            wanted = needed[list(assignment.tiles[rank])].any(0)
            assert torch.isin(positions_of(wanted.nonzero().flatten(), UNIT, length), positions).all()


@given(st.integers(1, 300), st.integers(0, 99))
def test_zeros_stand_for_tiles_that_are_not_needed(tiles, seed):
    """So many that the numbers of keys are few, in no more runs, and none twice."""
    generator = torch.Generator().manual_seed(seed)
    needed = needs(tiles, generator)
    for rank in range(3):
        (how, keys), (_, before) = (
            fetchings(in_order(tiles, 3), needed, tiles * UNIT, in_steps)[rank] for in_steps in (True, False)
        )
        if how.own == 1:
            assert how.zeros == 0
            continue
        assert len(keys) == len(before) + how.zeros // UNIT == len(keys.unique())
        assert torch.isin(before, keys).all()
        step = -(-len(in_order(tiles, 3).tiles[0]) // 8)
        assert len(keys) in (tiles, -(-len(before) // step) * step)
        assert (keys.diff() != 1).sum() <= (before.diff() != 1).sum()


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
    assert [piece.source for piece in how.pieces] == ["others", "own", "others", "others"]
