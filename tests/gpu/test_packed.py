"""Packing and unpacking on a GPU: the host never waits, and gradients come out as on the CPU."""

import pytest
import torch

import maskloom as loom
from maskloom.batches import pack, unpack

LENS = [500, 3, 0, 711]


@pytest.fixture
def never_waits():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("told", ["list", "cpu", "cuda", "pads"])
def test_the_host_does_not_wait_where_it_knows_the_total(told, request):
    x = torch.randn(4, 711, 5, device="cuda", requires_grad=True)
    pads = loom.batches.pads_from_lengths(LENS, 711)
    table = {"list": LENS, "cpu": torch.tensor(LENS), "cuda": torch.tensor(LENS).cuda(), "pads": pads.cuda()}[told]
    total = sum(LENS) if told in ("cuda", "pads") else None
    request.getfixturevalue("never_waits")
    packed = pack(x, table, total=total)
    out = unpack(packed, packed.values**2)
    (grad,) = torch.autograd.grad(out.sum(), x)
    documents = loom.documents(offsets=packed.offsets, length=packed.total)
    positions = packed.positions
    torch.cuda.set_sync_debug_mode("default")
    real = ~pads.cuda()[..., None]
    assert torch.equal(out, x.square() * real) and torch.equal(grad, 2 * x * real)
    assert torch.equal(positions.cpu(), pack(pads, LENS).positions)
    assert documents.ids.tolist() == [row for row, n in enumerate(LENS) for _ in range(n)]
    assert {packed.offsets.device.type, packed.index.device.type} == {"cuda"}


def test_packed_attention_is_the_padded_one():
    attention = loom.MultiheadFlexAttention(64, 128, 4).cuda()
    x = torch.randn(4, 711, 64, device="cuda", requires_grad=True)
    packed = pack(x, LENS)
    documents = loom.documents(offsets=packed.offsets, length=packed.total)
    out = unpack(packed, attention(packed.values, loom.causal & documents).out)
    padded = attention(x, loom.causal & loom.lengths(torch.tensor(LENS).cuda())).out
    real = ~loom.batches.pads_from_lengths(LENS, 711).cuda()[..., None]
    grads = [torch.autograd.grad((y * real).square().sum(), x)[0] for y in (out, padded)]
    torch.testing.assert_close(out, padded * real, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-3)
