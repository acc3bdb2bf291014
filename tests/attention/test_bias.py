"""A mask and a score_mod that only adds, as one float table for torch's own attention."""

import pytest
import torch

import maskloom as loom
from maskloom.attention import bias
from tests.evidence import gather

B, H, HKV, Q, K, D = 3, 6, 2, 13, 17, 8
MASK = loom.causal & loom.lengths([13, 0, 7], [17, 5, 11])
TABLE = torch.linspace(-1, 1, H * 7).reshape(H, 7)
SCORES = {
    "alibi": loom.scores.alibi(H),
    "relative_bias": loom.scores.relative_bias(TABLE),
    "shifted": loom.scores.shifted_score(loom.scores.alibi(11), q_offset=torch.tensor([4, 0, 7]), h_offset=5),
    "a function": lambda score, b, h, q, k: score + 300 * TABLE[h, (q - k) % 7],
    "for all queries": lambda score, b, h, q, k: score + h,
    "-inf": lambda score, b, h, q, k: torch.where(k % 3 == q % 3, score, -torch.inf),
    "itself": lambda score, b, h, q, k: score,
}


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, H, Q, D), (B, HKV, K, D), (B, HKV, K, D)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [None, loom.causal, MASK, loom.block_mask(MASK, Q, K, block_size=(4, 8))])
@pytest.mark.parametrize("name", SCORES)
def test_it_is_near_the_truth(name, mask, dtype):
    how = {"score_mod": SCORES[name]}
    table = None if mask is None else loom.as_mask(MASK if mask is not loom.causal else mask).dense(Q, K, batch=B)
    assert loom.explain(*inputs(dtype), mask, **how).backend == "sdpa"
    gather(lambda *qkv: loom.attend(*qkv, mask, **how), *inputs(dtype), table=table, **how).check()


def test_explain_says_it():
    assert str(loom.explain(*inputs(), MASK, score_mod=SCORES["alibi"])).splitlines()[:2] == [
        "backend: sdpa (score_mod only adds to the scores: with the mask it is a float table for torch's own attention)",
        "skips: nothing, since mask and score_mod go in as a table",
    ]


def refusal(score_mod, **how):
    return loom.explain(*inputs(), MASK, score_mod=score_mod, **how).ruled_out["sdpa"]


def test_what_has_no_such_table(monkeypatch):
    not_a_sum = "score_mod is not known to only add to the score, by what does not depend on it"
    assert refusal(loom.scores.softcap(3.0)) == not_a_sum
    assert refusal(lambda score, b, h, q, k: score * 2) == not_a_sum
    learned = TABLE.clone().requires_grad_()
    for score_mod in (loom.scores.relative_bias(learned), lambda score, b, h, q, k: score + learned[h, 0]):
        assert refusal(score_mod).startswith("score_mod learns, and torch's own attention is slow")
        with torch.no_grad():
            assert loom.explain(*inputs(), MASK, score_mod=score_mod).backend == "sdpa"
    nbytes = B * H * Q * K * 4
    monkeypatch.setattr(bias, "MOST_BYTES", nbytes)
    assert loom.explain(*inputs(), MASK, score_mod=SCORES["alibi"]).backend == "sdpa"
    monkeypatch.setattr(bias, "MOST_BYTES", nbytes - 1)
    assert refusal(SCORES["alibi"]).startswith("what score_mod adds is a table of 0 MiB; it takes")


def test_a_second_derivative_says_who_has_it():
    tensors = [tensor.requires_grad_() for tensor in inputs(torch.float64)]
    out = loom.attend(*tensors, MASK, score_mod=SCORES["alibi"])
    (gradient, *_) = torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match=r"'sdpa' has no second derivative, .*backend='reference'\) has every"):
        gradient.sum().backward()


def test_a_mask_that_is_not_kept(monkeypatch):
    expected = loom.attend(*inputs(), MASK, score_mod=SCORES["alibi"])
    monkeypatch.setattr("maskloom.attention.tables.KEPT_BYTES", 0)
    again = loom.causal & loom.lengths([13, 0, 7], [17, 5, 11])
    torch.testing.assert_close(loom.attend(*inputs(), again, score_mod=SCORES["alibi"]), expected)


def test_a_table_of_the_score_mod_is_not_written_over():
    held = torch.ones(B, H, Q, K)
    loom.attend(*inputs(), MASK, score_mod=lambda score, b, h, q, k: score + held[b, h, q, k])
    assert (held == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e3, 5e3, 1e5, 1e9, "finfo.min"])
def test_rows_of_large_numbers_are_as_on_other_backends(size, dtype):
    """Beside ``finfo.min`` a score is rounded away, and a row of nothing else gives the mean of all values."""
    least = -torch.finfo(dtype).max if size == "finfo.min" else -size
    rows = torch.zeros(Q, K, dtype=dtype)
    rows[0] = least
    rows[1] = least
    rows[1, 3:] = least / 2
    rows[2, :5] = least
    rows[3] = -least / 4
    inside = {"score_mod": lambda score, b, h, q, k: score + rows[q, k]}
    given = inputs(dtype)
    assert loom.explain(*given, None, **inside).backend == "sdpa"
    out = loom.attend(*given, None, **inside)
    close = {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps + min(abs(least), 4096) * torch.finfo(dtype).eps}
    for backend in ("reference", "sliced"):
        torch.testing.assert_close(out, loom.attend(*given, None, backend=backend, **inside), **close)
    key, value = (tensor.repeat_interleave(H // HKV, 1) for tensor in given[1:])
    by_torch = torch.nn.functional.scaled_dot_product_attention(given[0], key, value, attn_mask=rows)
    torch.testing.assert_close(out, by_torch, **close)
