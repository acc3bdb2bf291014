"""Bands: together they are all that is visible, each is small, and what is hidden around them is in none."""

import math

import pytest
import torch

import maskloom as loom
from maskloom.attention.sliced import bands
from maskloom.attention.sliced.bands import Sizes, bands_of, query_heads

SIZES = Sizes(3, 2, 3, 29, 37)
GENERATOR = torch.Generator().manual_seed(0)
TABLES = {
    "none": torch.zeros(1, 1, 29, 37, dtype=torch.bool),
    "all": torch.ones(1, 1, 29, 37, dtype=torch.bool),
    "causal": loom.causal.dense(29, 37),
    "window": loom.window(back=3).dense(29, 37),
    "by row": (loom.causal & loom.lengths([29, 0, 11], [37, 5, 11])).dense(29, 37),
    "by row and head": torch.rand(3, 6, 29, 37, generator=GENERATOR) < 0.05,
}


@pytest.mark.parametrize("most", [1, 50, 700, 4000, 2**20])
@pytest.mark.parametrize("name", TABLES)
def test_bands_are_what_is_visible(name, most, monkeypatch):
    monkeypatch.setattr(bands, "MOST", most)
    table = TABLES[name]
    left = table.expand(3, 6, 29, 37).clone()
    for band in bands_of(SIZES, table):
        there = band.batch, query_heads(band.heads, SIZES.group), band.queries, band.keys
        part = table.expand(3, 6, 29, 37)[there]
        assert part.numel() <= max(most, SIZES.group * SIZES.kv_len)
        assert part[..., 0].any() and part[..., -1].any()
        shown = part.clone()
        if band.hidden is not None:
            shown[..., band.hidden] = True
            assert not part[..., band.hidden][..., 0].all() and not part[..., band.hidden][..., -1].all()
        assert shown.all()
        left[there] = False
    assert not left.any()


def test_without_a_mask_all_is_visible(monkeypatch):
    monkeypatch.setattr(bands, "MOST", 700)
    assert sum(map(scores_of, bands_of(SIZES, None))) == 3 * 6 * 29 * 37
    assert all(band.hidden is None for band in bands_of(SIZES, None))


def scores_of(band):
    rows, heads, queries, keys = (part.stop - part.start for part in band[:4])
    return rows * heads * SIZES.group * queries * keys


def test_a_block_mask_is_read_by_tiles():
    mask = loom.causal & loom.window(back=9)
    blocks = loom.block_mask(mask, 256, 256, block_size=32)
    sizes = Sizes(1, 1, 1, 256, 256)
    for band in bands_of(sizes, blocks, queries=32):
        first = band.queries.start
        assert band.keys == slice(max(0, first - 32), first + 32) and band.hidden is not None
    full = loom.block_mask(loom.everything, 256, 256, block_size=32)
    assert all(band.hidden is None for band in bands_of(sizes, full))


def test_the_upper_triangle_is_not_computed():
    sizes = Sizes(4, 4, 1, 1024, 1024)
    causal = bands_of(sizes, loom.causal.dense(1024, 1024))
    lengths = [(band.queries.stop - band.queries.start) * (band.keys.stop - band.keys.start) for band in causal]
    assert sum(lengths) == 1024 * (1024 + 64) // 2
    assert len(causal) == 16 and max(map(math.prod, [(16, most) for most in lengths])) == bands.MOST
