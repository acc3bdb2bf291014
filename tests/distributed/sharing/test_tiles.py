"""Tiles of the whole mask: their counts are those of the dense table."""

import pytest
import torch

import maskloom as loom
from maskloom.distributed.sharing.tiles import tiles_of

MASKS = {
    "causal": loom.causal,
    "documents": loom.causal & loom.documents(torch.arange(211) // 29),
    "by row": loom.causal & loom.lengths([211, 3, 50]),
    "by head": loom.masks.per_head([loom.causal, loom.window(back=9)]),
    "function": lambda b, h, q_idx, kv_idx: (q_idx // 5 + kv_idx // 7) % 3 == 0,
}


@pytest.mark.parametrize("name", MASKS)
def test_counts_and_needs_are_those_of_the_dense_table(name):
    mask, length = loom.as_mask(MASKS[name]), 211
    tiles = tiles_of(mask, length, 3, None, 2)
    dense = mask.dense(length, length, heads=2 if name == "by head" else None)
    padded = torch.nn.functional.pad(dense, (0, tiles.number * tiles.unit - length) * 2)
    seen = padded.unflatten(3, (-1, tiles.unit)).unflatten(2, (-1, tiles.unit)).any(5).any(3)
    assert tiles.counts.expand(seen.shape[1], -1).tolist() == seen.sum((0, 3)).tolist()
    assert tiles.needed.tolist() == seen.any(0).any(0).tolist()
    assert tiles.batch == (3 if name == "by row" else None)


def test_a_rank_has_sixteen_tiles_or_more_where_there_are_positions():
    sizes = {length: tiles_of(loom.causal, length, 2, None, 1).unit for length in (5, 64, 1009, 4096, 65536, 1 << 20)}
    assert sizes == {5: 1, 64: 2, 1009: 16, 4096: 128, 65536: 128, 1 << 20: 512}


def test_positions_in_tiles_are_counted_where_the_last_is_cut():
    tiles = tiles_of(loom.causal, 211, 3, None, 1)
    assert (tiles.unit, tiles.number) == (4, 53)
    assert tiles.positions_in((0, 52)) == 4 + 3
    assert tiles.positions_in((0, 51)) == 8
    assert tiles.positions_in(()) == 0
    assert tiles.positions_in(torch.ones(53, dtype=torch.bool)) == 211
