"""The same masks by attention-gym, Hugging Face transformers and torch: equal, element by element."""

import attn_gym.masks as gym
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right as torch_causal_lower_right
from torch.nn.attention.flex_attention import create_mask
from transformers import masking_utils as hugging_face

import maskloom as loom
from maskloom.masks.blockwise import chunked
from maskloom.masks.conversations import shared_prefix
from maskloom.masks.position import global_tokens
from maskloom.masks.relative import (
    causal_lower_right,
    dilated,
    window_both_ways,
    window_counting_itself,
    window_reaching_back,
)
from maskloom.masks.segments import documents, within
from tests.catalog.sequences import GLOBAL, POSITION_IDS_BY_ROW

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


def hugging_face_dense(mask_function, q_len=Q_LEN, q_offset=0, **options):
    return hugging_face.sdpa_mask(
        BATCH,
        q_len,
        KV_LEN,
        q_offset=q_offset,
        mask_function=mask_function,
        allow_is_causal_skip=False,
        **options,
    )


NO_PADDING = torch.zeros(BATCH, dtype=torch.int64)
LEFT_PADDING = torch.tensor([3, 0, 5])


@pytest.mark.parametrize("q_offset", [0, 4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (loom.causal, hugging_face.causal_mask_function),
        # their sliding_window counts the own key: W keys
        (window_counting_itself(4), hugging_face.sliding_window_causal_mask_function(4)),
        # but between bidirectional positions it is each side: 2W + 1 keys
        (window_both_ways(4), hugging_face.sliding_window_bidirectional_mask_function(4)),
        (loom.causal & chunked(5), hugging_face.chunked_causal_mask_function(5, NO_PADDING)),
        # chunks are counted from the first real token of each row
        (
            loom.shifted(loom.causal & chunked(5), q_offset=-LEFT_PADDING, kv_offset=-LEFT_PADDING),
            hugging_face.chunked_causal_mask_function(5, LEFT_PADDING),
        ),
    ],
)
def test_transformers(ours, theirs, q_offset):
    dense = ours.dense(Q_LEN, KV_LEN, q_offset=q_offset)
    assert dense.expand(BATCH, -1, -1, -1).equal(hugging_face_dense(theirs, q_offset=q_offset))


@pytest.mark.parametrize("q_offset", [0, 4])
def test_transformers_hides_padding_as_keys_alone(q_offset):
    theirs = hugging_face_dense(hugging_face.causal_mask_function, q_offset=q_offset, attention_mask=REAL)
    keys_alone = loom.causal & loom.key_padding(~REAL)
    assert keys_alone.dense(Q_LEN, KV_LEN, q_offset=q_offset).equal(theirs)
    both_sides = (loom.causal & loom.real(REAL)).dense(Q_LEN, KV_LEN, q_offset=q_offset)
    is_real = REAL[:, None, q_offset : q_offset + Q_LEN, None]
    assert both_sides.equal(theirs & is_real)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (loom.causal, hugging_face.causal_mask_function),
        (window_counting_itself(3), hugging_face.sliding_window_causal_mask_function(3)),
        (loom.causal & chunked(3), hugging_face.chunked_causal_mask_function(3, NO_PADDING)),
    ],
)
@pytest.mark.parametrize("begin", [0, 2])
def test_transformers_packed(ours, theirs, begin):
    position_ids = POSITION_IDS_BY_ROW + begin
    packed = hugging_face.find_packed_sequence_indices(position_ids)
    theirs = hugging_face.packed_sequence_compatibility_function(theirs, position_ids, packed)
    ours = within(documents(position_ids=position_ids), ours)
    assert ours.dense(KV_LEN, KV_LEN).equal(hugging_face_dense(theirs, q_len=KV_LEN))


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs")
@pytest.mark.parametrize(("q_len", "kv_len"), [(13, 17), (17, 13), (1, 7), (5, 5)])
def test_torch_causal_lower_right(q_len, kv_len):
    theirs = torch_causal_lower_right(q_len, kv_len)._materialize()
    assert causal_lower_right(q_len, kv_len).dense(q_len, kv_len)[0, 0].equal(theirs)
