"""Rows taken out of a tensor and put into one of zeros."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from maskloom.batches.rows import picked, placed

PLACES = torch.tensor([6, 0, 3, 4])
SIZE = 7


@pytest.mark.parametrize("features", [(), (2,), (16,), (2, 3), (5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_each_row_has_its_place(features, dtype):
    rows = torch.randn(4, *features).to(dtype)
    batch = placed(rows, PLACES, SIZE)
    assert batch.dtype == dtype and torch.equal(picked(batch, PLACES), rows)
    elsewhere = torch.tensor([1, 2, 5])
    assert not batch[elsewhere].bool().any()


@pytest.mark.parametrize("features", [(3,), (2, 2)])
def test_gradients_of_every_order(features):
    rows = torch.randn(4, *features, dtype=torch.float64, requires_grad=True)
    batch = torch.randn(SIZE, *features, dtype=torch.float64, requires_grad=True)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda rows: placed(rows, PLACES, SIZE), rows)
        assert check(lambda batch: picked(batch, PLACES), batch)


def test_under_transforms_and_in_a_graph():
    rows = torch.randn(3, 4, 8)
    expected = torch.stack([placed(one, PLACES, SIZE) for one in rows])
    assert torch.equal(torch.func.vmap(lambda one: placed(one, PLACES, SIZE))(rows), expected)
    _, change = torch.func.jvp(lambda one: picked(placed(one, PLACES, SIZE), PLACES), (rows[0],), (rows[1],))
    assert torch.equal(change, rows[1])

    def both(one):
        return picked(placed(one, PLACES, SIZE) * 2, PLACES)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    given, same = (rows[0].clone().requires_grad_() for _ in range(2))
    outs = both(given), compiled(same)
    for out in outs:
        out.square().sum().backward()
    assert torch.equal(*outs) and torch.equal(given.grad, same.grad)


def test_writes_into_what_was_placed_are_allowed():
    rows = torch.randn(4, 16, requires_grad=True)
    batch = placed(rows, PLACES, SIZE)
    batch.mul_(2)
    batch.sum().backward()
    assert torch.equal(rows.grad, torch.full_like(rows, 2))
