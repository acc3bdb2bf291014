"""The share of visible pairs in cells: equal to counting the table, and never 0 where a pair is visible."""

import numpy as np
import pytest
import torch

import maskloom as loom
from maskloom.blocks.dense import dense_of
from maskloom.show.measure import shares
from maskloom.show.measure.shares import at, cells_of, shares_of
from maskloom.show.measure.source import Between, source_of

MASKS = {
    "causal & lengths": loom.causal & loom.lengths([29, 17, 3]),
    "window | sinks": loom.window(back=2) | loom.sinks(1),
    "padding": loom.padding(torch.rand(3, 41, generator=torch.Generator().manual_seed(1)) < 0.4) & loom.causal,
    "documents": loom.documents(offsets=[0, 11, 13, 41]),
    "dilated": loom.masks.dilated(back=23, step=5),
    "by head": loom.as_mask(lambda b, h, q, k: (q - k) % (h + 2) == 0),
    "nothing": loom.nothing,
    "everything": loom.everything,
}
Q, K = 31, 41
SPANS = [(range(Q), range(K)), (range(3, 29), range(7, 40)), (range(30, 31), range(5))]
BLOCKS = [(1, 1), (3, 5), (7, 2), (64, 64)]


def counted(table, queries, keys, block):
    """The share of each cell, by counting."""
    part = table[queries.start : queries.stop, keys.start : keys.stop].double()
    rows = [[piece.mean() for piece in band.split(block[1], 1)] for band in part.split(block[0], 0)]
    return torch.tensor([[float(one) for one in row] for row in rows], dtype=torch.float64)


def check(source, table, row, head, *, exact=True):
    for queries, keys in SPANS:
        for block in BLOCKS:
            found = shares_of(source, at(cells_of(queries, keys, block), row, head))
            truth = counted(table, queries, keys, block)
            assert found.share.shape == truth.shape
            if exact:
                torch.testing.assert_close(found.share, truth, rtol=0, atol=1e-12)
                assert found.is_exact and found.visible == round(
                    float(table[queries.start : queries.stop, keys.start : keys.stop].sum())
                )
            else:
                assert (found.share[truth > 0] > 0).all() and (found.share[truth < 1] < 1).all()
                assert not (found.undecided & (truth == 1)).any()


@pytest.mark.parametrize("name", MASKS)
def test_shares_are_those_of_the_table(name):
    batch, heads = (3 if name in ("causal & lengths", "padding") else 1), (3 if name == "by head" else 1)
    table = MASKS[name].dense(Q, K, batch=batch, heads=heads)
    check(source_of(MASKS[name], Q, K), table[-1, -1], batch - 1, heads - 1)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("block_size", [(4, 6), (5, 3)])
def test_shares_of_block_masks_are_those_of_what_they_mean(name, block_size):
    batch, heads = (3 if name in ("causal & lengths", "padding") else 1), (3 if name == "by head" else 1)
    blocks = loom.block_mask(MASKS[name], Q, K, batch=batch, heads=heads, block_size=block_size)
    check(source_of(blocks), dense_of(blocks, batch, heads)[-1, -1], batch - 1, heads - 1)


def test_of_a_block_mask_whose_mask_mod_says_more_than_its_tables():
    blocks = loom.block_mask(loom.causal & loom.lengths([29, 17, 3]), Q, K, block_size=(4, 6))
    blocks.mask_mod = loom.everything
    check(source_of(blocks), dense_of(blocks, 3, 1)[1, 0], 1, 0)


@pytest.mark.parametrize("name", MASKS)
def test_an_estimate_is_0_or_1_only_where_that_is_certain(name, monkeypatch):
    monkeypatch.setattr(shares, "COUNTED", 16)
    batch, heads = (3 if name in ("causal & lengths", "padding") else 1), (3 if name == "by head" else 1)
    table = MASKS[name].dense(Q, K, batch=batch, heads=heads)
    check(source_of(MASKS[name], Q, K), table[-1, -1], batch - 1, heads - 1, exact=False)


def test_estimates_are_near():
    mask = loom.causal | loom.as_mask(lambda b, h, q, k: (q * 7 + k * 13) % 10 < 3)
    found = shares_of(source_of(mask, 20000), cells_of(range(20000), range(20000)))
    assert not found.is_exact
    np.testing.assert_allclose(found.share[0, -1], 0.3, atol=0.15)
    np.testing.assert_allclose(found.share[:100, 200:].mean(), 0.3, atol=0.02)


@pytest.mark.parametrize("hides", [False, True])
def test_two_masks(hides):
    first, second = MASKS["causal & lengths"], loom.block_mask(MASKS["window | sinks"], Q, K, block_size=(4, 6))
    one, two = first.dense(Q, K)[1, 0], dense_of(second, 1, 1)[0, 0]
    check(Between(source_of(first, Q, K), source_of(second), hides=hides), one & (two ^ hides), 1, 0)


@pytest.mark.parametrize("period", [8, 64])
@pytest.mark.parametrize("first", [0, 5, -1])
def test_estimates_are_not_drawn_to_the_edges_of_cells(period, first):
    """Cells are as wide as powers of two, and so are many periods."""
    for mask in (lambda b, h, q, k: k % period == first % period, lambda b, h, q, k: q % period == first % period):
        found = shares_of(
            source_of(loom.as_mask(mask), 20000, 20000), cells_of(range(20000), range(20000)), counted=1 << 20
        )
        assert not found.is_exact
        assert abs(found.share.mean() - 1 / period) < 0.2 / period
