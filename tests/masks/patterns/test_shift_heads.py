"""Masks of some of the heads: `shifted` with an h_offset, as a tensor-parallel rank sees a mask."""

import pickle

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.testing import check_mask

HEADS, FIRST, HELD, Q, K = 7, 4, 3, 13, 17
WHOLE = loom.masks.per_head([loom.window(back=reach) for reach in range(HEADS)])
PART = loom.masks.shifted(WHOLE, h_offset=FIRST)
TABLES = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "full_q_num_blocks")


@pytest.mark.parametrize("offset", [FIRST, torch.tensor(FIRST), torch.tensor(FIRST, dtype=torch.int32)])
def test_head_h_is_head_h_plus_the_offset(offset):
    part = loom.masks.shifted(WHOLE, q_offset=2, kv_offset=1, h_offset=offset)
    assert torch.equal(part.dense(Q, K, heads=HELD), WHOLE.dense(Q + 2, K + 1)[:, FIRST:, 2:, 1:])


@pytest.mark.parametrize("offset", [FIRST, torch.tensor(FIRST)])
def test_block_masks_have_the_tables_that_torch_makes(offset):
    part = loom.masks.shifted(WHOLE & loom.lengths([5, 17]), h_offset=offset)
    blocks = loom.block_mask(part, Q, K, heads=HELD, block_size=4)
    expected = torch_create_block_mask(part, 2, HELD, Q, K, device="cpu", BLOCK_SIZE=4)
    for name in TABLES:
        assert torch.equal(getattr(blocks, name), getattr(expected, name)), name


def test_attend_knows_how_many_heads_there_are():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, HEADS, length, 8, generator=generator) for length in (Q, K, K))
    whole = loom.attend(query, key, value, WHOLE)
    held = [tensor[:, FIRST:] for tensor in (query, key, value)]
    torch.testing.assert_close(loom.attend(*held, PART), whole[:, FIRST:])


def test_the_first_rank_holds_some_of_the_heads_too():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, HEADS, length, 8, generator=generator) for length in (Q, K, K))
    bend = loom.scores.alibi(HEADS)
    whole = loom.attend(query, key, value, WHOLE, score_mod=bend)
    held = [tensor[:, :HELD] for tensor in (query, key, value)]
    blocks = loom.block_mask(loom.masks.shifted(WHOLE, h_offset=0), Q, K, heads=HELD, block_size=4)
    assert blocks.shape[1] == HELD
    for mask in (loom.masks.shifted(WHOLE, h_offset=0), blocks):
        out = loom.attend(*held, mask, score_mod=loom.scores.shifted_score(bend, h_offset=0))
        torch.testing.assert_close(out, whole[:, :HELD])


def test_every_law():
    check_mask(PART, q_len=Q, kv_len=K, heads=HELD)


def test_it_is_a_value():
    assert repr(loom.masks.shifted(loom.causal, h_offset=4)) == "shifted(causal, q_offset=0, kv_offset=0, h_offset=4)"
    assert repr(loom.masks.shifted(loom.causal, h_offset=torch.tensor(4))).endswith("h_offset=int64[])")
    assert loom.masks.shifted(WHOLE, h_offset=2) != PART == pickle.loads(pickle.dumps(PART))
    assert loom.masks.shifted(WHOLE, h_offset=None) is WHOLE
    assert repr(loom.masks.shifted(loom.causal, h_offset=0)).endswith(", h_offset=0)")
    assert loom.parse("shifted(causal, h_offset=2)") == loom.masks.shifted(loom.causal, h_offset=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loom.masks.shifted(WHOLE, h_offset=-1), ValueError, "h_offset is a head, at least 0; got -1"),
        (lambda: loom.masks.shifted(WHOLE, h_offset=1.5), TypeError, "h_offset is a head, an int or int32 .*; got 1.5"),
        (lambda: loom.masks.shifted(WHOLE, h_offset=[1, 2]), TypeError, r"h_offset is a head, .*; got \[1, 2\]"),
        (
            lambda: loom.masks.shifted(WHOLE, h_offset=torch.tensor([1, 2])),
            ValueError,
            r"h_offset is one head for all batch rows; got shape \(2,\)",
        ),
        (lambda: loom.block_mask(PART, Q, K), ValueError, "no table says how many there are; pass heads="),
        (lambda: loom.block_mask(PART, Q, K, heads=5), IndexError, "index 7 is out of bounds .* size 7"),
    ],
)
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()
