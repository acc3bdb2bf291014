"""Every mask of attention-gym: the tables of torch, and which of them fall back to elements."""

from typing import Any

import attn_gym.masks as gym
import pytest
import torch
from attn_gym.masks.vsa import generate_vsa_padding_mask_mod
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.blocks.inspect import explain_block_mask
from tests.blocks.random_masks import differing

OFFSETS = torch.tensor([0, 100, 130, 400, 512])
TOPK = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i))[:3] for i in range(48)]).view(
    2, 3, 8, 3
)
TILES = torch.tensor([64, 64, 64, 40, 64, 64, 64, 3])

# name: (mask_mod, B, H, Q, KV)
MASKS: dict[str, Any] = {
    "causal_mask": (gym.causal_mask, 1, 1, 512, 512),
    "batchify": (gym.batchify_mask_mod(gym.causal_mask, 100), 1, 1, 512, 512),
    "block_diffusion": (gym.generate_block_diffusion_mask(256, 32), 1, 1, 512, 512),
    "dilated_sliding_window": (gym.generate_dilated_sliding_window(100, 4), 1, 1, 512, 512),
    "doc_mask_mod": (gym.generate_doc_mask_mod(gym.causal_mask, OFFSETS), 1, 1, 512, 512),
    "packed_causal_doc_mask_mod": (gym.generate_packed_causal_doc_mask_mod(OFFSETS), 1, 1, 512, 512),
    "flamingo": (
        gym.generate_vision_cross_attention_mask_mod(torch.tensor([[0, 70], [30, 200], [200, 300]]), 50), 1, 1, 300, 150,
    ),
    "global_sliding_window": (gym.generate_global_sliding_window(40, torch.arange(512) % 200 == 3), 1, 1, 512, 512),
    "jetspec_training": (gym.generate_jetspec_training_mask_mod(70, 16), 1, 1, 256, 326),
    "jetspec_tree_causal": (
        gym.generate_jetspec_tree_causal_mask_mod(70, gym.build_tree_ancestor_matrix([-1, *range(5), *range(90)], "cpu")),
        1, 1, 96, 166,
    ),
    "morton_natten": (gym.generate_morton_natten(16, 16, 5, 5), 1, 1, 256, 256),
    "natten": (gym.generate_natten(16, 16, 5, 5), 1, 1, 256, 256),
    "tiled_natten": (gym.generate_tiled_natten(16, 16, 5, 5, 8, 8), 1, 1, 256, 256),
    "prefix_lm": (gym.generate_prefix_lm_mask(130), 1, 1, 512, 512),
    "shared_prefix": (gym.generate_shared_prefix_mask_mod(OFFSETS, torch.tensor([0, 0, 2, 2])), 1, 1, 512, 512),
    "sliding_window": (gym.generate_sliding_window(90), 1, 1, 512, 512),
    "sta_2d": (gym.generate_sta_mask_mod_2d((16, 16), (8, 8), (4, 4), 20), 1, 1, 276, 276),
    "sta_3d": (gym.generate_sta_mask_mod_3d((4, 8, 8), (2, 4, 4), (2, 4, 4), 20), 1, 1, 276, 276),
    "svg_spatial": (gym.generate_spatial_head_mask_mod(30, 5, 100, 1, round_width=32), 1, 1, 530, 530),
    "svg_temporal": (gym.generate_temporal_head_mask_mod(30, 5, 100, 1), 1, 1, 530, 530),
    "vsa": (gym.generate_vsa_mask_mod(TOPK, 64, TILES), 2, 3, 512, 512),
    "vsa_padding": (generate_vsa_padding_mask_mod(TILES, 64), 1, 1, 512, 512),
}  # fmt: skip

MOSTLY_EVALUATED = {"morton_natten"}
"""More than half of the tiles decided element by element; docs/notes/blocks.md says why."""


@pytest.mark.parametrize("block", [16, (64, 32), 128])
@pytest.mark.parametrize("name", MASKS)
def test_tables_are_those_of_torch(name, block):
    mask, batch, heads, q_len, kv_len = MASKS[name]
    ours = loom.create_block_mask(mask, batch, heads, q_len, kv_len, "cpu", block)
    assert differing(ours, flex.create_block_mask(mask, batch, heads, q_len, kv_len, "cpu", block)) == []


@pytest.mark.parametrize("name", MASKS)
def test_what_falls_back_is_listed(name):
    mask, batch, heads, q_len, kv_len = MASKS[name]
    explained = explain_block_mask(mask, q_len, kv_len, batch=batch, heads=heads, device="cpu", block_size=32)
    assert (explained.share("evaluation") > 50) == (name in MOSTLY_EVALUATED)
    assert explained.decided.unsupported_ops == ()


def test_no_mask_of_the_package_is_left_out():
    makers = {name for name in dir(gym) if name.startswith("generate_") or name == "causal_mask"}
    words = {name.removeprefix("generate_").removesuffix("_mod").removesuffix("_mask") for name in makers}
    covered = {"vision_cross_attention": "flamingo", "sta_mask_mod_2d": "sta_2d", "sta_mask_mod_3d": "sta_3d"}
    covered |= {"spatial_head": "svg_spatial", "temporal_head": "svg_temporal", "doc": "doc_mask_mod"}
    covered |= {"packed_causal_doc": "packed_causal_doc_mask_mod", "causal": "causal_mask"}
    assert {covered.get(word, word) for word in words} <= MASKS.keys()
