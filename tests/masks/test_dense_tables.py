"""Tables of queries and keys: bool ones, and those that torch adds to scores."""

import math
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import maskloom as loom

VISIBLE = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.6
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def additive(dtype, hidden):
    return torch.zeros(5, 7, dtype=dtype).masked_fill(~VISIBLE, hidden)


@pytest.mark.parametrize("dtype", DTYPES)
def test_additive_masks(dtype):
    for hidden in (-math.inf, torch.finfo(dtype).min):
        assert torch.equal(loom.masks.from_dense(additive(dtype, hidden)).dense(5, 7)[0, 0], VISIBLE)
    assert torch.equal(loom.masks.from_dense(-additive(dtype, math.inf)).dense(5, 7)[0, 0], VISIBLE)  # -0.0 is 0


@pytest.mark.parametrize("made_in", DTYPES)
@pytest.mark.parametrize("given_in", DTYPES)
def test_a_mask_that_was_made_in_another_dtype(made_in, given_in):
    table = additive(made_in, torch.finfo(made_in).min).to(given_in)
    assert torch.equal(loom.masks.from_dense(table).dense(5, 7)[0, 0], VISIBLE)


def test_float8():
    for dtype in (torch.float8_e5m2, torch.float8_e4m3fn):
        table = additive(torch.float32, torch.finfo(dtype).min).to(dtype)
        assert torch.equal(loom.masks.from_dense(table).dense(5, 7)[0, 0], VISIBLE)


def test_lists_and_arrays():
    for given in (VISIBLE.tolist(), VISIBLE.numpy(), additive(torch.float32, -math.inf).numpy()):
        assert torch.equal(loom.masks.from_dense(given).dense(5, 7)[0, 0], VISIBLE)
    with pytest.raises(TypeError, match="table are bools, a tensor or a list of them"):
        loom.masks.from_dense("causal")


@pytest.mark.parametrize("value", [1.0, -1e9, -1e4, 0.5, math.nan, math.inf])
def test_floats_of_other_values(value):
    table = additive(torch.float32, -math.inf)
    table[3, 2] = value
    with pytest.raises(TypeError, match=rf"table is a float table, .* score_mod=.*; got {re.escape(f'{value:g}')}$"):
        loom.masks.from_dense(table)


def test_a_table_that_learns():
    with pytest.raises(TypeError, match=r"a float table that learns: .* score_mod="):
        loom.masks.from_dense(torch.zeros(5, 7, requires_grad=True))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (VISIBLE.to_sparse(), r"table is a sparse tensor; from_edges takes one, and its to_dense\(\)"),
        (VISIBLE.float().to_sparse_csr(), "a sparse tensor"),
        (torch.nested.nested_tensor([VISIBLE[:3], VISIBLE]), "a nested tensor; .* documents"),
        (torch.nested.nested_tensor([VISIBLE.float()], layout=torch.jagged), "a nested tensor"),
        (torch.quantize_per_tensor(VISIBLE.float(), 1.0, 0, torch.qint8), "a quantized tensor, torch.qint8"),
        (VISIBLE * 1j, "True = may attend; got torch.complex64$"),
        (VISIBLE.long(), r"got torch.int64. .* real\(attention_mask\)"),
        (VISIBLE[None].int(), r"got torch.int32; a table of 0 and 1 is table.bool\(\)"),
    ],
)
def test_words(table, words):
    with pytest.raises(TypeError, match=words):
        loom.masks.from_dense(table)
    for call in (
        lambda: loom.attend(*torch.zeros(3, 2, 3, 5, 8), table),
        lambda: loom.block_mask(table, 5, 7),
        lambda: loom.create_block_mask(table, None, None, 5, 7),
    ):
        with pytest.raises(TypeError, match=words.replace("table is", "the mask is")):
            call()


def test_values_are_looked_at_where_the_graph_runs():
    query = torch.zeros(1, 1, 5, 8)
    compiled = torch.compile(lambda q, table: loom.attend(q, q, q, table), backend="eager", fullgraph=True)
    table = torch.zeros(5, 5).masked_fill(~VISIBLE[:, :5], -math.inf)
    torch.testing.assert_close(compiled(query, table), loom.attend(query, query, query, table))
    with pytest.raises(RuntimeError, match="score_mod"):
        compiled(query, table + 1)


def test_fake_tensors():
    with FakeTensorMode():
        assert loom.masks.from_dense(torch.zeros(5, 7)).table.dtype == torch.bool
    assert loom.masks.from_dense(torch.zeros(5, 7, device="meta")).table.is_meta
