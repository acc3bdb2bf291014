"""The log-sum-exp beside the output, and sink logits, which need it."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest

import maskloom as loom
from maskloom.attention.reference import reference
from tests.all_masks import ALL_MASKS
from tests.attention.test_attend import B, D, H, K, Q, inputs
from tests.evidence import gather, plain_reference

LSE = AuxRequest(lse=True)
SINKS = torch.tensor([0.5, -1.0])
MASK = loom.lengths([5, 0, 13], [7, 3, 17]) & loom.causal


@pytest.mark.parametrize("name", ALL_MASKS)
def test_log_sum_exp_of_every_mask(name):
    mask, (q, k, v) = ALL_MASKS[name](), inputs(dtype=torch.float64)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(~mask.dense(Q, K), -math.inf)
    for given in (mask, loom.block_mask(mask, Q, K, block_size=(4, 8))):
        out, aux = loom.attend(q, k, v, given, return_aux=LSE)
        assert isinstance(aux, AuxOutput) and aux.max_scores is None
        torch.testing.assert_close(aux.lse, scores.logsumexp(-1))
        torch.testing.assert_close(out, loom.attend(q, k, v, given))


def test_a_query_that_sees_nothing():
    q, k, v = inputs()
    out, aux = loom.attend(q, k, v, MASK, return_aux=LSE)
    sees = MASK.dense(Q, K).any(-1).expand(B, H, Q)
    assert torch.equal(aux.lse == -math.inf, ~sees)
    assert not out[~sees].any() and aux.lse[sees].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_gradient(dtype):
    def both(query, key, value):  # so that the evidence sees a gradient through the log-sum-exp
        out, aux = loom.attend(query, key, value, MASK, return_aux=LSE)
        return out + aux.lse.masked_fill(aux.lse == -math.inf, 0.0)[..., None]

    def plainly(query, key, value, mask, **how):
        out, lse = plain_reference(query, key, value, mask, **how)
        return out + lse.masked_fill(lse == -math.inf, 0.0)[..., None], lse

    gather(both, *inputs(dtype=dtype), table=MASK.dense(Q, K), plain=plainly).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_half_types_it_is_float32(dtype):
    q, k, v = inputs(dtype=dtype)
    for mask in (None, loom.causal):
        _, aux = loom.attend(q, k, v, mask, return_aux=LSE)
        _, exact = reference(q.double(), k.double(), v.double(), mask)
        assert aux.lse.dtype == torch.float32
        ours, rounded = (aux.lse - exact).abs().max(), (exact.to(dtype) - exact).abs().max()
        assert ours < 2 * rounded + 1e-3  # scores are of that dtype; the sum is not


def test_nothing_asked_for_is_nothing_returned():
    q, k, v = inputs()
    for how in ({}, {"backend": "reference"}, {"sinks": SINKS}):
        out, aux = loom.attend(q, k, v, MASK, return_aux=AuxRequest(), **how)
        assert aux == AuxOutput(lse=None, max_scores=None)
        assert torch.equal(out, loom.attend(q, k, v, MASK, **how))


def test_keys_in_parts_merge():
    q, k, v = inputs()

    def merged(query, key, value):
        parts = []
        for first, last in ((0, 5), (5, 7), (7, K)):
            mask = loom.masks.shifted(MASK, kv_offset=first)
            out, aux = loom.attend(query, key[:, :, first:last], value[:, :, first:last], mask, return_aux=LSE)
            parts.append((out, aux.lse))
        return loom.merge(*loom.merge(*parts[0], *parts[1]), *parts[2])[0]

    gather(merged, q, k, v, table=MASK.dense(Q, K)).check()


def test_sinks_are_one_more_column():
    q, k, v = inputs(dtype=torch.float64)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(~MASK.dense(Q, K), -math.inf)
    wider = torch.cat([scores, SINKS.double()[:, None, None].expand(B, H, Q, 1)], -1)
    out, aux = loom.attend(q, k, v, MASK, sinks=SINKS.double(), return_aux=LSE)
    torch.testing.assert_close(out, wider.softmax(-1)[..., :-1] @ v)
    torch.testing.assert_close(aux.lse, wider.logsumexp(-1))
    assert torch.equal(aux.lse[1], SINKS.double()[:, None].expand(H, Q))  # these see nothing else


@pytest.mark.parametrize("score", ["none", "alibi"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradients_with_sinks(dtype, score):
    score_mod = loom.scores.alibi(H) if score == "alibi" else None

    def plainly(query, key, value, mask, **how):
        return plain_reference(query, key, value, mask, sinks=SINKS.to(query.dtype), **how)

    gather(
        lambda *qkv: loom.attend(*qkv, MASK, score_mod=score_mod, sinks=SINKS.to(dtype)),
        *inputs(dtype=dtype), table=MASK.dense(Q, K), score_mod=score_mod, plain=plainly,
    ).check()  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_learn(dtype):
    """Parameters in float32 are right beside half types too."""
    q, k, v = inputs(dtype=dtype)
    ours, exact = SINKS.clone().requires_grad_(), SINKS.double().requires_grad_()
    loom.attend(q, k, v, MASK, sinks=ours).square().sum().backward()
    reference(q.double(), k.double(), v.double(), MASK, sinks=exact)[0].square().sum().backward()
    close = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=close, atol=close)


def test_only_the_sinks_learn():
    sinks = SINKS.clone().requires_grad_()
    with torch.no_grad():
        assert not loom.attend(*inputs(), sinks=sinks).requires_grad
    assert loom.attend(*inputs(), sinks=sinks).requires_grad


def test_a_sink_of_minus_infinity_is_none():
    tensors = inputs()
    out = loom.attend(*tensors, MASK, sinks=torch.full((H,), -math.inf))
    torch.testing.assert_close(out, loom.attend(*tensors, MASK))


q, k, v = inputs()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"return_aux": True}, TypeError, r"return_aux is torch's AuxRequest\(lse=True\); got True"),
        ({"return_aux": AuxRequest(max_scores=True)}, ValueError, r"no max_scores; AuxRequest\(lse=True\) is what"),
        ({"return_aux": LSE, "backend": "sdpa"}, ValueError, "'sdpa' cannot do this: it gives no log-sum-exp, and so"),
        ({"sinks": SINKS, "backend": "sdpa"}, ValueError, "'sdpa' cannot do this: .*, and so no sinks"),
        ({"sinks": [0.5, 1.0]}, TypeError, r"sinks is a floating point tensor \(H,\), .* got list"),
        ({"sinks": torch.tensor([1, 2])}, TypeError, "got torch.int64"),
        ({"sinks": torch.ones(3)}, ValueError, r"sinks has shape \(H,\) = \(2,\), .* got \(3,\)"),
        ({"sinks": SINKS.to("meta")}, ValueError, "the sinks are on meta and the attention on cpu"),
        ({"scale": torch.tensor(0.5)}, TypeError, "scale is a number; by a tensor, a learned one too, multiply the"),
    ],
)
def test_words(options, error, words):
    for call in (loom.attend, loom.explain):
        with pytest.raises(error, match=words):
            call(q, k, v, loom.causal, **options)
