"""A list of operations does to other tensors what was done to the first, and there is none where none can."""

import pytest
import torch

from maskloom.blocks.replay.recorder import equal_steps, record_replay


def test_operations_run_on_other_inputs():
    def compute(table, index):
        rows = table[index].unflatten(-1, (2, 3)).mT
        low, high = torch.aminmax(rows, dim=-1)
        first, second = (low + torch.arange(3)).unbind(1)[:2]
        return first * 2, torch.cat([high, second[:, None].expand(2, 3)]), torch.ones(3)

    inputs = [torch.randn(4, 6), torch.tensor([0, 3])]
    _, written = record_replay(lambda: compute(*inputs), inputs)
    others = [torch.randn(4, 6), torch.tensor([2, 2])]
    for ours, theirs in zip(written.run(others), compute(*others), strict=True):
        assert torch.equal(ours, theirs)


def test_views_are_one_step_and_repetitions_none():
    table = torch.randn(4, 6)

    def compute():
        return (table.mT.unsqueeze(0)[..., 1:3].exp() + table.mT.unsqueeze(0)[..., 1:3].exp(),)

    _, written = record_replay(compute, [table])
    aten = torch.ops.aten
    assert [call.op for call in written.calls] == [torch.as_strided, aten.exp.default, aten.add.Tensor]
    other = torch.randn(4, 6)
    assert torch.equal(written.run([other])[0], 2 * other.mT[None, :, 1:3].exp())


ENDS = torch.tensor([[0, 3], [4, 7]])


@pytest.mark.parametrize(
    ("indices", "is_view"),
    [
        ((torch.arange(3)[:, None, None], ENDS), True),
        ((torch.tensor([2, 0])[:, None, None], ENDS), False),
        ((None, ENDS - 8), True),
        ((torch.tensor([0, 0, 2]),), False),
        ((torch.tensor([1, 1]),), True),
        ((torch.tensor(1), torch.tensor([7])), True),
        ((torch.tensor([0, 1, 2]), torch.tensor([7, 5, 6])), False),
        ((torch.tensor([1, 0]),), False),
    ],
    ids=["ends of tiles", "rows backwards", "from the end", "unequal", "twice", "one", "in disorder", "backwards"],
)
def test_reads_at_equal_steps_are_views(indices, is_view):
    memory = torch.randn(5, 20)
    table = memory[1:4, ::2][:, 1:9]
    steps = equal_steps(table, indices)
    assert (steps is not None) == is_view
    if steps is not None:
        assert torch.equal(table.as_strided(*steps), torch.ops.aten.index(table, list(indices)))


def test_ends_of_tiles_are_read_as_views():
    table = torch.randn(3, 8)
    _, written = record_replay(lambda: (table[:, ENDS] * 2,), [table], [ENDS], may_wait=True)
    assert [call.op for call in written.calls] == [torch.as_strided, torch.ops.aten.mul.Tensor]
    assert torch.equal(written.run([table + 1])[0], (table + 1)[:, ENDS] * 2)


def test_a_device_that_may_not_be_waited_for_is_not_asked_for_indices():
    table, at = torch.randn(4), torch.arange(2)
    _, written = record_replay(lambda: (table[at] * 2,), [table], [at])
    assert written.calls[0].op is torch.ops.aten.index.Tensor


def test_lists_of_one_are_lists():
    table = torch.randn(1, 3)
    _, written = record_replay(lambda: tuple(torch.unbind_copy(table)), [table])
    assert torch.equal(written.run([table + 1])[0], table[0] + 1)


def test_numbers_are_told_apart_by_type_and_sign():
    table = torch.tensor([1, 2])

    def compute():
        return (table * 2, table * 2.0, table * True)

    _, written = record_replay(compute, [table])
    assert [result.dtype for result in written.run([table])] == [torch.int64, torch.float32, torch.int64]
    _, written = record_replay(lambda: (1 / (table * 0.0), 1 / (table * -0.0)), [table])
    assert [result[0].item() for result in written.run([table])] == [torch.inf, -torch.inf]


before_it = torch.ones(2)


@pytest.mark.parametrize(
    "compute",
    [
        lambda table: table.clone().add_(1),
        lambda table: table + table.sum().item(),
        lambda table: table + len(table.nonzero()),
        lambda table: table + before_it,
        lambda table: torch.zeros(2).fill_(3.0),
    ],
    ids=["writes", "asks", "counts", "reads what was there before", "writes into a constant"],
)
def test_what_no_list_can_do_again_has_none(compute):
    table = torch.randn(2)
    results, written = record_replay(lambda: (compute(table),), [table])
    assert written is None and torch.equal(results[0], compute(table))


def test_one_tensor_as_two_inputs_has_no_list():
    table = torch.randn(2)
    assert record_replay(lambda: (table + table,), [table, table])[1] is None


def test_constants_may_be_read():
    table = torch.randn(2)
    _, written = record_replay(lambda: (table + before_it,), [table], [before_it])
    assert torch.equal(written.run([torch.zeros(2)])[0], before_it)


def test_a_factor_has_its_place():
    table = torch.randn(2)
    _, written = record_replay(
        lambda: (torch.ops.aten.sub.Scalar(table, 3, 2) + torch.add(table, 1, alpha=5),), [table]
    )
    assert torch.equal(written.run([table])[0], (table - 6) + (table + 5))
