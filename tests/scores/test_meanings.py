"""What each score mod computes, against plain loops and the code of the papers; and the words of errors."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

import maskloom as loom
from tests.evidence import gather
from tests.scores.all_scores import B, H, K, Q, table
from tests.scores.test_laws import inputs, plain


def bent(score_mod, heads=1, q_len=3, kv_len=4, scores=None):
    """The score mod on scores of 0 (or given ones) of one batch row: (heads, q_len, kv_len)."""
    h, q_idx, kv_idx = torch.meshgrid(*map(torch.arange, (heads, q_len, kv_len)), indexing="ij")
    scores = torch.zeros(heads, q_len, kv_len) if scores is None else scores
    return score_mod(scores, torch.zeros_like(h), h, q_idx, kv_idx)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 16, 20, 32, 40, 71])
def test_alibi_has_the_slopes_of_the_papers_code(heads):
    slopes = loom.scores.alibi(heads).slopes
    assert slopes.dtype == torch.float32
    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]  # key 1, to which there is one step
    torch.testing.assert_close(slopes, theirs, rtol=1e-6, atol=0)


def test_alibi_penalises_distance():
    assert loom.scores.alibi(8).slopes.tolist() == [2.0**-i for i in range(1, 9)]
    drawn = [[0, 0.5, 1, 1.5], [-0.5, 0, 0.5, 1], [-1, -0.5, 0, 0.5]]
    assert bent(loom.scores.alibi(8))[0].tolist() == drawn
    shifted = loom.scores.shifted_score(loom.scores.alibi(8), q_offset=2)
    assert bent(shifted, q_len=2)[0].tolist() == [[-1, -0.5, 0, 0.5], [-1.5, -1, -0.5, 0]]


@pytest.mark.parametrize("heads", [3, 8, 12, 13])
def test_alibi_of_encoders_is_that_of_mpt(heads):
    """MPT's full bias, which is added to a row of distances: the same slopes, and both sides alike."""
    to_last_query = build_mpt_alibi_tensor(heads, 7)[:, 0]  # (heads, 7), the penalties of the keys up to the last query
    bias = bent(loom.scores.alibi(heads, symmetric=True), heads, 7, 7)
    torch.testing.assert_close(bias[:, -1], to_last_query, rtol=1e-6, atol=0)
    assert torch.equal(bias, bias.mT) and torch.equal(bias[:, 0].flip(-1), bias[:, -1])
    drawn = [[0, -0.5, -1, -1.5], [-0.5, 0, -0.5, -1], [-1, -0.5, 0, -0.5]]
    assert bent(loom.scores.alibi(8, symmetric=True))[0].tolist() == drawn
    slopes = loom.scores.alibi(heads).slopes.tolist()
    expected = [[[-slopes[h] * abs(q - k) for k in range(5)] for q in range(3)] for h in range(heads)]
    torch.testing.assert_close(bent(loom.scores.alibi(heads, symmetric=True), heads, 3, 5), torch.tensor(expected))


def test_softcap_holds_scores_inside_its_range():
    scores = torch.tensor([[[-1e9, -7.0, 0.01, 50.0]]])
    torch.testing.assert_close(bent(loom.scores.softcap(5), scores=scores), 5 * torch.tanh(scores / 5))
    assert bent(loom.scores.softcap(0.3), scores=scores).abs().max() == torch.tensor(0.3)


def test_relative_bias_reads_its_table_by_distance():
    learned = torch.arange(10.0).view(2, 5)
    expected = [[[float(5 * h + min(max(k - q, -2), 2) + 2) for k in range(7)] for q in range(5)] for h in range(2)]
    assert bent(loom.scores.relative_bias(learned), 2, 5, 7).tolist() == expected
    assert bent(loom.scores.relative_bias(learned))[0].tolist() == [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3]]


def test_relative_bias_of_buckets():
    score_mod = loom.scores.relative_bias(torch.tensor([[10.0, 20.0, 30.0]]), buckets=[2, 2, 1, 0, 1])
    assert bent(score_mod, 1, 4, 4)[0].tolist() == [
        [20, 10, 20, 20],
        [30, 20, 10, 20],
        [30, 30, 20, 10],
        [30, 30, 30, 20],
    ]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("number", "max_distance"), [(32, 128), (32, 256), (8, 20), (4, 3), (16, 1000), (64, 512)])
def test_buckets_are_those_of_t5(number, max_distance, bidirectional):
    buckets = loom.scores.t5_buckets(number, max_distance=max_distance, bidirectional=bidirectional)
    distance = torch.arange(-3 * max_distance, 3 * max_distance + 1)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, number, max_distance)
    assert torch.equal(buckets[distance.clamp(-max_distance, max_distance) + max_distance], expected)
    assert buckets.shape == (2 * max_distance + 1,)


