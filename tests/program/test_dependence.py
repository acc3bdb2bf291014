"""Which indices a mask depends on, and the sizes of the tables that they read."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.program.dependence import dependence_of
from maskloom.program.mask_program import dependence_on
from maskloom.program.record import record

LENS = torch.tensor([2, 3, 5])
ONE = torch.tensor([7])
BIAS = torch.zeros(3, 2, 11, dtype=torch.bool)


@pytest.mark.parametrize(
    ("function", "marks"),
    [
        (lambda b, h, q, k: q >= k, "q k"),
        (lambda b, h, q, k: k < LENS[b], "b k"),
        (lambda b, h, q, k: k < ONE[b], "k"),
        (lambda b, h, q, k: BIAS[b, h, k], "b h k"),
        (lambda b, h, q, k: BIAS[b][h][k], "b h k"),
        (lambda b, h, q, k: (LENS[b] > 2) & (q >= 0), "b q"),
        (lambda b, h, q, k: b.new_ones((), dtype=torch.bool), ""),
        (lambda b, h, q, k: torch.zeros_like(h, dtype=torch.bool), ""),
        (lambda b, h, q, k: b == h, "b h"),
        (lambda b, h, q, k: torch.where(h > 0, q >= k, k >= 0), "h q k"),
        (lambda b, h, q, k: torch.stack([q >= k, LENS[b] > k]).any(0), "b q k"),
        (lambda b, h, q, k: (q >= LENS).any(), "q"),
        (lambda b, h, q, k: LENS[(q + k) % 3] > 1, "q k"),
        (flex.and_masks(loom.causal, loom.prefix(3)), "q k"),
        (flex.or_masks(loom.lengths(LENS), loom.causal), "b q k"),
    ],
)
def test_marks(function, marks):
    names = {"b": "b", "h": "h", "q": "q_idx", "k": "kv_idx"}
    assert dependence_on(function, "cpu").marks == {names[mark] for mark in marks.split()}


def test_in_place_writes_and_views_carry_marks():
    def function(b, h, q_idx, kv_idx):
        result = torch.zeros(1, dtype=torch.bool)
        result.view(())[...] = True
        result |= b > 0
        return result.view(())

    assert dependence_on(function, "cpu").marks == {"b"}


def test_marks_survive_an_obstacle():
    def mask(b, h, q, kv):
        seen = q >= kv
        view = seen[None]
        seen &= h < 2
        return view[0]

    program = record(mask, "cpu")
    assert program.unsupported_reason is not None
    assert dependence_of(program).marks == {"h", "q_idx", "kv_idx"}


def test_sizes_are_those_of_tables_read_by_the_index_itself():
    reading = dependence_on(lambda b, h, q, k: BIAS[b, h, k] & (LENS[b.to(torch.int32)] > 0), "cpu")
    assert reading.sizes == {"b": {3}, "h": {2}, "q_idx": set(), "kv_idx": {11}}
    computed = dependence_on(lambda b, h, q, k: LENS[(b + 1) % 3] > 0, "cpu")
    assert computed.marks == {"b"}
    assert not computed.sizes["b"]


def test_a_table_of_one_row_is_for_one_row():
    assert dependence_on(loom.lengths([7]), "cpu").sizes["b"] == {1}
    with pytest.raises(ValueError, match=r"batch \(B\) is 3, and the mask reads a table for 1 batch rows"):
        loom.lengths([7]).dense(2, 5, batch=3)
    with pytest.raises(ValueError, match="a table with 1 positions, and there are 5 queries"):
        loom.documents([0]).dense(5, 5)
    with pytest.raises(ValueError, match="different numbers of batch rows: 1 and 3"):
        (loom.lengths([7]) & loom.lengths(LENS)).dense(2, 5)


def test_an_index_that_is_cast_to_bool_is_not_the_index():
    table = torch.tensor([True, False])
    reading = dependence_on(lambda b, h, q, k: table[b.bool().long()], "cpu")
    assert reading.marks == {"b"}
    assert not reading.sizes["b"]


def test_a_changed_copy_of_an_index_is_not_the_index():
    def function(b, h, q_idx, kv_idx):
        later = b.clone()
        later += 1
        return LENS[later - 1] > 0

    assert not dependence_on(function, "cpu").sizes["b"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda b, h, q, k: 1.0, "answers with one bool .* gave float 1.0"),
        (lambda b, h, q, k: q - k, "gave int64 of shape"),
        (lambda b, h, q, k: torch.ones(2, dtype=torch.bool), r"gave bool of shape \(2,\)"),
    ],
)
def test_an_answer_that_is_no_bool(function, words):
    with pytest.raises(TypeError, match=words):
        dependence_on(function, "cpu")


@pytest.mark.parametrize(
    ("function", "read_at"),
    [
        (lambda b, h, q, k: q >= k, set()),
        (lambda b, h, q, k: k < LENS[b], {"b"}),
        (lambda b, h, q, k: BIAS[b, h, k] & (q > 0), {"b", "h", "kv_idx"}),
        (lambda b, h, q, k: LENS[(q - k).abs() % 3] > h, {"q_idx", "kv_idx"}),
        (lambda b, h, q, k: LENS[:1][k * 0] > q, set()),  # a table of one entry
        (lambda b, h, q, k: LENS[LENS[h] % 3] > k, {"h"}),
    ],
)
def test_where_tables_are_read(function, read_at):
    assert dependence_on(function, "cpu").read_at == read_at
