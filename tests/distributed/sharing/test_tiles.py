"""Tiles of the whole mask: their counts are those of the dense table."""

import math

import pytest
import torch

import maskloom as loom
from maskloom.blocks import open_tiles
from maskloom.distributed.sharing import tiles
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
    found = tiles_of(mask, length, 3, None, 2)
    dense = mask.dense(length, length, heads=2 if name == "by head" else None)
    padded = torch.nn.functional.pad(dense, (0, found.number * found.unit - length) * 2)
    seen = padded.unflatten(3, (-1, found.unit)).unflatten(2, (-1, found.unit)).any(5).any(3)
    assert found.counts.expand(seen.shape[1], -1).tolist() == seen.sum((0, 3)).tolist()
    assert found.needed.tolist() == seen.any(0).any(0).tolist()
    assert found.batch == (3 if name == "by row" else None)


PACKED = loom.documents(offsets=[0, 150, 700, 1000, 1500, 1990], length=2048)


SIGNS = torch.arange(2048) % 2 * 2 - 1


def everywhere(b, h, q_idx, kv_idx):
    """Of which intervals do not say that it is everything."""
    return SIGNS[q_idx] * SIGNS[kv_idx] != 0


@pytest.mark.parametrize(
    "mask", [loom.causal & PACKED, loom.causal & loom.lengths([2048, 700]), loom.as_mask(everywhere)]
)
def test_few_elements_are_evaluated(mask, monkeypatch):
    """Padding at the end of a row leaves no row of tiles open; of an open tile one visible element is enough."""
    sides = []
    elements = open_tiles._elements
    monkeypatch.setattr(
        open_tiles, "_elements", lambda grid, some, side: sides.append(side) or elements(grid, some, side)
    )
    found = tiles_of(mask, 2048, 2, None, 1)
    assert found.unit == 64
    assert max(sides, default=0) < found.unit


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("most", [1, 1000])
def test_tiles_of_many_rows_and_heads_are_looked_at_in_bands(monkeypatch, name, most):
    mask, at_once = loom.as_mask(MASKS[name]), []
    whole = tiles_of(mask, 211, 3, None, 2)
    classify = tiles.classify
    monkeypatch.setattr(
        tiles, "classify", lambda program, grid, **how: at_once.append(grid.shape) or classify(program, grid, **how)
    )
    monkeypatch.setattr(tiles, "_AT_ONCE", most)
    found = tiles_of(mask, 211, 3, None, 2)
    assert torch.equal(found.counts, whole.counts)
    assert torch.equal(found.needed, whole.needed)
    assert len(at_once) > 2
    assert all(math.prod(shape) <= most or shape[2] == 1 for shape in at_once)


def test_a_mask_of_no_batch_rows_visits_nothing():
    found = tiles_of(loom.lengths(torch.zeros(0, dtype=torch.int64)), 37, 3, None, 2)
    assert (found.batch, found.counts.tolist(), bool(found.needed.any())) == (0, [[0] * found.number], False)


def test_a_rank_has_sixteen_tiles_or_more_where_there_are_positions():
    sizes = {length: tiles_of(loom.causal, length, 2, None, 1).unit for length in (5, 64, 1009, 4096, 65536, 1 << 20)}
    assert sizes == {5: 1, 64: 2, 1009: 16, 4096: 128, 65536: 128, 1 << 20: 512}


def test_positions_in_tiles_are_counted_where_the_last_is_cut():
    found = tiles_of(loom.causal, 211, 3, None, 1)
    assert (found.unit, found.number) == (4, 53)
    assert found.positions_in((0, 52)) == 4 + 3
    assert found.positions_in((0, 51)) == 8
    assert found.positions_in(()) == 0
    assert found.positions_in(torch.ones(53, dtype=torch.bool)) == 211
