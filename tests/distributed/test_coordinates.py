"""Masks and score mods of the whole, asked by the indices of a part."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends import flash_mask
from maskloom.core import captures
from maskloom.distributed.coordinates import AtRank, Coordinates, Run, TwoRuns, placed_mask, placed_score

Q, KV = torch.tensor([0, 1, 6, 7], dtype=torch.int32), torch.tensor([1, 3, 4, 6, 7], dtype=torch.int32)


def test_a_mask_at_positions_is_the_rows_and_columns_of_the_whole():
    mask = loom.masks.per_head([loom.causal, loom.window(back=2), loom.prefix(3)]) & loom.lengths([8, 5, 7])
    whole = mask.dense(8, 8, heads=3)
    found = AtRank(mask, Q, KV, None, None).dense(4, 5, batch=3, heads=3)
    assert torch.equal(found, whole[:, :, Q.long()][..., KV.long()])
    part = AtRank(mask, Q, None, 1, 2).dense(4, 8, batch=2, heads=1)
    assert torch.equal(part, whole[1:, 2:, Q.long()])


def test_it_is_drawn_as_it_is():
    shown = AtRank(loom.causal, Q, None, None, None).dense(4, 8)[0, 0]
    assert shown.sum(1).tolist() == [1, 2, 7, 8]
    assert repr(AtRank(loom.causal, Q, None, None, 4)) == "at_rank(causal, q_positions=int32[4], h_offset=4)"


def test_what_is_whole_stays_itself():
    alibi, softcap = loom.scores.alibi(4), loom.scores.softcap(5.0)
    assert placed_mask(loom.causal, Coordinates()) is loom.causal
    assert placed_score(alibi, Coordinates()) is alibi
    assert placed_score(softcap, Coordinates(Q)) is softcap
    placed = placed_score(alibi, Coordinates(Q, KV, None, 2))
    assert placed_score(placed, Coordinates(Q)) is placed
    assert placed.adds
    assert repr(placed) == "at_rank(alibi(4))"


def test_masks_joined_by_and_are_asked_at_the_positions():
    joined = AtRank(loom.causal, Q, KV, None, None) & loom.window(back=2)
    whole = (loom.causal & loom.window(back=2)).dense(8, 8)
    assert torch.equal(joined.dense(4, 5), whole[:, :, Q.long()][..., KV.long()])


# -- runs --------------------------------------------------------------------------------------------------------------

LENGTH, BATCH = 211, 3


def rows(number: int) -> torch.Tensor:
    return torch.full((BATCH,), number, dtype=torch.int32)


def two_runs(first: range, second: range) -> tuple[TwoRuns, torch.Tensor]:
    """The runs, and the same as a table."""
    found = TwoRuns(rows(first.start), rows(len(first)), rows(second.start - len(first)))
    return found, torch.tensor([*first, *second], dtype=torch.int32)


RUNS = {
    "both": (two_runs(range(48), range(160, LENGTH)), two_runs(range(64), range(128, LENGTH))),
    "in the middle of a tile": (two_runs(range(3, 40), range(97, 190)), two_runs(range(7), range(90, 200))),
    "queries": (two_runs(range(16), range(200, LENGTH)), two_runs(range(100), range(100, LENGTH))),
}
MASKS = {
    "causal": loom.causal,
    "documents": loom.causal & loom.documents(offsets=[0, 31, 32, 150, LENGTH]),
    "ids": loom.documents(torch.arange(LENGTH) // 29),
    "lengths": loom.causal & loom.lengths([LENGTH, 3, 140]),
    "window and sinks": loom.causal & (loom.window(back=30) | loom.sinks(4)),
    "by head": loom.masks.per_head([loom.causal, loom.window(back=9, ahead=4)]),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("where", RUNS)
def test_runs_are_tables_that_are_not_read(where, name):
    """The same mask, and block masks that are as tight."""
    (queries, q_table), (keys, kv_table) = RUNS[where]
    by_runs = AtRank(MASKS[name], queries, keys, None, None)
    by_tables = AtRank(MASKS[name], q_table, kv_table, None, None)
    sizes = len(q_table), len(kv_table)
    assert torch.equal(by_runs.dense(*sizes, batch=BATCH, heads=2), by_tables.dense(*sizes, batch=BATCH, heads=2))
    for block_size in (16, 128):
        found, right = (
            loom.block_mask(mask, *sizes, batch=BATCH, heads=2, block_size=block_size) for mask in (by_runs, by_tables)
        )
        for kind in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks"):
            one, other = getattr(found, kind), getattr(right, kind)
            assert torch.equal(one, other.expand_as(one)), kind


@pytest.mark.parametrize("name", [name for name in MASKS if name != "by head"])
def test_flash_takes_runs_as_they_are(name):
    (queries, _), (keys, _) = RUNS["both"]
    mask = AtRank(MASKS[name], queries, keys, None, None)
    assert flash_mask.refused(mask, torch.device("cpu")) == flash_mask.refused(MASKS[name], torch.device("cpu"))
    if "ids" not in name:
        assert flash_mask.refused(mask, torch.device("cpu")) is None
        assert flash_mask.for_flash(mask, BATCH, torch.device("cpu")) is mask  # positions are known not to be negative
        assert flash_mask.refused_in_graph(mask) is None


def test_one_run_in_the_form_of_two():
    run, both = Run(rows(5)), TwoRuns(rows(5), rows(7), rows(5))
    index = torch.arange(7)
    assert torch.equal(run.at(torch.tensor(0), index), both.at(torch.tensor(0), index))
    drawn = TwoRuns(rows(0), rows(2), rows(4))
    assert drawn.at(torch.tensor(1), torch.arange(4)).tolist() == [0, 1, 6, 7]
    mask = AtRank(loom.causal, run, both, None, None)
    assert (
        repr(mask) == "at_rank(causal, q_positions=run(int32[3]), kv_positions=two_runs(int32[3], int32[3], int32[3]))"
    )
    assert mask == AtRank(loom.causal, Run(rows(5)), TwoRuns(rows(5), rows(7), rows(5)), None, None)
    assert captures.structure(both, numbers=True) == captures.structure(drawn, numbers=True)
