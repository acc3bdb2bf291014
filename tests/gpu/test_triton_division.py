"""Masks and score mods that divide negative numbers, which torch's own kernel gets wrong in torch 2.11 (pytorch#158212)."""

import pytest
import torch

import maskloom as loom
from tests.evidence import gather

BATCH, HEADS, KV_HEADS, Q, K, D = 3, 4, 2, 384, 517, 64

MASKS = {
    "//": lambda b, h, q, k: (k - 132) // 4 <= (q - 132) // -4 + 20,
    "%": lambda b, h, q, k: ((q - 128) % 5 <= (k - 200) // 7) | ((k - 131) % -6 < -3),
    "towards zero": lambda b, h, q, k: (
        torch.fmod(k - 132, 4) + torch.div(q - 130, 8, rounding_mode="trunc")
        <= torch.div(k - 202, 8, rounding_mode="trunc") + 1
    ),
    "a number": lambda b, h, q, k: 1000 // (q - k - 600) >= -2,
}


def inputs():
    generator = torch.Generator().manual_seed(11)
    shapes = [(BATCH, HEADS, Q, D), (BATCH, KV_HEADS, K, D), (BATCH, KV_HEADS, K, D)]
    return [torch.randn(shape, generator=generator).cuda() for shape in shapes]


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    mask = loom.as_mask(MASKS[name])
    table = mask.dense(Q, K, device="cuda")
    assert 0.1 < table.float().mean() < 0.9
    blocks = loom.block_mask(mask, Q, K, device="cuda")
    gather(lambda *qkv: loom.attend(*qkv, blocks, backend="triton"), *inputs(), table=table).check()


def test_a_score_mod():
    def bent(score, b, h, q, k):
        return score + 0.25 * ((q - k) // 16) + 0.5 * ((k - q) % 3)

    mask = loom.window(back=100, ahead=150)
    table = mask.dense(Q, K, device="cuda")
    attention = gather(
        lambda *qkv: loom.attend(*qkv, mask, score_mod=bent, backend="triton"), *inputs(), table=table, score_mod=bent
    )
    attention.check()


def test_inside_another_compile():
    mask = loom.as_mask(MASKS["//"])
    blocks = loom.block_mask(mask, Q, K, device="cuda")
    compiled = torch.compile(lambda *qkv: loom.attend(*qkv, blocks), fullgraph=True)
    gather(compiled, *inputs(), table=mask.dense(Q, K, device="cuda")).check()
