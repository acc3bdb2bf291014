"""A tensor in place of a mask: what scaled_dot_product_attention makes of it, or the words for what it may be."""

import itertools

import pytest
import torch

import maskloom as loom
from maskloom.masks.in_place import Sizes, mask_of_table

B, H, Q, K = 2, 3, 5, 7
SHAPES = [(Q, K), (B, Q, K), (1, Q, K), *itertools.product((1, B), (1, H), (1, Q), (1, K))]


def table_of(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.6


def meant(table):
    """By torch's broadcasting, but that three dimensions are (B, Q, K)."""
    return (table[:, None] if table.ndim == 3 else table).expand(B, H, Q, K)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    table = table_of(shape)
    mask = mask_of_table(table, Sizes(B, H, Q, K))
    assert torch.equal(mask.dense(Q, K, batch=B, heads=H), meant(table))
    blocks = loom.block_mask(table, Q, K, block_size=(2, 3))
    smallest = [1 if size == 1 or table.ndim < 4 - axis else size for axis, size in enumerate((B, H))]
    if table.ndim == 4:
        smallest = list(table.shape[:2])
    elif table.ndim == 3:
        smallest = [table.shape[0], 1]
    assert list(blocks.kv_indices.shape[:2]) == smallest  # what is the same for all is held once


def test_one_query():
    table = table_of((B, 1, 1, K))
    assert torch.equal(mask_of_table(table, Sizes(B, H, 1, K)).dense(1, K), table)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((B, K), r"got \(2, 7\)\. A flag for each position, .*padding\(t\), or key_padding\(t\) .* real\(t\)"),
        ((B, Q), r"got \(2, 5\)\. A flag for each position"),
        ((1, K), r"got \(1, 7\)\. A flag for each position"),
        ((K,), r"got \(7,\)\. A flag for each position"),
        ((B * H, Q, K), r"got \(6, 5, 7\)\. .* table\.view\(2, 3, 5, 7\)"),
        ((H, Q, K), r"got \(3, 5, 7\)\. One table for each head goes in as table\[None\]"),
        ((11, 13), r"got \(11, 13\)\. Of a larger table .* table\[\.\.\., :5, :7\]"),
        ((1, 1, Q, 13), r"table\[\.\.\., :5, :7\]"),
        ((K, Q), r"B and H of 1 for all; here B = 2, H = 3, Q = 5, K = 7; got \(7, 5\)$"),
        ((1, B, H, Q, K), r"got \(1, 2, 3, 5, 7\)$"),
        ((), r"got \(\)$"),
        ((0, K), r"got \(0, 7\)$"),
    ],
)
def test_words(shape, words):
    query, key = torch.zeros(B, H, Q, 8), torch.zeros(B, H, K, 8)
    table = torch.ones(shape, dtype=torch.bool)
    for call in (loom.attend, loom.explain, loom.reference):
        with pytest.raises(ValueError, match=words):
            call(query, key, key, table)
    with pytest.raises(ValueError, match=words):
        loom.create_block_mask(table, B, H, Q, K)


def test_a_table_without_values():
    with pytest.raises(ValueError, match="the mask is on the meta device"):
        loom.block_mask(torch.ones(Q, K, dtype=torch.bool, device="meta"), Q, K)


def test_offsets_are_for_masks():
    with pytest.raises(ValueError, match=r"offsets are for from_dense\(tensor\)"):
        loom.block_mask(table_of((Q, K)), Q, K, q_offset=1)


def test_tables_of_each_head_in_one_axis():
    mask = loom.masks.from_dense(table_of((B * H, Q, K)))
    with pytest.raises(ValueError, match=r"table for 6 batch rows; .* table\.view\(2, 3, Q, K\)"):
        loom.block_mask(mask, Q, K, batch=B, heads=H)


def test_pictures():
    table = table_of((Q, K))
    mask = loom.masks.from_dense(table)
    assert "from_dense(bool[5, 7])" in loom.show.mask(table, Q, K)._suptitle.get_text()
    query, key = torch.zeros(1, 1, Q, 8), torch.zeros(1, 1, K, 8)
    drawn = [loom.show.attention(query, key, given) for given in (table, mask)]
    first, second = (figure.axes[0].images[0].get_array() for figure in drawn)
    assert (first.mask == second.mask).all()
    assert str(loom.blocks.explain_block_mask(table, Q, K)) == str(loom.blocks.explain_block_mask(mask, Q, K))
