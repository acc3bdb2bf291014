"""A mask says one thing, before and after writes into the tensors that it was made from."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import maskloom as loom
from maskloom.attention.backends.varlen import packed
from maskloom.batches.documents import ids_from_offsets
from maskloom.testing import check_writes
from tests.catalog.sources import SOURCES, K, Q

FOLLOWED = {
    "lengths", "lengths_cross", "real", "real_cross", "padding", "padding_cross", "key_padding", "prefix", "key_range",
    "query_range", "global_tokens", "documents", "documents_by_row", "shared_prefix_of_ids", "shifted", "from_dense",
    "from_dense_by_head", "from_blocks", "per_head", "per_batch", "transposed", "repeat_heads",
}  # fmt: skip
SOME_FOLLOWED = {"within_and_prefix", "tree_and_prefix", "tree_by_prefixes", "two_tables"}


@pytest.mark.parametrize("name", SOURCES)
def test_masks_are_consistent_after_writes(name):
    make, before, after = SOURCES[name]
    check_writes(lambda *tensors: loom.causal & make(*tensors), before, after, q_len=Q, kv_len=K)


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_mask_holds_as_it_is_is_followed_and_what_it_derives_from_is_copied(name):
    make, before, after = SOURCES[name]
    tensors = [tensor.clone() for tensor in before]
    mask = make(*tensors)
    for tensor, new in zip(tensors, after, strict=True):
        tensor.copy_(new)
    found = mask.dense(Q, K)
    assert torch.equal(found, make(*after).dense(Q, K)) == (name in FOLLOWED)
    assert torch.equal(found, make(*before).dense(Q, K)) == (name not in FOLLOWED | SOME_FOLLOWED)


@settings(max_examples=8)
@given(st.lists(st.sampled_from(sorted(SOURCES)), min_size=2, max_size=3), st.sampled_from("&|^"), st.booleans())
def test_combinations_are_consistent_after_writes(names, symbol, inverted):
    rows = [SOURCES[name] for name in names]
    counts = [len(before) for _, before, _ in rows]

    def make(*tensors):
        given = iter(tensors)
        masks = [row[0](*(next(given) for _ in range(number))) for row, number in zip(rows, counts, strict=True)]
        joined = {"&": loom.and_masks, "|": loom.or_masks, "^": loom.masks.algebra.xor_masks}[symbol](*masks)
        return loom.causal & (~joined if inverted else joined)

    check_writes(
        make,
        [tensor for _, before, _ in rows for tensor in before],
        [tensor for _, _, after in rows for tensor in after],
        q_len=Q,
        kv_len=K,
    )


def test_what_torchs_packed_attention_gets_is_what_dense_says():
    offsets = torch.tensor([0, 3, 8], dtype=torch.int32)
    mask = loom.causal & loom.documents(offsets=offsets, length=11)
    offsets.copy_(torch.tensor([0, 6, 8]))
    found = packed(mask)
    assert torch.equal(ids_from_offsets(found.documents.offsets, 11), found.documents.ids)
    assert torch.equal(
        loom.documents(found.documents.ids).dense(11, 11) & loom.causal.dense(11, 11), mask.dense(11, 11)
    )


def test_a_law_that_is_broken_is_found():
    def mixed(lens):
        once = lens.clone()
        return loom.prefix(lens) & loom.lengths(once)

    with pytest.raises(AssertionError, match="a mask follows what is written into its tensor 0, or does not see it"):
        check_writes(mixed, [torch.tensor([5, 0, 17])], [torch.tensor([11, 7, 2])])
