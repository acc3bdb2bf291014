"""What is done again from a list gives what it would give anew, and nothing is kept that could change or weigh much."""

import gc
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.blocks import classify, plan
from maskloom.blocks.ordered import to_block_mask
from maskloom.blocks.plan import Plan, planned, written_down
from maskloom.blocks.source import Source
from maskloom.masks import captured
from maskloom.masks.program import record
from maskloom.masks.reading import reading_of
from tests.blocks.random_masks import TABLES, differing, random_case, tables_of_torch

Q, K = 200, 300


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """Those of one test."""
    monkeypatch.setattr(plan, "_plans", type(plan._plans)())
    return plan._plans


def listed():
    return [kept for kept in plan._plans.values() if isinstance(kept, Plan)]


def check(mask, q_len=Q, kv_len=K):
    ours = loom.create_block_mask(mask, 3, 2, q_len, kv_len, "cpu", 32)
    theirs = torch_create_block_mask(mask, 3, 2, q_len, kv_len, "cpu", 32)
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in TABLES)


@settings(max_examples=200)
@given(st.randoms(use_true_random=False))
def test_any_mask_mod_is_decided_again_from_a_list(rnd):
    case = random_case(rnd)
    assume(tables_of_torch(case) is not None)
    held = captured.tensors(case.mask_mod)
    program = record(case.mask_mod, "cpu", held)
    assume(held and program.of_structure)
    source = Source(case.mask_mod, held, program.without(held), reading_of(program), torch.device("cpu"), "a key")
    grid = source.grid(case.q_len, case.kv_len, case.batch, case.heads, case.block)
    found = []

    def write(compute):
        results, written = written_down(compute, held, source.bare.constants)
        found.append(written)
        return results

    with torch.no_grad():
        classify._classified(source, grid, True, None, write)
        for tensor in held:  # the same entries, in another order: an index stays one
            tensor.copy_(tensor.flatten()[torch.randperm(tensor.numel())].view(tensor.shape))
        theirs = tables_of_torch(case)
        assume(theirs is not None)
        states = classify._classified(source, grid, True, None, lambda compute: found[0].run(held))
    assert differing(to_block_mask(states, case.mask_mod, grid), theirs) == []


