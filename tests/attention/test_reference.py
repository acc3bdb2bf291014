"""The specification, against torch's scaled_dot_product_attention, finite differences and its own words."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import AuxRequest
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.blocks.dense import dense_of
from tests.memory import peak_bytes

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


def test_a_score_mod_with_a_pole_where_the_mask_hides(tensors):
    """0 times an infinite derivative is no NaN: torch's Triton kernel masks that product, too."""
    others = loom.causal & ~loom.window(back=0)

    def pole(score, b, h, q_idx, kv_idx):
        return score / (q_idx - kv_idx)

    def none(score, b, h, q_idx, kv_idx):
        return score / torch.where(q_idx == kv_idx, 1, q_idx - kv_idx)

    found, expected = (
        torch.autograd.grad(loom.reference(*tensors, others, score_mod=mod)[0].sum(), tensors) for mod in (pole, none)
    )
    assert all(grad.isfinite().all() for grad in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_sums_that_float16_does_not_hold():
    query, key = (torch.full((1, 1, 3, 128), size, dtype=torch.float16) for size in (30.0, 29.0))
    value = torch.randn(1, 1, 3, 128, generator=torch.Generator().manual_seed(0)).half()
    torch.testing.assert_close(
        loom.reference(query, key, value, loom.causal)[0],
        F.scaled_dot_product_attention(query, key, value, is_causal=True),
    )


LARGE = {  # how large queries and keys are, so that scores are some 100,000, and what attention gets beside them
    "scores": (300, {}),
    "scale": (26, {"scale": 40.0}),
    "softcap": (300, {"score_mod": loom.scores.softcap(1e5)}),
    "score_mod": (3, {"score_mod": lambda score, b, h, q, k: score * 1000.0 + (q - k) * 3e4}),
    "squares": (12, {"score_mod": lambda score, b, h, q, k: score.square()}),
    "sinks": (1, {"sinks": torch.tensor([7e4, -7e4, 3.0, 0.0, 1e5, -math.inf])}),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LARGE)
def test_scores_that_float16_does_not_hold(tensors, name, dtype):
    """Output and gradients are finite, the same with a log-sum-exp and without, and as right as scores in float32 are."""
    size, how = LARGE[name]
    halves = [(tensor.detach() * size).to(dtype).requires_grad_() for tensor in tensors[:2]]
    halves.append(tensors[2].detach().to(dtype).requires_grad_())
    mask = loom.causal & loom.lengths([5, 2], [7, 3])
    right, sums = loom.reference(*(tensor.detach().double() for tensor in halves), mask, **how)
    largest = float(sums[sums.isfinite()].abs().max())
    assert torch.finfo(torch.float16).max < largest < 5e5
    close = 4 * torch.finfo(dtype).eps + 8 * largest * torch.finfo(torch.float32).eps
    out, aux = loom.attend(*halves, mask, **how, return_aux=AuxRequest(lse=True))
    for found in (out, loom.attend(*halves, mask, **how)):
        torch.testing.assert_close(found.double(), right, rtol=close, atol=close)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), halves))
    torch.testing.assert_close(aux.lse.double(), sums, rtol=1e-5, atol=close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_score_mod_gets_float32_for_half_types(tensors, dtype):
    seen = []

    def noting(score, b, h, q_idx, kv_idx):
        seen.append(score.dtype)
        return score

    loom.attend(*(tensor.to(dtype) for tensor in tensors), loom.causal, score_mod=noting)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_stay_theirs(tensors, dtype):
    out, lse = loom.reference(*(tensor.to(dtype) for tensor in tensors), loom.causal)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    exact, _ = loom.reference(*tensors, loom.causal)
    assert (out.double() - exact).norm() / exact.norm() < 4 * torch.finfo(dtype).eps


# -- rows of queries at a time -----------------------------------------------------------------------------------------

ROWS = 2  # 5 queries: chunks of 2, 2 and 1


@pytest.fixture
def in_chunks(monkeypatch):
    """Says how many scores fit in a chunk: none, so that there is one piece, or two rows of them."""

    def limit(cut: bool, rows: int = ROWS) -> None:
        monkeypatch.setattr("maskloom.attention.written_out.CHUNK", B * H * K * rows if cut else 2**22)

    return limit


def hand_made():
    """A BlockMask whose mask_mod says False in all of its tiles, of which some are full."""
    blocks = loom.block_mask(loom.masks.key_range(3, 6), Q, K, block_size=(2, 3))
    blocks.mask_mod = loom.nothing
    return blocks


def per_head(b, h, q_idx, kv_idx):
    return (q_idx - kv_idx).abs() <= h


SEEN = {
    "none": lambda: None,
    "mask": lambda: loom.causal & loom.lengths([5, 2], [7, 3]),
    "rows hidden": lambda: loom.lengths([3, 0]),
    "function": lambda: per_head,
    "offset": lambda: loom.masks.shifted(loom.causal, q_offset=[2, 0]),
    "table": lambda: (loom.causal & loom.lengths([5, 2], [7, 3])).dense(Q, K),
    "table of keys": lambda: (torch.arange(K) < 3).view(1, 1, 1, K),
    "block mask": lambda: loom.block_mask(loom.causal & loom.lengths([5, 2], [7, 3]), Q, K, block_size=(2, 3)),
}


@pytest.mark.parametrize("name", SEEN)
def test_chunks_are_the_whole(tensors, in_chunks, name):
    slopes = torch.linspace(0.1, 1, H, dtype=torch.float64).requires_grad_()
    bias = torch.linspace(-1, 1, Q + K, dtype=torch.float64).requires_grad_()
    sinks = torch.linspace(-2, 2, H, dtype=torch.float64).requires_grad_()

    def bent(score, b, h, q_idx, kv_idx):
        return torch.tanh(score) * slopes[h] + bias[q_idx - kv_idx + K]

    def run(cut):
        in_chunks(cut)
        out, lse = loom.reference(*tensors, SEEN[name](), score_mod=bent, scale=0.7, sinks=sinks)
        loss = out.square().sum() + lse.sin().sum()
        return out, lse, torch.autograd.grad(loss, [*tensors, slopes, bias, sinks])

    torch.testing.assert_close(run(True), run(False), rtol=1e-13, atol=1e-13)


def test_chunks_without_a_score_mod_and_hidden_rows(tensors, in_chunks):
    in_chunks(True)
    test_a_query_that_sees_nothing(tensors)
    in_chunks(True, rows=0)  # one query at a time at least
    test_it_is_scaled_dot_product_attention(tensors)
    test_gradients_are_right(tensors)
    test_score_mod_bends_scores_before_the_mask(tensors)


def test_second_derivatives_of_chunks(tensors, in_chunks):
    in_chunks(True)
    small = [tensor[:1, :3, :, :2].detach().requires_grad_() for tensor in tensors]
    in_chunks(True, rows=0)
    assert torch.autograd.gradgradcheck(lambda *qkv: loom.reference(*qkv, loom.causal)[0], small, fast_mode=True)


@pytest.mark.parametrize("cut", [False, True])
def test_autocast(tensors, in_chunks, cut):
    in_chunks(cut)
    leaves = [tensor.detach().float().requires_grad_() for tensor in tensors]
    bias = torch.linspace(-1, 1, H, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = loom.reference(*leaves, loom.causal, score_mod=lambda score, b, h, q, k: score + bias[h])
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    (out.float().square().sum() + lse.sum()).backward()  # outside of autocast: the chunks must remember it
    out, lse = loom.reference(*tensors, loom.causal, score_mod=lambda score, b, h, q, k: score + bias[h].double())
    exact = torch.autograd.grad(out.square().sum() + lse.sum(), [*tensors, bias])
    for leaf, right in zip([*leaves, bias], exact, strict=True):
        assert leaf.grad.dtype == torch.float32
        assert (leaf.grad.double() - right).norm() / right.norm() < 8 * torch.finfo(torch.bfloat16).eps


def test_torch_func(tensors, in_chunks):
    in_chunks(True)
    gradient = torch.func.grad(lambda q: loom.reference(q, *tensors[1:], loom.causal)[0].square().sum())(tensors[0])
    loom.reference(*tensors, loom.causal)[0].square().sum().backward()
    torch.testing.assert_close(gradient, tensors[0].grad)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_under_a_checkpoint_of_the_users_own(tensors, in_chunks, use_reentrant):
    in_chunks(True)
    attention = partial(loom.reference, mask=loom.causal, sinks=torch.linspace(-1, 1, H, dtype=torch.float64))
    out, lse = checkpoint(attention, *tensors, use_reentrant=use_reentrant)
    (out.square().sum() + lse.sum()).backward()
    in_chunks(False)
    out, lse = attention(*tensors)
    expected = torch.autograd.grad(out.square().sum() + lse.sum(), tensors)
    for tensor, right in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, right)


def test_gradients_of_some_inputs_only(tensors, in_chunks):
    for loss in LOSSES.values():
        found = []
        for cut in (True, False):
            in_chunks(cut)
            found.append([torch.autograd.grad(loss(*loom.reference(*tensors)), tensor)[0] for tensor in tensors[:2]])
        torch.testing.assert_close(*found)


def test_a_block_mask_means_its_tables_and_its_mask(tensors, in_chunks):
    blocks = hand_made()
    table = dense_of(blocks, B, H)
    assert table.any()
    for cut in (False, True):
        in_chunks(cut)
        torch.testing.assert_close(loom.reference(*tensors, blocks), loom.reference(*tensors, table))


LOSSES = {
    "out": lambda out, lse: out.square().sum(),
    "lse": lambda out, lse: lse.sum(),
    "both": lambda out, lse: out.square().sum() + lse.sum(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)  # what the loss leaves out must not be kept either
@pytest.mark.parametrize("bent", [False, True])
def test_memory_is_bounded(monkeypatch, dtype, loss, bent):
    length, chunk = 512, 2**14
    query, key = (torch.randn(1, heads, length, 7).to(dtype).requires_grad_() for heads in (2, 1))
    bias = torch.randn(2, 2 * length, dtype=dtype, requires_grad=True)
    mask = loom.block_mask(loom.causal, length, length)

    def score_mod(score, b, h, q_idx, kv_idx):
        return torch.tanh(score + bias[h, q_idx - kv_idx + length])

    def train():
        query.grad, key.grad, bias.grad = None, None, None
        LOSSES[loss](*loom.reference(query, key, key, mask, score_mod=score_mod if bent else None)).backward()

    bytes_each = max(4, query.element_size())
    assert peak_bytes(train) > 4 * 2 * length**2 * query.element_size()  # in one piece: the test sees it
    monkeypatch.setattr("maskloom.attention.written_out.CHUNK", chunk)
    assert peak_bytes(train) < 10 * (chunk + query.numel()) * bytes_each


def test_it_trains_at_a_length_of_4096():
    query = torch.randn(1, 1, 4096, 5, requires_grad=True)
    mask = loom.causal & loom.lengths([4000])

    def train():
        loom.reference(query, query, query, mask)[0].square().sum().backward()

    assert peak_bytes(train) < 10 * 2**22 * 4
    assert query.grad.isfinite().all()
    assert not query.grad[:, :, 4000:].any()


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.ones(Q, K), TypeError, "the mask is a float table, .* score_mod.*; got 1$"),
        (
            torch.ones(Q, 3, dtype=torch.bool),
            ValueError,
            r"\(B, H, Q, K\), .* here B = 2, H = 6, Q = 5, K = 7; got \(5, 3\)",
        ),
        (torch.ones(1, 1, 1, 1, K, dtype=torch.bool), ValueError, r"got \(1, 1, 1, 1, 7\)"),
        (
            loom.block_mask(loom.causal, K, Q),
            ValueError,
            r"for lengths \(Q, K\) = \(7, 5\); the attention has \(5, 7\)",
        ),
    ],
)
def test_words(tensors, mask, error, words):
    with pytest.raises(error, match=words):
        loom.reference(*tensors, mask)


