"""Tables read at negative indices, which count from the end, and at indices of 64 bits."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends.flash import has_flash
from tests.evidence import gather

BATCH, HEADS, KV_HEADS, Q, K, D = 3, 4, 2, 300, 517, 64


def table(*shape):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.6).cuda()


def masks():
    by_head, flat, order = (
        table(HEADS, K),
        table(K),
        torch.randperm(K, generator=torch.Generator().manual_seed(2)).cuda(),
    )
    return {
        "a constant": lambda b, h, q, k: by_head[-1, k] | (q < 3),
        "a sum": lambda b, h, q, k: by_head[h, q - k],
        "both": lambda b, h, q, k: by_head[-2, q - k] | by_head[h - HEADS, k],
        "negative entries": lambda b, h, q, k: flat[order[k] - 200] | (q < 3),
        "64 bits": lambda b, h, q, k: flat[order[k]] | (q < 3),
        "shifted": loom.masks.shifted(
            loom.as_mask(lambda b, h, q, k: by_head[h, k - q]), q_offset=torch.tensor(4).cuda()
        ),
    }


def check(mask, backend, **options):
    generator = torch.Generator().manual_seed(5)
    shapes = [(BATCH, HEADS, Q, D), (BATCH, KV_HEADS, K, D), (BATCH, KV_HEADS, K, D)]
    tensors = [torch.randn(shape, generator=generator).to("cuda", torch.bfloat16) for shape in shapes]
    dense = loom.as_mask(mask).dense(Q, K, batch=BATCH, heads=HEADS, device="cuda")
    assert 0.02 < dense.float().mean() < 0.98
    blocks = loom.block_mask(mask, Q, K, batch=BATCH, heads=HEADS, device="cuda")
    gather(lambda *qkv: loom.attend(*qkv, blocks, backend=backend, **options), *tensors, table=dense, **options).check()


@pytest.mark.parametrize("name", ["a constant", "a sum", "both", "negative entries", "64 bits", "shifted"])
def test_triton(name):
    check(masks()[name], "triton")


@pytest.mark.skipif(not has_flash(), reason="flash-attn-4 is not installed")
@pytest.mark.parametrize("name", ["a sum", "negative entries", "64 bits", "shifted"])
def test_flash(name):
    check(masks()[name], "flash")


def test_score_mods():
    bias = torch.randn(HEADS, K, generator=torch.Generator().manual_seed(1)).cuda()
    check(loom.causal, "triton", score_mod=lambda s, b, h, q, k: s + bias[h, q - k])
    with pytest.raises(ValueError, match=r"reads a table at -1.*table.shape\[0\] - 1"):
        check(loom.causal, "triton", score_mod=lambda s, b, h, q, k: s + bias[-1, k])
    check(loom.causal, "auto", score_mod=lambda s, b, h, q, k: s + bias[-1, k])
