"""FlexAttention compiled for the CPU reads our tables: only there can a wrong table show (eager flex ignores them).

Plain closures: compiled CPU flex fails on mask objects at the second length (`cur_kvSplitSize0 was not declared`).
"""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import maskloom as loom

LENS = torch.tensor([300, 170])
IDS = torch.arange(300) // 70


def _causal_padding(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx < LENS[b]) & (kv_idx < LENS[b])


def _documents(b, h, q_idx, kv_idx):
    return IDS[q_idx] == IDS[kv_idx]


def _window(b, h, q_idx, kv_idx):
    return (q_idx - kv_idx < 50) & (q_idx >= kv_idx)


def _prefix(b, h, q_idx, kv_idx):
    return (kv_idx < LENS[b] // 2) | (q_idx >= kv_idx)


@pytest.mark.parametrize("mask_mod, kv_heads", [(_causal_padding, 4), (_documents, 4), (_window, 2), (_prefix, 4)])
def test_compiled_attention_with_our_tables_is_the_reference(mask_mod, kv_heads):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 300, 16, generator=generator)
    key, value = torch.randn(2, 2, kv_heads, 300, 16, generator=generator)
    blocks = loom.block_mask(mask_mod, 300, 300, device="cpu")
    with torch.no_grad():
        out = torch.compile(flex_attention)(query, key, value, block_mask=blocks, enable_gqa=kv_heads != 4)
    expected, _ = loom.reference(query, key, value, mask_mod)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
