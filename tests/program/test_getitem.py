"""How a mask_mod's indices read a table, beside slices too."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import maskloom as loom
from maskloom.program.record import record
from tests.blocks.random_masks import differing

CUBE = torch.arange(3 * 5 * 7).reshape(3, 5, 7)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, kv: CUBE[:, kv][b, q],
        lambda b, h, q, kv: CUBE[b, :, q][kv],
        lambda b, h, q, kv: CUBE[..., q][b, kv],
        lambda b, h, q, kv: CUBE[b, ..., q][kv],
        lambda b, h, q, kv: CUBE[b, ...][kv][q],
        lambda b, h, q, kv: CUBE[b, None, kv][0, q],
        lambda b, h, q, kv: CUBE[None, b, :, None, q][0, kv, 0],
        lambda b, h, q, kv: CUBE[0, :, q][kv],
        lambda b, h, q, kv: CUBE[-1, kv, 1:][q % 6],
        lambda b, h, q, kv: CUBE[b, ::2, q].sum(),
        lambda b, h, q, kv: CUBE[b, 1:3].amax(0)[q],
    ],
)
def test_reads_beside_slices_are_those_of_torch(function):
    def mask(b, h, q_idx, kv_idx):
        return function(b, h, q_idx, kv_idx) % 4 > 1

    program = record(mask, "cpu")
    assert program.unsupported_reason is None and program.steps[0].op is torch.ops.aten.index.Tensor
    theirs = create_block_mask(mask, 3, 1, 7, 5, device="cpu", BLOCK_SIZE=(2, 3))
    assert differing(loom.create_block_mask(mask, 3, 1, 7, 5, "cpu", (2, 3)), theirs) == []
