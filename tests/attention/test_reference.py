"""The specification, against torch's scaled_dot_product_attention, finite differences and its own words."""

import math

import pytest
import torch
import torch.nn.functional as F

import maskloom as loom

B, H, HKV, Q, K, D, E = 2, 6, 3, 5, 7, 11, 13


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, Q, D), (B, HKV, K, D), (B, HKV, K, E)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_it_is_scaled_dot_product_attention(tensors):
    mask = loom.window(back=2, ahead=1) | loom.sinks(1)
    out, lse = loom.reference(*tensors, mask)
    table = mask.dense(Q, K)
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=table, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    scores = tensors[0] @ tensors[1].repeat_interleave(H // HKV, 1).mT / math.sqrt(D)
    torch.testing.assert_close(lse, scores.masked_fill(~table, -math.inf).logsumexp(-1))


def test_a_query_that_sees_nothing(tensors):
    out, lse = loom.reference(*tensors, loom.lengths([3, 0]))
    assert not out[1].any()
    assert not out[0, :, 3:].any()
    assert (lse[1] == -math.inf).all()
    assert lse[0, :, :3].isfinite().all()
    (out.sum() + lse[0, :, :3].sum()).backward()
    for tensor in tensors:
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[1].any()


def test_gradients_are_right(tensors):
    def attention(q, k, v):
        return loom.reference(q, k, v, loom.causal & loom.lengths([5, 2], [7, 3]), scale=0.3)[0]

    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


def test_score_mod_bends_scores_before_the_mask(tensors):
    slopes = torch.linspace(0.1, 1, H, dtype=torch.float64)

    def alibi(score, b, h, q_idx, kv_idx):
        return score - slopes[h] * (q_idx - kv_idx).abs()

    out, _ = loom.reference(*tensors, loom.causal, score_mod=alibi)
    bias = -slopes[:, None, None] * (torch.arange(Q)[:, None] - torch.arange(K)).abs()
    bias = bias.masked_fill(~loom.causal.dense(Q, K)[0], -math.inf)
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=bias, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_a_score_mod_that_hides_everything_gives_zero(tensors):
    out, lse = loom.reference(*tensors, score_mod=lambda score, b, h, q, k: torch.where(q == 2, -math.inf, score))
    assert not out[:, :, 2].any()
    assert (lse[:, :, 2] == -math.inf).all()
    assert out[:, :, 3].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_stay_theirs(tensors, dtype):
    out, lse = loom.reference(*(tensor.to(dtype) for tensor in tensors), loom.causal)
    assert out.dtype == lse.dtype == dtype
    exact, _ = loom.reference(*tensors, loom.causal)
    assert (out.double() - exact).norm() / exact.norm() < 4 * torch.finfo(dtype).eps
