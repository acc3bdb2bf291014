"""Masks and score mods of the whole, asked by the indices of a part."""

import torch

import maskloom as loom
from maskloom.distributed.coordinates import AtRank, Coordinates, placed_mask, placed_score

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
