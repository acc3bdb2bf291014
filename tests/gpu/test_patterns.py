"""Patterns of published models on the GPU: torch's tables, and attention forward and backward against the reference."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from tests.evidence import gather
from tests.gpu.test_blocks import NAMES
from tests.gpu.test_compile import BATCH, HEADS, inputs

IDS = torch.arange(300) // 70
LENS = torch.arange(BATCH) * 37 + 300

MASKS = {  # for 600 positions
    "strided neighbourhood": lambda: loom.masks.neighbourhood((20, 30), (6, 9), stride=(4, 3)),
    "causal neighbourhood": lambda: loom.masks.neighbourhood(
        (6, 10, 10), (3, 5, 3), dilation=(2, 1, 1), causal=(True, False, False)
    ),
    "halo": lambda: loom.masks.grid_window((20, 30), (5 + 2 * 2, 6 + 2 * 2), stride=(5, 6)),
    "diffusion": lambda: loom.masks.block_diffusion(block_size=16, documents=loom.documents(IDS)),
    "diffusion, paired": lambda: loom.masks.block_diffusion(block_size=16, documents=loom.documents(IDS), paired=True),
    "tree": lambda: loom.masks.tree((torch.arange(200) - 1) // 2, prefix=LENS),
    "flamingo": lambda: loom.masks.flamingo(torch.arange(600) % 100 == 7, tokens_per_media=100, all_before=True),
    "fixed": lambda: loom.masks.fixed(48, summary=8, part=torch.arange(HEADS) % 6),
}


@pytest.mark.parametrize("name", MASKS)
def test_patterns(name):
    mask = MASKS[name]().to("cuda")
    blocks = loom.block_mask(mask, 600, 600, device="cuda")
    theirs = torch_create_block_mask(mask, *blocks.kv_indices.shape[:2], 600, 600, device="cuda")
    for table in NAMES:
        assert torch.equal(getattr(blocks, table), getattr(theirs, table)), table
    gather(lambda *qkv: loom.attend(*qkv, mask), *inputs(600), table=mask.dense(600, 600, device="cuda")).check()


def test_alibi_of_encoders():
    score_mod = loom.scores.alibi(HEADS, symmetric=True).to("cuda")
    gather(lambda *qkv: loom.attend(*qkv, score_mod=score_mod), *inputs(600), table=None, score_mod=score_mod).check()
