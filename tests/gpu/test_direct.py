"""Later calls of a plan go to the compiled graph at once: right outputs and gradients on both kernels, whatever changes between."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends.compiled import PreparedAttention
from maskloom.attention.plans import kinds
from maskloom.core.cache import LRU

B, H, L, D = 3, 2, 650, 64
LENS = torch.tensor([601, 5, 333])


@pytest.fixture
def asked(monkeypatch):
    """How often torch.compile is asked, of kinds of calls that no other test has made."""
    asked = []
    monkeypatch.setattr(kinds, "_kinds", LRU(256))
    run = PreparedAttention.run
    monkeypatch.setattr(PreparedAttention, "run", lambda *given: asked.append(given) or run(*given))
    return asked


def inputs(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    return [
        torch.randn(B, H, L, D, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
        for _ in range(3)
    ]


def check(qkv, given, mask, backend):
    out = loom.attend(*qkv, given, backend=backend)
    weight = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, qkv, weight)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in qkv]
    expected = loom.reference(*doubles, mask)[0]
    for one, other in zip(found, [expected, *torch.autograd.grad(expected, doubles, weight.double())], strict=True):
        torch.testing.assert_close(one.double(), other, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("backend", ["triton", "flash"])
@pytest.mark.parametrize("ready", [False, True])
def test_a_later_call(asked, backend, ready):
    mask = loom.causal & loom.lengths(LENS.cuda())
    given = loom.block_mask(mask, L, L) if ready else mask
    for seed in range(4):
        check(inputs(seed), given, mask, backend)
    assert len(asked) == 1


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_lengths_that_change_in_place(asked, backend):
    lens = LENS.cuda()
    mask = loom.causal & loom.lengths(lens)
    for step in range(6):
        lens.copy_(LENS.roll(step))
        check(inputs(step), mask, mask, backend)
        if step == 3:
            asked.clear()
    assert not asked


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_how_tensors_lie(asked, backend):
    """Also a query that begins at an address of which 16 is no divisor."""
    mask = loom.causal & loom.lengths(LENS.cuda())
    query, key, value = inputs(0)
    turned = query.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for given in ((query, key, value), (turned, key, value)) * 2:
        check(given, mask, mask, backend)
    assert len(asked) == 2
    if backend == "triton":
        memory = torch.randn(B * H * L * D + 1, device="cuda", dtype=torch.bfloat16)
        odd = memory[1:].view(B, H, L, D).requires_grad_()
        for _ in range(2):
            check((odd, key, value), mask, mask, backend)


def test_in_a_users_cuda_graph(asked):
    mask, qkv = loom.causal & loom.lengths(LENS.cuda()), [tensor.detach() for tensor in inputs(0)]
    blocks = loom.block_mask(mask, L, L)
    for _ in range(3):
        expected = loom.attend(*qkv, blocks, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = loom.attend(*qkv, blocks, backend="triton")
    graph.replay()
    torch.testing.assert_close(out, expected)
