"""Attention in parts equals the whole, with gradients, wherever a part sees nothing; a sink is one more column."""

import math

import pytest
import torch

import maskloom as loom
from maskloom.attention.merge import rows_times, with_sinks

B, H, HKV, Q, K, D, E = 2, 6, 3, 5, 13, 7, 11
CUT = 3  # the first part has 3 keys, the second 10


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, Q, D), (B, HKV, K, D), (B, HKV, K, E)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


MASKS = {
    "everything": lambda: loom.everything,
    "hidden on either side and on both": lambda: loom.lengths([5, 2], [11, 2]) & loom.window(back=1),
    "hidden in the first part": lambda: ~loom.prefix(CUT),
    "hidden in the second part": lambda: loom.prefix(CUT),
    "nothing": lambda: loom.nothing,
}


def parts(query, key, value, table):
    first = loom.reference(query, key[:, :, :CUT], value[:, :, :CUT], table[..., :CUT])
    return first, loom.reference(query, key[:, :, CUT:], value[:, :, CUT:], table[..., CUT:])


def both_gradients(attention, given, table):
    """Gradients by output and log-sum-exp together, where there is one."""
    out, lse = attention(*given)
    generator = torch.Generator().manual_seed(1)
    seen = lse != -math.inf
    loss = (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
    loss = loss + (lse.masked_fill(~seen, 0) * torch.randn(lse.shape, generator=generator, dtype=lse.dtype)).sum()
    return out, lse, torch.autograd.grad(loss, given)


@pytest.mark.parametrize("name", MASKS)
def test_two_parts_are_the_whole(name):
    given = tensors()
    table = MASKS[name]().dense(Q, K)
    whole = both_gradients(lambda *qkv: loom.reference(*qkv, table), given, table)

    def merged(query, key, value):
        first, second = parts(query, key, value, table)
        return loom.merge(*first, *second)

    def swapped(query, key, value):
        first, second = parts(query, key, value, table)
        return loom.merge(*second, *first)

    for attention in (merged, swapped):
        found = both_gradients(attention, given, table)
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_parts_in_any_order():
    query, key, value = tensors()
    thirds = [loom.reference(query, k, v) for k, v in zip(key.split(5, 2), value.split(5, 2), strict=True)]
    whole = loom.reference(query, key, value)
    for one, two, three in ((0, 1, 2), (2, 0, 1)):
        left = loom.merge(*loom.merge(*thirds[one], *thirds[two]), *thirds[three])
        right = loom.merge(*thirds[one], *loom.merge(*thirds[two], *thirds[three]))
        torch.testing.assert_close(left, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(right, whole, rtol=1e-12, atol=1e-12)


def test_gradients_are_finite_where_parts_are_hidden_and_right_elsewhere():
    generator = torch.Generator().manual_seed(2)
    out1, out2 = (torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    lse1, lse2 = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    given = [tensor.requires_grad_() for tensor in (out1, lse1, out2, lse2)]
    assert torch.autograd.gradcheck(loom.merge, given, fast_mode=True)
    with torch.no_grad():
        lse1[0, 0], lse2[0, 1], lse1[0, 2], lse2[0, 2] = (torch.tensor(-math.inf),) * 4
        out1[0, 0], out2[0, 2, 1:] = math.nan, math.inf  # not read
    out, lse = loom.merge(*given)
    torch.testing.assert_close(out[0, :2], torch.stack([out2[0, 0], out1[0, 1]]))
    torch.testing.assert_close(lse[0, :2], torch.stack([lse2[0, 0], lse1[0, 1]]))
    assert not out[0, 2].any()
    assert (lse[0, 2] == -math.inf).all()
    gradients = torch.autograd.grad(out.square().sum() + lse.sum(), given)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(not gradient[0, 2].any() for gradient in gradients)


def test_scores_far_apart():
    one, zero = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
    high, low = torch.full((1, 1, 2), 3e4), torch.full((1, 1, 2), -3e4)
    leaves = [tensor.requires_grad_() for tensor in (one, high, zero, low)]
    out, lse = loom.merge(*leaves)
    assert torch.equal(out, one)
    assert torch.equal(lse, high)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum() + lse.sum(), leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(3)
    out1, out2 = (torch.randn(2, 3, 5, 7, generator=generator).to(dtype) for _ in range(2))
    lse1, lse2 = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    out, lse = loom.merge(out1, lse1, out2, lse2)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    exact, exact_lse = loom.merge(out1.double(), lse1.double(), out2.double(), lse2.double())
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)
    assert loom.merge(out1, lse1.to(dtype), out2, lse2.to(dtype))[1].dtype == dtype


def with_a_column(query, key, value, table, sinks):
    """A sink written out: one more score in each row's softmax, whose weight is dropped."""
    scores = query @ key.repeat_interleave(H // HKV, 1).mT / math.sqrt(D)
    column = sinks[:, None, None].expand(B, H, Q, 1)
    scores = torch.cat([scores.masked_fill(~table, -math.inf), column], -1)
    return scores.softmax(-1)[..., :-1] @ value.repeat_interleave(H // HKV, 1), scores.logsumexp(-1)


@pytest.mark.parametrize("name", MASKS)
def test_a_sink_is_one_more_column(name):
    table = MASKS[name]().dense(Q, K)
    sinks = torch.linspace(-2, 3, H, dtype=torch.float64, requires_grad=True)
    given = [*tensors(), sinks]
    expected = both_gradients(lambda q, k, v, sinks: with_a_column(q, k, v, table, sinks), given, table)
    found = both_gradients(lambda q, k, v, sinks: loom.reference(q, k, v, table, sinks=sinks), given, table)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_only_the_sink():
    query, key, value = tensors()
    sinks = torch.linspace(-2, 3, H, dtype=torch.float64, requires_grad=True)
    out, lse = loom.reference(query, key, value, loom.lengths([5, 0]), sinks=sinks)
    assert not out[1].any()
    assert torch.equal(lse[1], sinks[:, None].expand(H, Q))
    gradients = torch.autograd.grad(out[1].sum() + lse[1].sum(), [query, key, value, sinks])
    assert all(not gradient.any() for gradient in gradients[:3])
    assert torch.equal(gradients[3], torch.full((H,), float(Q), dtype=torch.float64))


def test_a_sink_of_minus_infinity_is_none():
    query, key, value = tensors()
    sinks = torch.full((H,), -math.inf, dtype=torch.float64, requires_grad=True)
    mask = loom.lengths([3, 0])
    found = loom.reference(query, key, value, mask, sinks=sinks)
    torch.testing.assert_close(found, loom.reference(query, key, value, mask))
    gradients = torch.autograd.grad(found[0].sum() + found[1][0, :, :3].sum(), [query, sinks])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinks_of_another_dtype(dtype):
    qkv = tensors(dtype)
    sinks = torch.linspace(-2, 3, H, requires_grad=True)
    out, lse = loom.reference(*qkv, loom.causal, sinks=sinks)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    exact, _ = loom.reference(*(tensor.double() for tensor in qkv), loom.causal, sinks=sinks.double())
    assert (out.double() - exact).norm() / exact.norm() < 4 * torch.finfo(dtype).eps
    out.sum().backward()
    assert sinks.grad.dtype == torch.float32
    assert sinks.grad.all()


out, lse, sinks = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 5), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loom.merge(out, lse, out.tolist(), lse), TypeError, r"out2 is a floating .* \(B, H, Q, E\); got list"),
        (lambda: loom.merge(out, lse.long(), out, lse), TypeError, r"lse1 is .* \(B, H, Q\); got torch.int64"),
        (
            lambda: loom.merge(out, lse[:, :2], out, lse),
            ValueError,
            r"out1 has shape \(B, H, Q, E\) and lse1 \(B, H, Q\); got \(2, 3, 5, 7\) and \(2, 2, 5\)",
        ),
        (lambda: loom.merge(out, lse, out[0], lse[0]), ValueError, r"out2 has shape .* got \(3, 5, 7\) and \(3, 5\)"),
        (
            lambda: loom.merge(out, lse, out[:, :, :4], lse[:, :, :4]),
            ValueError,
            r"out1 and out2 have one shape; got \(2, 3, 5, 7\) and \(2, 3, 4, 7\)",
        ),
        (
            lambda: loom.merge(out, lse, out.double(), lse),
            TypeError,
            "out1 and out2 have one dtype; got torch.float32 and torch.float64",
        ),
        (lambda: loom.merge(out, lse, out, lse.half()), TypeError, "lse1 and lse2 have one dtype; got torch.float32"),
        (lambda: with_sinks(out, lse, [1.0]), TypeError, r"sinks is a floating point tensor \(H,\), .* got list"),
        (lambda: with_sinks(out, lse, sinks.long()), TypeError, "sinks is .* got torch.int64"),
        (lambda: with_sinks(out, lse, sinks[:2]), ValueError, r"sinks has shape \(H,\) = \(3,\), .* got \(2,\)"),
        (lambda: with_sinks(out, lse[0], sinks), ValueError, r"out has shape .* and lse \(B, H, Q\)"),
        (
            lambda: loom.reference(out, out, out, sinks=sinks[None]),
            ValueError,
            r"sinks has shape \(H,\) = \(3,\), .* got \(1, 3\)",
        ),
    ],
)
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_times_a_share_inside_a_graph(dtype):
    """Its own gradient there is autograd's outside."""
    out = torch.randn(2, 3, 5, 7, dtype=torch.float64).to(dtype).requires_grad_()
    share = torch.rand(2, 3, 5, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(rows_times, backend="aot_eager", fullgraph=True)
    found, expected = ((times(out, share), out, share) for times in (compiled, rows_times))
    torch.testing.assert_close(found[0], expected[0])
    ours, theirs = (torch.autograd.grad(one[0].sin().sum(), one[1:]) for one in (found, expected))
    torch.testing.assert_close(ours, theirs)
