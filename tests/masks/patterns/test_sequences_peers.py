"""The same masks by attention-gym, Hugging Face transformers and torch: equal, element by element."""

import attn_gym.masks as gym
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right as torch_causal_lower_right
from torch.nn.attention.flex_attention import create_mask

import maskloom as loom
from maskloom.masks.patterns.blockwise import chunked
from maskloom.masks.patterns.conversations import shared_prefix
from maskloom.masks.patterns.packed.segments import documents
from maskloom.masks.patterns.packed.within import within
from maskloom.masks.patterns.position import global_tokens
from maskloom.masks.patterns.relative import (
    causal_lower_right,
    dilated,
    window_both_ways,
    window_counting_itself,
    window_reaching_back,
)
from tests.catalog.sequences import GLOBAL, POSITION_IDS_BY_ROW
from tests.masks.hugging_face import REMAPS_PACKED, dense_of, dense_of_a_layer, masking_utils

BATCH, Q_LEN, KV_LEN = 3, 13, 17
OFFSETS = torch.tensor([0, 4, 11, 17])
REAL = torch.stack([torch.arange(17) >= 3, torch.arange(17) < 11, torch.ones(17).bool()])


# -- attention-gym 0.0.17 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (loom.causal, gym.causal_mask),
        # their window_size is the keys before the own one: W + 1 keys
        (window_reaching_back(4), gym.generate_sliding_window(4)),
        # their window_size is the keys on each side: 2W + 1 keys, or every dilation-th of them
        (dilated(back=7, ahead=7, step=3), gym.generate_dilated_sliding_window(7, 3)),
        (window_both_ways(2) | global_tokens(GLOBAL[0]), gym.generate_global_sliding_window(2, GLOBAL[0])),
        (loom.causal | loom.prefix(5), gym.generate_prefix_lm_mask(5)),
        (within(documents(offsets=OFFSETS), loom.causal), gym.generate_doc_mask_mod(gym.causal_mask, OFFSETS)),
        (documents(offsets=OFFSETS) & loom.causal, gym.generate_packed_causal_doc_mask_mod(OFFSETS)),
        (
            within(documents(offsets=OFFSETS), chunked(3)),
            gym.generate_doc_mask_mod(lambda b, h, q_idx, kv_idx: q_idx // 3 == kv_idx // 3, OFFSETS),
        ),
        (
            shared_prefix(4, [7, 6]),
            gym.generate_shared_prefix_mask_mod(OFFSETS, torch.tensor([0, 0, 0])),
        ),
        (
            documents([0] * 11 + [1] * 6) & shared_prefix(ids=[0] * 4 + [1] * 7 + [0] * 2 + [1] * 4),
            gym.generate_shared_prefix_mask_mod(torch.tensor([0, 4, 11, 13, 17]), torch.tensor([0, 0, 2, 2])),
        ),
    ],
)
def test_attention_gym(ours, theirs):
    assert ours.dense(KV_LEN, KV_LEN).equal(create_mask(theirs, 1, 1, KV_LEN, KV_LEN, device="cpu"))


# -- transformers ------------------------------------------------------------------------------------------------------


NO_PADDING = torch.zeros(BATCH, dtype=torch.int64)
LEFT_PADDING = torch.tensor([3, 0, 5])


@pytest.mark.parametrize("q_offset", [0, 4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (loom.causal, masking_utils.causal_mask_function),
        # their sliding_window counts the own key: W keys
        (window_counting_itself(4), masking_utils.sliding_window_causal_mask_function(4)),
        (loom.causal & chunked(5), masking_utils.chunked_causal_mask_function(5, NO_PADDING)),
        # chunks are counted from the first real token of each row
        (
            loom.masks.shifted(loom.causal & chunked(5), q_offset=-LEFT_PADDING, kv_offset=-LEFT_PADDING),
            masking_utils.chunked_causal_mask_function(5, LEFT_PADDING),
        ),
    ],
)
def test_transformers(ours, theirs, q_offset):
    dense = ours.dense(Q_LEN, KV_LEN, q_offset=q_offset)
    assert dense.expand(BATCH, -1, -1, -1).equal(dense_of(theirs, BATCH, Q_LEN, KV_LEN, q_offset=q_offset))


@pytest.mark.skipif(
    not hasattr(masking_utils, "sliding_window_bidirectional_mask_function"), reason="newer transformers"
)
@pytest.mark.parametrize("q_offset", [0, 4])
def test_transformers_window_of_both_sides(q_offset):
    # between bidirectional positions their sliding_window is each side: 2W + 1 keys
    theirs = dense_of(
        masking_utils.sliding_window_bidirectional_mask_function(4), BATCH, Q_LEN, KV_LEN, q_offset=q_offset
    )
    dense = window_both_ways(4).dense(Q_LEN, KV_LEN, q_offset=q_offset)
    assert dense.expand(BATCH, -1, -1, -1).equal(theirs)


@pytest.mark.parametrize("q_offset", [0, 4])
def test_transformers_hides_padding_as_keys_alone(q_offset):
    causal = masking_utils.causal_mask_function
    theirs = dense_of(causal, BATCH, Q_LEN, KV_LEN, q_offset=q_offset, attention_mask=REAL)
    keys_alone = loom.causal & loom.key_padding(~REAL)
    assert keys_alone.dense(Q_LEN, KV_LEN, q_offset=q_offset).equal(theirs)
    both_sides = (loom.causal & loom.real(REAL)).dense(Q_LEN, KV_LEN, q_offset=q_offset)
    is_real = REAL[:, None, q_offset : q_offset + Q_LEN, None]
    assert both_sides.equal(theirs & is_real)


@pytest.mark.parametrize(
    ("ours", "layer"),
    [
        (loom.causal, {"kind": "full"}),
        (window_counting_itself(3), {"kind": "sliding", "sliding_window": 3}),
        (loom.causal & chunked(3), {"kind": "chunked", "attention_chunk_size": 3}),
    ],
)
@pytest.mark.parametrize("begin", [0, 2])
def test_transformers_packed(ours, layer, begin):
    position_ids = POSITION_IDS_BY_ROW + begin
    packed = documents(position_ids=position_ids)
    # older ones count chunks along the whole row, not inside each document
    ours = within(packed, ours) if REMAPS_PACKED else packed & ours
    assert ours.dense(KV_LEN, KV_LEN).equal(dense_of_a_layer(position_ids, **layer))


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs")
@pytest.mark.parametrize(("q_len", "kv_len"), [(13, 17), (17, 13), (1, 7), (5, 5)])
def test_torch_causal_lower_right(q_len, kv_len):
    theirs = torch_causal_lower_right(q_len, kv_len)._materialize()
    assert causal_lower_right(q_len, kv_len).dense(q_len, kv_len)[0, 0].equal(theirs)
