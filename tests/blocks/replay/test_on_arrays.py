"""Plans on NumPy arrays give torch's bits, and there are none where NumPy could differ."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

import maskloom as loom
from maskloom.blocks import construct
from maskloom.blocks.replay import cached
from maskloom.blocks.replay.on_arrays import MOST_VALUES
from maskloom.blocks.replay.plan import ReplayPlan
from maskloom.blocks.replay.recorder import record_replay
from maskloom.core.cache import LRU
from tests.catalog import grids, sequences

MASKS = sequences.MASKS | grids.MASKS
NARROW = torch.tensor([[-128, -1, 0], [1, 5, 127]], dtype=torch.int8)
ROWS = torch.tensor([1, -1, 0])


def calls_of_torch(run):
    """The functions of torch that compute tensors in a call."""

    class Listed(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            self.names += [func.__name__] * isinstance(found, torch.Tensor)
            return found

    with Listed() as listed:
        run()
    return listed.names


def plan_of(compute, *inputs):
    return record_replay(lambda: (compute(*inputs),), inputs, [ROWS])[1]


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + x,
        lambda x: x - 100,
        lambda x: x * 5,
        lambda x: x[:, :, None] <= x[:, None],
        lambda x: torch.where(x > 0, x, x * 2),
        lambda x: x.amin(-1) + x.amax((1,)),
        lambda x: x.masked_fill(x == 5, -7),
        lambda x: torch.cat([x, x[:1]], 0),
        lambda x: (x > 0).view(torch.int8) + (x > 1),
        lambda x: x.long() * 300,
        lambda x: x.mT.clone(memory_format=torch.contiguous_format),
        lambda x: ~x & (x | 3) ^ x,
        lambda x: x[ROWS],
        lambda x: ((x > 0) | (x < -5)).any(),
    ],
)
def test_a_plan_on_arrays_gives_the_bits_of_torch(compute):
    plan = plan_of(compute, NARROW)
    assert plan.on_arrays is not None
    for table in (NARROW, NARROW.flip(0), torch.full_like(NARROW, -128), torch.zeros_like(NARROW)):
        (ours,), theirs = plan.run([table]), compute(table)
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
        assert calls_of_torch(lambda table=table: plan.run([table])) == []


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 0.5,
        lambda x: x >= 0.5,
        lambda x: x // 3,
        lambda x: x[(x[0, :2] > 0).long()],
        lambda x: torch.add(x, x, alpha=3),
        lambda x: x == x.long().amax((0, 1)),
        lambda x: x.sum() + x.sum(),
        lambda x: x.unbind(0)[0].sort()[0],
    ],
    ids=["float", "compared with a float", "division", "read", "factor", "no dims", "one number", "not known"],
)
def test_what_numpy_could_do_otherwise_stays_with_torch(compute):
    plan = plan_of(compute, NARROW)
    assert plan.on_arrays is None
    assert torch.equal(plan.run([NARROW.flip(0)])[0], compute(NARROW.flip(0)))


def test_floats_and_large_tensors_stay_with_torch():
    assert plan_of(lambda x: x > 0, torch.randn(3)).on_arrays is None
    assert plan_of(lambda x: x > 0, torch.arange(MOST_VALUES)).on_arrays is not None
    assert plan_of(lambda x: x > 0, torch.arange(MOST_VALUES + 1)).on_arrays is None


def test_gaps_in_memory_stay_with_torch():
    table = torch.arange(40).view(5, 8)[:, ::3]
    plan = plan_of(lambda x: x.mT > x[0, 1], table)
    assert torch.equal(plan.run([table])[0], table.mT > table[0, 1])


def test_a_subclass_is_left_to_torch():
    class Counted(torch.Tensor):
        pass

    plan = plan_of(lambda x: x > 0, NARROW)
    assert calls_of_torch(lambda: plan.run([torch.nn.Parameter(NARROW.clone(), requires_grad=False)])) != []
    assert torch.equal(plan.run([NARROW.clone().as_subclass(Counted)])[0].as_subclass(torch.Tensor), NARROW > 0)


@pytest.mark.parametrize("name", MASKS)
def test_masks_replayed_on_arrays_have_the_same_states(name, monkeypatch):
    monkeypatch.setattr(cached, "_plans", LRU(8))
    monkeypatch.setattr(construct, "_constants", LRU(0))
    factory, q_len, kv_len = MASKS[name]
    heads = None if "heads" in name else 2
    for _ in range(3):
        blocks = loom.block_mask(factory(), q_len, kv_len, batch=3, heads=heads, block_size=4)
    for plan in [found for found in cached._plans.entries().values() if isinstance(found, ReplayPlan)]:
        monkeypatch.setattr(cached, "_plans", LRU(8))
        anew = loom.block_mask(factory(), q_len, kv_len, batch=3, heads=heads, block_size=4)
        assert plan.inputs == 0 or torch.equal(blocks.kv_indices, anew.kv_indices)
        assert torch.equal(blocks.kv_num_blocks, anew.kv_num_blocks)


def test_a_block_mask_of_documents_computes_nothing_with_torch(monkeypatch):
    mask = loom.causal & loom.documents(torch.arange(1024) // 100)
    for _ in range(3):
        loom.block_mask(mask, 1024, 1024)
    assert calls_of_torch(lambda: loom.block_mask(mask, 1024, 1024)) == []
