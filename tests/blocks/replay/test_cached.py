"""What is done again from a list gives what it would give anew, and nothing is kept that could change or weigh much."""

import gc
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.blocks import classify, construct
from maskloom.blocks.grid import Wanted, grid_of
from maskloom.blocks.index_tables import to_block_mask
from maskloom.blocks.replay import cached
from maskloom.blocks.replay.plan import ReplayPlan
from maskloom.blocks.replay.recorder import record_replay
from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.program.dependence import dependence_of
from maskloom.program.mask_program import MaskProgram
from maskloom.program.record import record
from tests.blocks.random_masks import TABLES, differing, random_case, tables_of_torch

Q, K = 200, 300


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """Those of one test; finished block masks are not kept."""
    monkeypatch.setattr(construct, "_constants", LRU(0))
    monkeypatch.setattr(cached, "_plans", LRU(256, most_bytes=1 << 26, nbytes=cached._bytes_of))
    return cached._plans


def listed():
    return [kept for kept in cached._plans.entries().values() if isinstance(kept, ReplayPlan)]


def check(mask, q_len=Q, kv_len=K):
    ours = loom.create_block_mask(mask, 3, 2, q_len, kv_len, "cpu", 32)
    theirs = torch_create_block_mask(mask, 3, 2, q_len, kv_len, "cpu", 32)
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in TABLES)


@settings(max_examples=200)
@given(st.randoms(use_true_random=False))
def test_any_mask_mod_is_decided_again_from_a_list(rnd):
    case = random_case(rnd)
    assume(tables_of_torch(case) is not None)
    held = captures.tensors(case.mask_mod)
    program = record(case.mask_mod, "cpu", held)
    assume(held and program.of_structure)
    source = MaskProgram(
        case.mask_mod, held, program.without(held), dependence_of(program), torch.device("cpu"), "a key"
    )
    grid = grid_of(source.dependence, Wanted(case.q_len, case.kv_len, case.batch, case.heads, case.block))
    found = []

    def write(compute):
        results, written = record_replay(compute, held, source.bare.constants, may_wait=True)
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
    """Neither by the list of a kind of block mask, nor by that of its tiles alone."""
    pads = torch.rand(3, K) < 0.3
    for _ in range(3):
        loom.block_mask(loom.padding(pads), K, K, block_size=32)
        loom.create_block_mask(loom.padding(pads), 3, None, K, K, BLOCK_SIZE=32)
    gone = weakref.ref(pads)
    del pads
    gc.collect()
    assert listed() and gone() is None


def test_few_bytes_are_kept(monkeypatch):
    monkeypatch.setattr(cached._plans, "most_bytes", 200)
    for back in range(40, 60):
        for _ in range(3):
            loom.block_mask(loom.window(back=back), Q, K, block_size=32)
    assert 0 < sum(kept.nbytes for kept in listed()) <= 200
    monkeypatch.setattr(cached, "MOST_BYTES_EACH", 10)
    for _ in range(3):
        loom.block_mask(loom.window(back=7), Q, K, block_size=32)
    assert [*cached._plans.entries().values()][-1] == "no plan"


def test_nothing_is_kept_where_nothing_lasts():
    def build():
        return loom.block_mask(loom.causal & loom.lengths([5, 70, 200]), Q, K, block_size=32).kv_num_blocks

    with torch.inference_mode():
        for _ in range(3):
            build()
    for _ in range(3):
        torch.func.grad(lambda x: (x * build().sum()).sum())(torch.ones(3))
    assert not len(cached._plans)


def test_masks_of_plain_functions_are_decided_anew():
    reach = [3]
    for reach[0] in (3, 3, 3, 50):
        check(loom.causal & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < reach[0]))
    assert not len(cached._plans)


def test_what_has_no_list_is_computed_each_time():
    table = torch.randn(2)
    for _ in range(4):
        assert torch.equal(cached.replay("key", [table], lambda: (table.clone().add_(1),))[0], table + 1)
    assert cached._plans.get("key") == "no plan"
