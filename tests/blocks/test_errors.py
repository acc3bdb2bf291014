"""What a caller can get wrong when building, and what is said then."""

from typing import Any

import pytest
import torch

import maskloom as loom
from maskloom.masks.patterns.shift import shifted


def _mask(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def _score(score, b, h, q_idx, kv_idx):
    return score


def _raises(b, h, q_idx, kv_idx):
    raise ZeroDivisionError("inside")


TABLE = torch.zeros(3, 64, dtype=torch.bool)
ELSEWHERE = torch.zeros(5, device="meta")

WRONG: dict[str, Any] = {
    "not callable": (7, {}, TypeError, r"a mask is a function \(b, h, q_idx, kv_idx\) -> bool; got int: 7"),
    "three arguments": (lambda b, h, q: q > 0, {}, TypeError, "takes four arguments .* takes 3"),
    "a score_mod": (_score, {}, TypeError, "_score takes 5; with five it looks like a score_mod"),
    "a float": (lambda b, h, q, kv: q * 1.0, {}, TypeError, r"answers with one bool .* gave float32 of shape \(\)"),
    "a Python bool": (lambda b, h, q, kv: True, {}, TypeError, "gave bool True"),
    "several bools": (lambda b, h, q, kv: TABLE[b], {"batch": 3}, TypeError, r"gave bool of shape \(64,\)"),
    "decides in Python": (lambda b, h, q, kv: q >= kv if q > 3 else kv > 1, {}, TypeError, r"cannot use \.item\(\), int\(\), if"),
    "random": (lambda b, h, q, kv: torch.rand(()) < 0.5, {}, TypeError, "rand draws random numbers"),
    "a slice by an index": (lambda b, h, q, kv: TABLE[0, :q].any(), {}, TypeError, "nor slice by them"),
    "q_len": (_mask, {"q_len": 0}, ValueError, "q_len is a number of positions, at least 1; got 0"),
    "q_len, huge": (_mask, {"q_len": 10**400}, ValueError, "q_len is a number of positions, at most 1099511627776; got 1000"),
    "kv_len": (_mask, {"kv_len": -3}, ValueError, "kv_len is a number of positions, at least 1; got -3"),
    "block size": (_mask, {"block_size": 0}, ValueError, "the block size .* at least 1, or a pair .*; got 0"),
    "batch, huge": (_mask, {"batch": 10**400}, ValueError, r"batch \(B\) is a number of batch rows, at most 1099511627776; got 1000"),
    "heads, huge": (_mask, {"heads": 10**400}, ValueError, r"heads \(H\) is a number of heads, at most 1099511627776; got 1000"),
    "block size, huge": (_mask, {"block_size": 10**400}, ValueError, "the block size is at most 1099511627776 positions; got 1000"),
    "block of a half": (_mask, {"block_size": 0.5}, ValueError, r"or a pair \(Q, KV\); got 0.5"),
    "block triple": (_mask, {"block_size": (1, 2, 3)}, ValueError, r"got \(1, 2, 3\)"),
    "smaller batch": (loom.key_padding(TABLE), {"batch": 2}, ValueError, r"\(B\) is 2, and the mask reads a table for 3"),
    "longer than the table": (loom.key_padding(TABLE), {"kv_len": 65}, ValueError, "table with 64 positions, and there are 65 keys"),
    "shifted past the table": (loom.key_padding(TABLE), {"kv_offset": 1}, ValueError, "table with 64 positions, and there are 65 keys"),
    "positions past the table": (shifted(loom.key_padding(TABLE), kv_offset=9), {}, ValueError, "reads position 72 of a table with 64 positions"),
    "another device": (loom.key_padding(TABLE), {"device": "meta"}, ValueError, r"tensors lie on cpu, .* on meta; .* mask.to\('meta'\)"),
    "a global table elsewhere": (
        lambda b, h, q, kv: (q >= kv) & TABLE[2, kv], {"device": "meta"}, ValueError,
        r"a table of shape \(3, 64\) on cpu, and is asked on meta: move the table there, or pass device='cpu'",
    ),
    "a global list elsewhere": (lambda b, h, q, kv: (q >= ELSEWHERE).any(), {"device": "cpu"}, ValueError, r"\(5,\) on meta"),
    "a float offset": (_mask, {"q_offset": 1.5}, TypeError, "q_offset is a position, an int or .*; got 1.5"),
    "unknown number of rows": (lambda b, h, q, kv: q >= b, {}, ValueError, "pass batch= "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_says_what_is_wrong(name):
    mask, changed, kind, words = WRONG[name]
    options = {"q_len": 64, "kv_len": 64, **changed}
    with pytest.raises(kind, match=words):
        loom.block_mask(mask, options.pop("q_len"), options.pop("kv_len"), **options)


def test_an_error_inside_the_mask_comes_through_with_a_note():
    with pytest.raises(ZeroDivisionError, match="inside") as raised:
        loom.block_mask(_raises, 64, 64)
    assert "raised by the mask_mod _raises" in raised.value.__notes__[0]


def test_attention_says_where_a_global_table_is():
    def mask_mod(b, h, q_idx, kv_idx):
        return q_idx >= ELSEWHERE[kv_idx]

    with pytest.raises(ValueError, match=r"a table of shape \(5,\) on meta, and is asked on cpu") as raised:
        loom.attend(*torch.randn(3, 1, 1, 5, 16).unbind(0), mask_mod)
    assert "raised by the mask_mod mask_mod" in raised.value.__notes__[0]


def test_tables_that_a_mask_moves_itself_may_be_anywhere():
    numbers = [3, 1, 2, 0, 3]
    mask = loom.as_mask(lambda b, h, q, kv: torch.tensor(numbers).to(q.device)[q] >= TABLE[0].to(q.device)[kv])
    assert loom.create_block_mask(mask, 1, 1, 5, 5, "cpu").kv_num_blocks.tolist() == [[[1]]]


@pytest.mark.parametrize(
    "mask, words",
    [
        (loom.key_padding(TABLE), "B is None, .* pass B=3"),
        (lambda b, h, q, kv: q >= b, "B is None, .* pass B= their number"),
        (lambda b, h, q, kv: q >= h, "H is None, .* pass H= their number"),
    ],
)
def test_one_table_for_rows_that_differ_is_refused(mask, words):
    with pytest.raises(ValueError, match=words):
        loom.create_block_mask(mask, None, None, 64, 64, "cpu")