MASKS = {
    "lengths": lambda n: loom.causal & loom.lengths(torch.randint(1, Q, (3,))),
    "padding": lambda n: loom.causal & loom.padding(torch.rand(3, K) < 0.3),
    "documents": lambda n: loom.documents((torch.arange(K) // (40 + n)).int()) & loom.causal,
    "keys": lambda n: loom.window(back=70) & loom.key_padding(torch.rand(3, K) < 0.3),
    "no tensor": lambda n: loom.window(back=50) & loom.causal,
}


@pytest.mark.parametrize("name", MASKS)
def test_new_tensors_of_one_structure_are_read_anew(name):
    for n in range(5):
        check(MASKS[name](n))
    assert len(listed()) == 1
    check(MASKS[name](1), Q + 32, K)
    assert len(listed()) == 1  # another length, seen once


def test_offsets_as_tensors_are_inputs():
    for offset in (0, 70, -9, 130):
        ours = loom.block_mask(loom.window(back=40), 50, 200, block_size=16, q_offset=torch.tensor(offset))
        theirs = loom.block_mask(loom.window(back=40), 50, 200, block_size=16, q_offset=offset)
        assert differing(ours, theirs) == []


def test_strides_and_places_in_memory_are_part_of_the_key():
    tables = [
        torch.rand(4, K) < 0.3,
        (torch.rand(K, 4) < 0.3).mT,
        (torch.rand(9, K) < 0.3)[4:8],
        torch.rand(4, 2 * K)[:, ::2] < 0.3,
    ]
    for pads in (pads for pads in tables for _ in range(4)):
        check(loom.padding(pads[:3]) & loom.causal)
    assert len(listed()) == 3  # the last is contiguous like the first: a comparison made it


def test_states_that_are_kept_are_not_written_into():
    masks = [loom.block_mask(loom.window(back=50), Q, K, block_size=32) for _ in range(4)]
    (kept,) = listed()
    before = kept.results[0].clone()
    for blocks in masks:
        for name in TABLES:
            getattr(blocks, name).zero_()
    assert torch.equal(kept.results[0], before)
    check(loom.window(back=50))


def test_tensors_of_a_mask_are_not_kept():
    pads = torch.rand(3, K) < 0.3
    for _ in range(3):
        loom.block_mask(loom.padding(pads), K, K, block_size=32)
    gone = weakref.ref(pads)
    del pads
    gc.collect()
    assert listed() and gone() is None


def test_few_bytes_are_kept(monkeypatch):
    monkeypatch.setattr(plan, "MOST_BYTES", 200)
    for back in range(40, 60):
        for _ in range(3):
            loom.block_mask(loom.window(back=back), Q, K, block_size=32)
    assert 0 < sum(kept.nbytes for kept in listed()) <= 200
    monkeypatch.setattr(plan, "MOST_BYTES_EACH", 10)
    for _ in range(3):
        loom.block_mask(loom.window(back=7), Q, K, block_size=32)
    assert plan._plans[next(reversed(plan._plans))] is False


def test_nothing_is_kept_where_nothing_lasts():
    def build():
        return loom.block_mask(loom.causal & loom.lengths([5, 70, 200]), Q, K, block_size=32).kv_num_blocks

    with torch.inference_mode():
        for _ in range(3):
            build()
    for _ in range(3):
        torch.func.grad(lambda x: (x * build().sum()).sum())(torch.ones(3))
    assert not plan._plans


def test_masks_of_plain_functions_are_decided_anew():
    reach = [3]
    for reach[0] in (3, 3, 3, 50):
        check(loom.causal & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < reach[0]))
    assert not plan._plans


# -- the list itself ---------------------------------------------------------------------------------------------------


def test_operations_run_on_other_inputs():
    def compute(table, index):
        rows = table[index].unflatten(-1, (2, 3)).mT
        low, high = torch.aminmax(rows, dim=-1)
        first, second = (low + torch.arange(3)).unbind(1)[:2]
        return first * 2, torch.cat([high, second[:, None].expand(2, 3)]), torch.ones(3)

    inputs = [torch.randn(4, 6), torch.tensor([0, 3])]
    _, written = written_down(lambda: compute(*inputs), inputs)
    others = [torch.randn(4, 6), torch.tensor([2, 2])]
    for ours, theirs in zip(written.run(others), compute(*others), strict=True):
        assert torch.equal(ours, theirs)


def test_views_are_one_step_and_repetitions_none():
    table = torch.randn(4, 6)

    def compute():
        return (table.mT.unsqueeze(0)[..., 1:3].exp() + table.mT.unsqueeze(0)[..., 1:3].exp(),)

    _, written = written_down(compute, [table])
    aten = torch.ops.aten
    assert [call.op for call in written.calls] == [torch.as_strided, aten.exp.default, aten.add.Tensor]
    other = torch.randn(4, 6)
    assert torch.equal(written.run([other])[0], 2 * other.mT[None, :, 1:3].exp())


def test_lists_of_one_are_lists():
    table = torch.randn(1, 3)
    _, written = written_down(lambda: tuple(torch.unbind_copy(table)), [table])
    assert torch.equal(written.run([table + 1])[0], table[0] + 1)


def test_numbers_are_told_apart_by_type_and_sign():
    table = torch.tensor([1, 2])

    def compute():
        return (table * 2, table * 2.0, table * True)

    _, written = written_down(compute, [table])
    assert [result.dtype for result in written.run([table])] == [torch.int64, torch.float32, torch.int64]
    _, written = written_down(lambda: (1 / (table * 0.0), 1 / (table * -0.0)), [table])
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
    results, written = written_down(lambda: (compute(table),), [table])
    assert written is None and torch.equal(results[0], compute(table))
    for _ in range(3):
        assert torch.equal(planned("key", [table], lambda: (compute(table),))[0], compute(table))
    assert plan._plans["key"] is False


def test_one_tensor_as_two_inputs_has_no_list():
    table = torch.randn(2)
    assert written_down(lambda: (table + table,), [table, table])[1] is None


def test_constants_may_be_read():
    table = torch.randn(2)
    _, written = written_down(lambda: (table + before_it,), [table], [before_it])
    assert torch.equal(written.run([torch.zeros(2)])[0], before_it)