def test_the_drawn_buckets():
    drawn = [3, 3, 3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7, 7, 7]
    assert loom.scores.t5_buckets(8, max_distance=8).tolist() == drawn
    drawn = [7, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert loom.scores.t5_buckets(8, max_distance=8, bidirectional=False).tolist() == drawn


@pytest.mark.parametrize("buckets", [None, [2, 2, 1, 0, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_reach_the_table(dtype, buckets):
    def make(learned):
        return loom.scores.compose(loom.scores.relative_bias(learned, buckets=buckets), loom.scores.softcap(3))

    gather(
        lambda q, k, v, learned: loom.attend(q, k, v, loom.causal, score_mod=make(learned)),
        *inputs(dtype),
        table=loom.causal.dense(Q, K),
        score_mod=make,
        learned=(table(5).to(dtype),),
    ).check()


def test_a_table_may_change_under_the_score_mod():
    parameter = torch.nn.Parameter(table(7))
    score_mod = loom.scores.relative_bias(parameter)
    first = loom.attend(*inputs(), score_mod=score_mod)
    parameter.data = table(7) + torch.arange(7)  # as Module.to and loading a checkpoint may do
    second = loom.attend(*inputs(), score_mod=score_mod)
    second.sum().backward()
    assert not torch.equal(first, second)
    fixed = loom.scores.relative_bias(parameter.detach())
    torch.testing.assert_close(second, loom.attend(*inputs(), score_mod=fixed))
    assert parameter.grad is not None and parameter.grad.any()
    with torch.no_grad():
        parameter.add_(torch.arange(7))  # as an optimiser does
    assert not torch.equal(second, loom.attend(*inputs(), score_mod=score_mod))


def test_compose_goes_from_left_to_right_and_is_flat():
    def double(score, b, h, q_idx, kv_idx):
        return 2 * score

    def add_key(score, b, h, q_idx, kv_idx):
        return score + kv_idx

    assert bent(loom.scores.compose(double, add_key), scores=torch.ones(1, 3, 4))[0, 0].tolist() == [2, 3, 4, 5]
    assert bent(loom.scores.compose(add_key, double), scores=torch.ones(1, 3, 4))[0, 0].tolist() == [2, 4, 6, 8]
    cap = loom.scores.softcap(2)
    assert loom.scores.compose(loom.scores.compose(double, cap), add_key) == loom.scores.compose(
        double, loom.scores.compose(cap, add_key)
    )
    assert loom.scores.compose(cap) is cap and loom.scores.compose(double) is double
    assert loom.scores.compose(cap, double) != loom.scores.compose(double, cap)


def test_decoding_and_tensor_parallel_ranks_see_a_part_of_the_whole():
    query, key, value = inputs()
    score_mod, mask = (
        loom.scores.compose(loom.scores.alibi(H), loom.scores.relative_bias(table(9))),
        loom.causal & loom.lengths([5, 13, 9]),
    )
    whole = loom.attend(query, key, value, mask, score_mod=score_mod)
    first, steps = 4, torch.tensor([3, 0, 7])
    part = loom.attend(
        query[:, first:],
        key[:, 1:].repeat_interleave(2, dim=1),  # a rank has the key heads of its query heads
        value[:, 1:].repeat_interleave(2, dim=1),
        loom.masks.shifted(mask, h_offset=first),
        score_mod=loom.scores.shifted_score(score_mod, h_offset=first),
    )
    torch.testing.assert_close(part, whole[:, first:])
    step = loom.attend(
        query[torch.arange(B), :, steps][:, :, None],
        key,
        value,
        loom.masks.shifted(mask, q_offset=steps),
        score_mod=loom.scores.shifted_score(score_mod, q_offset=steps),
    )
    torch.testing.assert_close(step[:, :, 0], whole[torch.arange(B), :, steps])
    assert loom.scores.shifted_score(score_mod) is score_mod


def attend(score_mod):
    return loom.attend(*inputs(), score_mod=score_mod)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loom.scores.alibi(0), ValueError, "n_heads is a number of heads, at least 1; got 0"),
        (lambda: loom.scores.alibi(8.0), TypeError, "n_heads is a number of heads, an int; got float: 8.0"),
        (lambda: loom.scores.softcap("5"), TypeError, "cap is a number, .*; got str: '5'"),
        (lambda: loom.scores.softcap(True), TypeError, "cap is a number, .*; got bool: True"),
        (lambda: loom.scores.softcap(-2), ValueError, "a finite number above 0; got -2"),
        (lambda: loom.scores.softcap(float("inf")), ValueError, "a finite number above 0; got inf"),
        (lambda: loom.scores.softcap(float("nan")), ValueError, "a finite number above 0; got nan"),
        (lambda: loom.scores.softcap(10**400), ValueError, "a finite number above 0; got 10000"),
        (lambda: loom.scores.relative_bias([[1.0]]), TypeError, "table is a floating-point tensor .*; got list"),
        (lambda: loom.scores.relative_bias(torch.ones(2, 3).long()), TypeError, "got torch.int64"),
        (lambda: loom.scores.relative_bias(torch.ones(3)), ValueError, r"shape \(heads, distances\); got \(3,\)"),
        (lambda: loom.scores.relative_bias(torch.ones(2, 8)), ValueError, r"odd number of columns, .* got shape \(2, 8\)"),
        (lambda: loom.scores.relative_bias(table(3), buckets=[0, 1]), ValueError, r"odd number of entries, .* shape \(2,\)"),
        (lambda: loom.scores.relative_bias(table(3), buckets=[0, 3, 1]), ValueError, "columns for 3 buckets, 0 to 2; .* up to 3"),
        (lambda: loom.scores.relative_bias(table(3), buckets=[0, -1, 1]), ValueError, "columns of the table, .*; got -1"),
        (lambda: loom.scores.relative_bias(table(3), buckets=[0.5]), TypeError, "buckets are integers; got torch.float32"),
        (lambda: loom.scores.t5_buckets(7), ValueError, "number is even, .*; got 7"),
        (lambda: loom.scores.t5_buckets(2), ValueError, "number is a number of buckets, at least 4; got 2"),
        (lambda: loom.scores.t5_buckets(32, max_distance=8), ValueError, "max_distance .* at least 9; got 8"),
        (lambda: loom.scores.compose(), ValueError, "one or more score_mods; got none"),
        (lambda: loom.scores.compose(plain, 3), TypeError, "a score_mod is a function .*; got int: 3"),
        (lambda: loom.scores.compose(loom.causal), TypeError, "causal takes 4; with four it looks like a mask_mod"),
        (lambda: loom.scores.shifted_score(loom.causal, q_offset=1), TypeError, "takes five arguments .*; causal takes 4"),
        (lambda: loom.scores.shifted_score(plain, h_offset=-1), ValueError, "h_offset is a head, at least 0; got -1"),
        (lambda: loom.scores.shifted_score(plain, q_offset=1.5), TypeError, "q_offset is a position, .*; got 1.5"),
        (lambda: attend(3), TypeError, "a score_mod is a function .*; got int: 3"),
        (lambda: attend(loom.causal), TypeError, "a mask_mod, which goes to mask="),
        (lambda: loom.scores.alibi(8, symmetric="no"), TypeError, "symmetric is True or False; got 'no'"),
        (lambda: attend(loom.scores.alibi(8)), ValueError, r"alibi\(8\) is for 8 query heads; the attention has 6"),
        (lambda: attend(loom.scores.compose(plain, loom.scores.relative_bias(table(3, 2)))), ValueError, "for 2 query heads; .* has 6"),
        (
            lambda: attend(loom.scores.shifted_score(loom.scores.alibi(8), h_offset=3)),
            ValueError,
            r"alibi\(8\) is for 8 query heads; heads up to number 8 are asked for",
        ),
        (
            lambda: attend(loom.scores.shifted_score(loom.scores.alibi(5), h_offset=torch.tensor(0))),
            ValueError,
            r"alibi\(5\) is for 5 query heads; heads up to number 5 are asked for",
        ),
        (lambda: attend(loom.scores.shifted_score(loom.scores.alibi(7), q_offset=1)), ValueError, "7 query heads; the attention has 6"),
        (lambda: attend(loom.scores.alibi(H).to("meta")), ValueError, "are on meta and the attention on cpu; .* score_mod.to"),
        (
            lambda: attend(loom.scores.compose(loom.scores.alibi(H), loom.scores.alibi(H).to("meta"))),
            ValueError,
            r"the score_mod's tensors lie on several devices \(cpu, meta\); move them with score_mod.to",
        ),
    ],
)  # fmt: skip
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_explain_checks_score_mods_too():
    query, key, value = inputs()
    assert loom.explain(query, key, value, score_mod=loom.scores.alibi(H)).backend == "sdpa"
    with pytest.raises(ValueError, match="the attention has 6"):
        loom.explain(query, key, value, score_mod=loom.scores.alibi(H + 1))
