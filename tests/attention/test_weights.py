"""attention_weights: probabilities that give the output of attention, with exact zeros where the mask hides."""

import pytest
import torch

import maskloom as loom
from maskloom.attention import weights as module

B, H, HKV, Q, K, D, E = 3, 4, 2, 7, 11, 5, 13


def sample(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


QUERY, KEY, VALUE = sample(B, H, Q, D), sample(B, HKV, K, D, seed=1), sample(B, HKV, K, E, seed=2)
TABLE = torch.rand(B, H, Q, K, generator=torch.Generator().manual_seed(3)) < 0.4
MASKS = {
    "none": None,
    "causal": loom.causal,
    "lengths": loom.causal & loom.lengths([5, 0, 7], [3, 2, 11]),
    "table": TABLE,
    "blocks": loom.block_mask(loom.window(back=2), Q, K, block_size=4),
    "function": lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 != h % 2,
}
SCORES = {"plain": {}, "score mod": {"score_mod": loom.scores.alibi(H), "scale": 0.3}}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", MASKS)
def test_they_give_the_output(name, score):
    options = SCORES[score]
    weights = loom.attention_weights(QUERY, KEY, MASKS[name], **options)
    expected = loom.reference(QUERY, KEY, VALUE, MASKS[name], **options)[0]
    torch.testing.assert_close(weights @ VALUE.repeat_interleave(H // HKV, 1), expected)
    assert weights.shape == (B, H, Q, K)


def test_hidden_pairs_are_exactly_zero():
    weights = loom.attention_weights(QUERY, KEY, TABLE)
    assert torch.equal(weights > 0, TABLE)
    sums, sees = weights.sum(-1), TABLE.any(-1)
    torch.testing.assert_close(sums, sees.double())
    hidden = loom.lengths([5, 0, 7], [3, 2, 11])
    assert not loom.attention_weights(QUERY, KEY, hidden)[1].any()


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("rows", [slice(2, 5), slice(None, 1), slice(-2, None), slice(3, 100)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_rows_are_those_of_the_whole(name, rows, chunk, monkeypatch):
    options = SCORES["score mod"]
    whole = loom.attention_weights(QUERY, KEY, MASKS[name], **options)
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.testing.assert_close(loom.attention_weights(QUERY, KEY, MASKS[name], rows=rows, **options), whole[:, :, rows])


def test_they_are_those_of_torchs_own_module():
    theirs = torch.nn.MultiheadAttention(D * H, H, batch_first=True, dtype=torch.float64)
    x = sample(B, Q, D * H)
    pads = loom.batches.pads_from_lengths(torch.tensor([5, 1, 7]), Q)
    _, expected = theirs(x, x, x, key_padding_mask=pads, average_attn_weights=False)
    projected = torch.nn.functional.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)
    query, key, _ = projected.view(B, Q, 3, H, D).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(loom.attention_weights(query, key, loom.key_padding(pads)), expected)


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_gradients(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    query, key = (tensor[:1, :, :3].clone().requires_grad_() for tensor in (QUERY, KEY))
    sinks = sample(H).requires_grad_()
    mask = loom.causal & loom.lengths([2])
    assert torch.autograd.gradcheck(
        lambda q, k, s: loom.attention_weights(q, k, mask, sinks=s), (query, key, sinks), fast_mode=True
    )


def test_sinks_take_their_share():
    sinks = sample(H, seed=5)
    weights = loom.attention_weights(QUERY, KEY, TABLE, sinks=sinks)
    expected = loom.reference(QUERY, KEY, VALUE, TABLE, sinks=sinks)[0]
    torch.testing.assert_close(weights @ VALUE.repeat_interleave(H // HKV, 1), expected)
    assert torch.equal(weights > 0, TABLE)


def test_a_sink_of_minus_infinity_is_none():
    """Also beside a query that sees nothing."""
    none = torch.full((H,), -torch.inf, dtype=QUERY.dtype, requires_grad=True)
    mask = loom.causal & loom.window(back=2) & ~loom.sinks(1)
    query = QUERY.clone().requires_grad_()
    weights = loom.attention_weights(query, KEY, mask, sinks=none)
    assert not weights[:, :, 0].any() and torch.equal(weights, loom.attention_weights(QUERY, KEY, mask))
    gradients = torch.autograd.grad(weights.square().sum(), (query, none))
    assert all(one.isfinite().all() for one in gradients)


def test_dtypes_and_autocast():
    exact = loom.attention_weights(QUERY, KEY, loom.causal)
    half = loom.attention_weights(QUERY.bfloat16(), KEY.bfloat16(), loom.causal)
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loom.attention_weights(QUERY.float(), KEY.float(), loom.causal), half)


def test_it_compiles_in_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(loom.attention_weights, backend="eager", fullgraph=True, dynamic=True)
    for q_len in (7, 5, 3):
        torch.testing.assert_close(
            compiled(QUERY[:, :, :q_len], KEY, loom.causal),
            loom.attention_weights(QUERY[:, :, :q_len], KEY, loom.causal),
        )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"key": KEY[:, :, :, :3]}, ValueError, "query and key have the same head dim"),
        (
            {"key": KEY.float()},
            ValueError,
            "^query and key have one dtype; got query torch.float64, key torch.float32$",
        ),
        ({"key": KEY[:1]}, ValueError, "^query and key have one batch size; got query [^v]*, key [^v]*$"),
        ({"mask": loom.block_mask(loom.causal, 5, 5)}, ValueError, r"\(5, 5\); the attention has \(7, 11\)"),
        ({"mask": TABLE[0, 0, 0]}, ValueError, "a tensor in place of a mask has shape"),
        ({"mask": 3}, TypeError, "a mask is a function"),
        ({"score_mod": loom.scores.alibi(3)}, ValueError, r"alibi\(3\) is for 3 query heads; the attention has 4"),
        ({"rows": 3}, TypeError, r"rows is slice\(start, stop\) of the queries; got 3"),
        ({"rows": slice(0, 7, 2)}, TypeError, r"got slice\(0, 7, 2\)"),
        ({"rows": slice(5, 2)}, ValueError, r"rows is a slice of 7 queries, one at least; got slice\(5, 2, None\)"),
        ({"sinks": torch.zeros(2)}, ValueError, r"sinks has shape \(H,\) = \(4,\)"),
        ({"scale": "1"}, TypeError, "scale is a number"),
    ],
)
def test_words(options, error, words):
    with pytest.raises(error, match=words):
        loom.attention_weights(**{"query": QUERY, "key": KEY, **options})