REFUSED = {
    "no tensor": ({"query": 3}, TypeError, r"^query is a tensor \(batch, heads, length, head dim\); got int$"),
    "three dims": ({"query": torch.zeros(B, Q, D)}, ValueError, r"^query has shape .*; got \(2, 5, 11\)$"),
    "integers": ({"value": torch.zeros(B, HKV, K, E, dtype=torch.int64)}, TypeError, "^value is float64.*got torch.int64$"),
    "dtypes": ({"key": torch.zeros(B, HKV, K, D)}, ValueError, "^query, key and value have one dtype; got .* key torch.float32"),
    "batches": (
        {"key": torch.zeros(3, HKV, K, D, dtype=torch.float64)},
        ValueError,
        r"^query, key and value have one batch size; got .*key \(3, 3, 7, 11\)",
    ),
    "key heads": (
        {"value": torch.zeros(B, 1, K, E, dtype=torch.float64)},
        ValueError,
        r"^key and value have the same heads and length; got .*value \(2, 1, 7, 13\)$",
    ),
    "heads": (
        {"query": torch.zeros(B, 5, Q, D, dtype=torch.float64)},
        ValueError,
        r"^the query heads are a multiple of the key heads; got query \(2, 5, 5, 11\)",
    ),
    "head dims": (
        {"query": torch.zeros(B, H, Q, E, dtype=torch.float64)},
        ValueError,
        r"^query and key have the same head dim; got query \(2, 6, 5, 13\)",
    ),
    "nothing": (
        {"query": torch.zeros(B, H, 0, D, dtype=torch.float64)},
        ValueError,
        r"^there is nothing to attend to in an empty tensor; got query \(2, 6, 0, 11\)",
    ),
    "meta": ({name: torch.zeros(B, H, Q, D, device="meta") for name in ("query", "key", "value")}, ValueError, "meta device"),
    "no mask": ({"mask": 3}, TypeError, "^a mask is a function"),
    "block mask of other rows": (
        {"mask": loom.block_mask(loom.lengths([3, 2, 1]), Q, K)},
        ValueError,
        "^the block mask is for 3 batch rows; the attention has 2",
    ),
    "no score_mod": ({"score_mod": 3}, TypeError, "score_mod"),
    "score_mod of other heads": ({"score_mod": loom.scores.alibi(3)}, ValueError, "is for 3 query heads; the attention has 6"),
    "scale in words": ({"scale": "1"}, TypeError, "^scale is a number, or None for .*; got '1'$"),
    "scale, a bool": ({"scale": True}, TypeError, "^scale is a number, or None for .*; got True$"),
    "scale, a tensor": ({"scale": torch.tensor(0.5)}, TypeError, "^scale is a number; by a tensor, .* multiply the query$"),
    "infinite scale": ({"scale": math.inf}, ValueError, "^scale is a finite number; got inf$"),
    "sinks, integers": ({"sinks": torch.ones(H, dtype=torch.int64)}, TypeError, r"^sinks is a floating point tensor \(H,\)"),
    "sinks of other heads": ({"sinks": torch.zeros(3)}, ValueError, r"^sinks has shape \(H,\) = \(6,\)"),
    "sinks elsewhere": ({"sinks": torch.zeros(H, device="meta")}, ValueError, "^the sinks are on meta and the attention on cpu$"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_attend_refuses(tensors, name):
    """In the same words, and before any work."""
    changed, error, words = REFUSED[name]
    given = dict(zip(("query", "key", "value"), tensors, strict=True)) | changed
    for function in (loom.reference, loom.attend):
        with pytest.raises(error, match=words):
            function(**given)


def test_a_mask_may_declare_longer_rows(tensors):
    """`reference` has no offset that would say that these are the first positions."""
    query, key, value = (tensor[:, :, :3] for tensor in tensors)
    mask = loom.lengths([5, 2])
    torch.testing.assert_close(
        loom.reference(query, key, value, mask)[0], loom.attend(query, key, value, mask, q_offset=0)
    )
