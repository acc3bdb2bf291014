"""Tensors in place of masks, packed cross-attention and graphs on a GPU: compiled, and read without waiting."""

import math

import pytest
import torch

import maskloom as loom
from tests.catalog.packed import MASKS, of_pairs

B, H, Q, K, D = 2, 4, 300, 500, 64


def inputs(q_len=Q, kv_len=K):
    generator = torch.Generator("cuda").manual_seed(0)
    return [
        torch.randn(B, H, length, D, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for length in (q_len, kv_len, kv_len)
    ]


def check(mask, truth, backend, q_len=Q, kv_len=K):
    """Output and gradients beside those of the reference in float32, by the table."""
    ours, theirs = inputs(q_len, kv_len), [tensor.detach().float().requires_grad_() for tensor in inputs(q_len, kv_len)]
    out = loom.attend(*ours, mask, backend=backend)
    expected = loom.reference(*theirs, truth)[0]
    out.float().square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.float(), other.grad, atol=1e-1, rtol=5e-2)


@pytest.mark.parametrize("backend", ["triton", "sdpa", "auto"])
@pytest.mark.parametrize("shape", [(Q, K), (B, 1, Q, K), (1, H, Q, K), (B, 1, 1, K)])
def test_tables(shape, backend):
    table = torch.rand(shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda") < 0.6
    truth = table.expand(B, H, Q, K)
    check(table, truth, backend)
    check(torch.zeros(shape, device="cuda").masked_fill(~table, -math.inf), truth, backend)


def test_an_additive_mask_is_waited_for_once():
    table = torch.zeros(Q, K, device="cuda").masked_fill(torch.rand(Q, K, device="cuda") < 0.5, -math.inf)
    qkv = [tensor.detach() for tensor in inputs()]
    loom.attend(*qkv, table)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loom.attend(*qkv, table)
        loom.attend(*qkv, table[:])
    finally:
        torch.cuda.set_sync_debug_mode(before)
    with pytest.raises(TypeError, match="score_mod"):
        loom.attend(*qkv, table + 1)


@pytest.mark.parametrize("name", MASKS)
def test_packed_masks_and_graphs(name):
    factory, q_len, kv_len = MASKS[name]
    mask = factory()
    if "function" in name or mask.dense(q_len, kv_len).shape[0] > 1:
        pytest.skip("its function holds a table on the CPU, or it has tables for three rows")
    backend = "auto" if name.startswith(("from_edges", "from_no_edges")) else "triton"
    check(mask.to("cuda"), mask.dense(q_len, kv_len).cuda(), backend, q_len, kv_len)


def test_a_large_graph():
    generator = torch.Generator().manual_seed(2)
    table = (torch.rand(Q, K, generator=generator) < 0.05) | (torch.arange(Q)[:, None] == torch.arange(K))
    mask = loom.causal | loom.masks.from_edges(*of_pairs(table)).to("cuda")
    check(mask, table.cuda() | loom.causal.dense(Q, K, device="cuda")[0, 0], "auto")
    with pytest.raises(
        ValueError, match="'triton' cannot do this: it has no room on the chip for the search of from_edges"
    ):
        loom.attend(*inputs(), mask, backend="triton")
