"""Queries and heads that begin elsewhere than at 0: decoding, prefill in chunks, some of the heads."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.reference import reference
from tests.evidence import gather

B, H, HKV, L, D, E = 3, 4, 2, 17, 8, 5
STARTS = [0, 3, 11]


def inputs(*, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, H, L, D), (B, HKV, L, D), (B, HKV, L, E)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def pads():
    return torch.rand(B, L, generator=torch.Generator().manual_seed(5)) < 0.3


MASKS = {
    "causal": lambda: loom.causal,
    "causal & lengths": lambda: loom.causal & loom.lengths([5, 0, 17]),
    "window | sinks": lambda: loom.window(back=3) | loom.sinks(2),
    "padding": lambda: loom.padding(pads()) & loom.causal,
    "function": lambda: lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (kv_idx % 3 != h % 2),
    "everything": lambda: None,
}
SCORES = {"none": lambda: None, "alibi": lambda: loom.scores.alibi(H), "function": lambda: closer}


def closer(score, b, h, q_idx, kv_idx):
    return score - (q_idx - kv_idx) * 0.1 * b


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", MASKS)
def test_a_chunk_of_queries_is_rows_of_the_whole(name, score):
    mask, score_mod, (q, k, v) = MASKS[name](), SCORES[score](), inputs()
    whole, _ = reference(q, k, v, mask, score_mod=score_mod)
    for start, count in ((0, 2), (1, 1), (3, 7), (16, 1)):
        for q_offset in (start, torch.tensor(start), torch.tensor(start, dtype=torch.int32), torch.full((B,), start)):
            out = loom.attend(q[:, :, start : start + count], k, v, mask, score_mod=score_mod, q_offset=q_offset)
            torch.testing.assert_close(out, whole[:, :, start : start + count])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", MASKS)
def test_each_row_at_a_position_of_its_own(name, score):
    mask, score_mod, (q, k, v) = MASKS[name](), SCORES[score](), inputs()
    whole, _ = reference(q, k, v, mask, score_mod=score_mod)

    def chunks(tensor):
        return torch.stack([tensor[row, :, start : start + 5] for row, start in enumerate(STARTS)])

    out = loom.attend(chunks(q), k, v, mask, score_mod=score_mod, q_offset=torch.tensor(STARTS))
    torch.testing.assert_close(out, chunks(whole))


@pytest.mark.parametrize("score", SCORES)
def test_a_growing_cache(score):
    mask, score_mod, (q, k, v) = loom.window(back=7) & loom.lengths([5, 17, 11]), SCORES[score](), inputs()
    whole, _ = reference(q, k, v, mask, score_mod=score_mod)
    for at in range(L):
        keys, values = k[:, :, : at + 1], v[:, :, : at + 1]
        out = loom.attend(q[:, :, at : at + 1], keys, values, mask, score_mod=score_mod, q_offset=torch.tensor(at))
        torch.testing.assert_close(out, whole[:, :, at : at + 1])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("start", [3, torch.tensor(3), torch.tensor(STARTS)], ids=str)
def test_a_block_mask_has_its_offset_in_it_and_score_mod_gets_it(score, start):
    mask, score_mod, (q, k, v) = loom.causal & loom.lengths([5, 11, 17]), SCORES[score](), inputs()
    blocks = loom.block_mask(mask, 5, L, q_offset=start, block_size=(2, 3))
    out = loom.attend(q[:, :, :5], k, v, blocks, score_mod=score_mod, q_offset=start)
    expected = loom.attend(q[:, :, :5], k, v, mask, score_mod=score_mod, q_offset=start)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype):
    q, k, v = inputs(dtype=dtype)
    for start in (7, torch.tensor([0, 7, 5])):
        mask, bend = loom.masks.shifted(loom.causal, q_offset=start), loom.scores.shifted_score(closer, q_offset=start)
        gather(
            lambda *qkv, at=start: loom.attend(*qkv, loom.causal, score_mod=closer, q_offset=at),
            q[:, :, :5], k, v, table=mask.dense(5, L, batch=B), score_mod=bend,
        ).check()  # fmt: skip


def test_a_tensor_that_moves_on_is_read_anew():
    position, (q, k, v) = torch.tensor(2), inputs()
    first = loom.attend(q[:, :, :1], k, v, loom.causal, q_offset=position)
    position += 5
    assert not torch.equal(loom.attend(q[:, :, :1], k, v, loom.causal, q_offset=position), first)
    again = loom.attend(q[:, :, :1], k, v, loom.causal, q_offset=torch.tensor(2))
    assert torch.equal(again, first)


def test_queries_before_the_first_key():
    """As many keys as the last queries: a causal mask that ends in the corner."""
    q, k, v = inputs()
    out = loom.attend(q, k[:, :, :5], v[:, :, :5], loom.causal, q_offset=5 - L)
    assert not out[:, :, : L - 5].any()
    expected, _ = reference(q[:, :, L - 5 :], k[:, :, :5], v[:, :, :5], loom.causal)
    torch.testing.assert_close(out[:, :, L - 5 :], expected)


HEADED = {
    "per_head": lambda: loom.masks.per_head([loom.causal, loom.window(back=2), loom.everything, loom.prefix(3)]),
    "function": lambda: lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).abs() <= 2 * h,
}


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", HEADED)
def test_some_of_the_heads(name, first):
    """Rank 0 of two, which says 0, and rank 1: for masks and score mods that are made for all heads."""
    mask, score_mod, (q, k, v) = loom.as_mask(HEADED[name]()) & loom.lengths([5, 7, 11]), loom.scores.alibi(H), inputs()
    whole, _ = reference(q, k, v, mask, score_mod=score_mod)
    heads, kv_heads = slice(first, first + 2), slice(first // 2, first // 2 + 1)
    for h_offset in (first, torch.tensor(first)):
        for bend, expected in ((score_mod, whole), (None, reference(q, k, v, mask)[0])):
            out = loom.attend(q[:, heads], k[:, kv_heads], v[:, kv_heads], mask, score_mod=bend, h_offset=h_offset)
            torch.testing.assert_close(out, expected[:, heads])


q, k, v = inputs()
FOR_Q = pads()
FOUR = loom.masks.per_head([loom.causal, loom.everything, loom.causal, loom.everything])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"q_offset": True}, TypeError, "q_offset is a position, an int or int32 or int64 tensor; got True"),
        ({"q_offset": "3", "mask": None}, TypeError, "q_offset is a position, .* got '3'"),
        ({"q_offset": torch.tensor([1, 2])}, ValueError, "q_offset is for 2 batch rows; the attention has 3"),
        ({"q_offset": torch.arange(5), "mask": None, "score_mod": closer}, ValueError, "q_offset is for 5 batch rows"),
        ({"q_offset": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"one for each batch row, \(B,\); got shape"),
        ({"q_offset": 1, "mask": loom.padding(pads())}, ValueError, "a table with 17 positions, and there are 18 quer"),
        ({"q_offset": torch.tensor(0), "mask": loom.key_padding(pads()[:, :11])}, ValueError, "a table with 11 positions"),
        ({"h_offset": 0, "mask": loom.padding(pads()[:, :11])}, ValueError, "a table with 11 positions, and there are 17"),
        ({"q_offset": -1, "mask": lambda b, h, q, k: FOR_Q[b, q]}, ValueError, "table of positions, from 0 on; q_offset is -1"),
        ({"q_offset": 1, "mask": 3}, TypeError, "a mask is a function"),
        ({"h_offset": -1}, ValueError, "h_offset is a head, at least 0; got -1"),
        ({"h_offset": -1, "mask": None}, ValueError, "h_offset is a head, at least 0; got -1"),
        ({"h_offset": "1", "mask": loom.block_mask(loom.causal, L, L)}, TypeError, "h_offset is a head, .* got '1'"),
        ({"h_offset": 1.5}, TypeError, "h_offset is a head, an int or int32 or int64 tensor; got 1.5"),
        ({"h_offset": torch.tensor([1, 2])}, ValueError, r"one head for all batch rows; got shape \(2,\)"),
        ({"h_offset": 1, "mask": FOUR}, ValueError, "a table for 4 heads; heads up to number 4 are asked for"),
        ({"h_offset": 0, "mask": loom.masks.per_head(FOUR.masks[:3])}, ValueError, "for 3 heads; heads up to number 3 are"),
        ({"h_offset": 1, "score_mod": loom.scores.alibi(H)}, ValueError, r"alibi\(4\) is for 4 query heads; heads up to numb"),
    ],
)  # fmt: skip
def test_words(options, error, words):
    options = {"mask": loom.causal, **options}
    with pytest.raises(error, match=words):
        loom.attend(q, k, v, **options)
    with pytest.raises(error, match=words):
        loom.explain(q, k, v, **options)
