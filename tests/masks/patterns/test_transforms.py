"""Masks for one key head that several query heads share, wherever a mask is taken: the truth is a mask for each query head."""

import pytest
import torch

import maskloom as loom
from tests.blocks.random_masks import differing

TIMES, Q, K = 5, 7, 11
LENS = torch.tensor([7, 3, 2])
NEAR = loom.window(back=2, ahead=1)
SHARED = {
    "one mask": (loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES), NEAR),
    "a table of one head": (
        loom.masks.repeat_heads(loom.masks.from_dense(NEAR.dense(Q, K)[0, 0].view(1, 1, Q, K).expand(3, 1, Q, K)), TIMES, heads=1),
        NEAR,
    ),
    "a table by row": (loom.masks.repeat_heads(loom.masks.per_head([loom.lengths(LENS)]), TIMES), loom.lengths(LENS)),
    "with others": (loom.causal & loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES) | loom.sinks(1), loom.causal & NEAR | loom.sinks(1)),
    "twice": (loom.masks.repeat_heads(loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES), 1), NEAR),
    "transposed": (loom.masks.transposed(loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES)), loom.masks.transposed(NEAR)),
    "not": (~loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES), ~NEAR),
    "by row": (loom.masks.per_batch([loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES)] * 3), NEAR),
    "a rank's head of many": (
        loom.masks.repeat_heads(loom.masks.shifted(loom.masks.per_head([loom.causal, NEAR, loom.sinks(1)]), h_offset=1), TIMES, heads=1),
        NEAR,
    ),
    "a rank's part of the query heads": (
        loom.masks.shifted(loom.masks.repeat_heads(loom.masks.per_head([NEAR]), 2 * TIMES), h_offset=TIMES),
        NEAR,
    ),
    "shifted by a tensor": (
        loom.masks.shifted(loom.masks.repeat_heads(loom.masks.per_head([NEAR]), TIMES), q_offset=torch.tensor(2)),
        loom.masks.shifted(NEAR, q_offset=torch.tensor(2)),
    ),
}  # fmt: skip


def for_all_heads(mask):
    return loom.masks.per_head([mask] * TIMES)


@pytest.mark.parametrize("name", SHARED)
def test_heads_that_share_a_mask_see_what_each_sees(name):
    mask, each = SHARED[name]
    truth = for_all_heads(each).dense(Q, K, batch=3)
    assert torch.equal(mask.dense(Q, K, batch=3, heads=TIMES).expand_as(truth), truth)


@pytest.mark.parametrize("name", SHARED)
def test_tables_of_heads_that_share_a_mask(name):
    mask, each = SHARED[name]
    expected = loom.create_block_mask(for_all_heads(each), 3, TIMES, Q, K, device="cpu", BLOCK_SIZE=2)
    for build in (
        lambda: loom.create_block_mask(mask, 3, TIMES, Q, K, device="cpu", BLOCK_SIZE=2),
        lambda: loom.block_mask(mask, Q, K, batch=3, heads=TIMES, device="cpu", block_size=2),
    ):
        assert differing(build(), expected) == []


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", SHARED)
def test_attention_with_one_key_head(name, backend):
    mask, each = SHARED[name]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, length, 8, generator=generator) for heads, length in ((TIMES, Q), (1, K), (1, K))
    )
    expected = loom.attend(query, *(tensor.expand(3, TIMES, K, 8) for tensor in (key, value)), each, backend=backend)
    blocks = loom.block_mask(mask, Q, K, batch=3, heads=TIMES, device="cpu")
    for given in (mask, blocks):
        torch.testing.assert_close(loom.attend(query, key, value, given, backend=backend), expected)


@pytest.mark.parametrize("index", ["b", "h"])
def test_one_table_stands_for_all_where_the_answer_is_the_same(index):
    """A table by row, or by head, that chooses from one thing: 1 is as good as the number of its entries."""
    which, one = torch.zeros(5, dtype=torch.int64), torch.tensor([3])
    mask = loom.as_mask(lambda b, h, q_idx, kv_idx: kv_idx < one[which[b if index == "b" else h]])
    argument = {"b": "batch", "h": "heads"}[index]
    for count in (None, 1, 5):
        assert torch.equal(mask.dense(2, 7, **{argument: count}).amax((0, 1)), mask.dense(2, 7)[0, 0])
        blocks = loom.block_mask(mask, 2, 7, device="cpu", block_size=2, **{argument: count})
        expected = loom.masks.key_range(0, 3)
        assert differing(blocks, loom.block_mask(expected, 2, 7, device="cpu", block_size=2, **{argument: count})) == []
    with pytest.raises(ValueError, match="is 2, and the mask reads a table for 5"):
        mask.dense(2, 7, **{argument: 2})
