"""Operations in fewer launches give the same bits in the same places. On a CPU they are joined here because the tests ask for it."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.blocks import construct
from maskloom.blocks.replay import cached, kinds, recorder
from maskloom.blocks.replay.recorder import record_replay
from maskloom.core.cache import LRU
from tests.blocks.random_masks import differing, random_case, tables_of_torch
from tests.catalog import grids, sequences

MASKS = sequences.MASKS | grids.MASKS
aten = torch.ops.aten
FLAGS = torch.tensor([[True, False, True], [False, False, True]])
SMALL = torch.tensor([[-128, 0, 127], [1, 5, -1]], dtype=torch.int8)
WIDE = torch.tensor([[300, 0, -(1 << 40)]])
ONE = torch.tensor(5)


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    monkeypatch.setattr(recorder, "_are_launched", lambda values: True)
    monkeypatch.setattr(recorder, "on_arrays", lambda calls, values: None)
    monkeypatch.setattr(construct, "_constants", LRU(0))
    monkeypatch.setattr(cached, "_plans", LRU(64))
    monkeypatch.setattr(kinds, "_kinds", kinds.kinds_cache())


def plan_of(compute, *inputs):
    return record_replay(lambda: (compute(*inputs),), inputs, [WIDE, ONE])[1]


def names(plan):
    return [call.op.overloadpacket.__name__ for call in plan.calls]


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: x & ~x[:1], ["as_strided", "gt"]),
        (lambda x: ~x[:1] & x, ["as_strided", "gt"]),
        (lambda x: x | ~x, ["ge"]),
        (lambda x: ~x & ~x, ["bitwise_not", "gt"]),
        (lambda x: (x & ~x[:1]) ^ ~x[:1], ["as_strided", "bitwise_not", "gt", "bitwise_xor"]),
        (lambda x: x ^ ~x, ["bitwise_not", "bitwise_xor"]),
    ],
    ids=["and not", "not and", "or not", "two negations", "read elsewhere too", "exclusive"],
)
def test_a_negation_is_part_of_what_reads_it(compute, expected):
    plan = plan_of(compute, FLAGS)
    found = ["as_strided" if call.op is torch.as_strided else call.op.overloadpacket.__name__ for call in plan.calls]
    assert found == expected
    for table in (FLAGS, ~FLAGS, FLAGS.flip(0)):
        ours, theirs = plan.run([table.contiguous()])[0], compute(table)
        assert ours.dtype == theirs.dtype == torch.bool and torch.equal(ours, theirs)


def test_bits_of_integers_are_no_truth_values():
    plan = plan_of(lambda x: x & ~x, SMALL)
    assert names(plan) == ["bitwise_not", "bitwise_and"]
    assert torch.equal(plan.run([SMALL.flip(0)])[0], torch.zeros_like(SMALL))


@pytest.mark.parametrize(
    ("compute", "is_joined"),
    [
        (lambda x: x.long() <= WIDE, True),
        (lambda x: torch.ne(WIDE, x.long()), True),
        (lambda x: x.long() > x.long().mT[:1, :1], False),  # both would be narrow
        (lambda x: x.long() == ONE, False),  # a number without dimensions does not promote
        (lambda x: x.to(torch.float32) < WIDE, False),
        (lambda x: x.long() < 300, False),
    ],
    ids=["left", "right", "both", "a number in a tensor", "to floats", "a number"],
)
def test_a_wider_copy_is_not_made_for_a_comparison(compute, is_joined):
    plan = plan_of(compute, SMALL)
    assert (
        "_to_copy" not in {call.op.overloadpacket.__name__ for call in plan.calls if call.op is not torch.as_strided}
    ) is is_joined
    for table in (SMALL, SMALL.flip(0), -SMALL):
        assert torch.equal(plan.run([table.contiguous()])[0], compute(table))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.uint8, torch.float16])
def test_dtypes_that_do_not_promote_stay(dtype):
    table = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    plan = plan_of(lambda x: x.long() == WIDE, table)
    assert torch.equal(plan.run([table.flip(0).contiguous()])[0], table.flip(0).long() == WIDE)


LIMITS = torch.tensor([[-128, 0, 127], [1, 5, -1]])
SHOWN = torch.tensor([[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: SHOWN & (x <= LIMITS), ["le"]),
        (lambda x: (x < LIMITS) & SHOWN, ["lt"]),
        (lambda x: SHOWN & (x >= LIMITS), ["ge"]),
        (lambda x: (LIMITS.int() < x) & SHOWN, ["gt"]),
        (lambda x: SHOWN[:1] & torch.ge(LIMITS, x), ["le"]),
        (lambda x: SHOWN & torch.le(LIMITS, x), ["ge"]),
        (lambda x: SHOWN & (x == LIMITS), ["eq", "bitwise_and"]),
        (lambda x: SHOWN & (x <= LIMITS.double()), ["le", "bitwise_and"]),
        (lambda x: SHOWN & (x <= ONE), ["le", "bitwise_and"]),
        (lambda x: SHOWN & (x <= 5), ["le", "bitwise_and"]),
        (lambda x: SHOWN & (x <= x.mT[:1, :1]), None),
        (lambda x: x.bool() & (x <= LIMITS), None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_flags_are_part_of_the_numbers_that_are_compared_with(compute, expected, dtype):
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    table = torch.tensor([[least, 0, most], [most, 5, least]], dtype=dtype)
    plan = record_replay(lambda: (compute(table),), [table], [LIMITS, SHOWN, ONE])[1]
    assert plan is not None
    if expected is not None and dtype != torch.int64:
        assert names(plan) == expected
    if expected is not None and dtype == torch.int64:
        assert len(names(plan)) == (len(expected) if expected[0] in ("lt", "gt") else 2)
    for other in (table, table.flip(0), table.flip(1), torch.randint(-128, 127, (2, 3)).to(dtype)):
        assert torch.equal(plan.run([other.contiguous()])[0], compute(other))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_flags_beside_other_dtypes(dtype):
    table = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    plan = record_replay(lambda: (SHOWN & (table <= LIMITS),), [table], [LIMITS, SHOWN])[1]
    assert torch.equal(plan.run([table.flip(0).contiguous()])[0], SHOWN & (table.flip(0) <= LIMITS))
    assert len(plan.calls) == (1 if dtype == torch.uint8 else 2)


def test_strides_of_one_entry_order_the_results_of_others():
    """torch lays the result of two tensors out by all strides, also those that lead nowhere; a view of it is taken by its own."""
    flags = torch.tensor([True, False, True, False, True, True]).as_strided((2, 1, 1), (1, 1, 3))
    ones, others = torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([[[True], [False]]])

    def compute(ones, flags, others):
        both = (ones & ~flags) & others
        return both[0] ^ both[1]

    plan = plan_of(compute, ones, flags, others)
    assert aten.bitwise_not.default not in [call.op for call in plan.calls]
    assert torch.equal(plan.run([ones, flags, others])[0], compute(ones, flags, others))


def test_results_lie_as_they_did():
    """Views of them are taken by strides and offsets."""

    def compute(x):
        both = x.mT & ~x.mT
        return both[1:] | both[:2]

    plan = plan_of(compute, FLAGS)
    assert torch.equal(plan.run([~FLAGS])[0], compute(~FLAGS))


SQUARE = torch.tensor([[3, 1, 2], [1, 1, 5], [2, 9, 3]])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda low, high: (low <= high.mT) & (low.mT >= high).mT.mT, None),
        (lambda low, high: (low[:, :1] <= high[:1]) & (low[:, :1] >= high[:1]), 3),
        (lambda low, high: (low[:, :1] <= high[:, :1].mT) & (high[:, :1] >= low[:, :1].mT), 2),
        (lambda low, high: (high[:, :1] > low[:, :1].mT) | (low[:, :1] < high[:, :1].mT), 2),
        (lambda low, high: (low[:, :1] == high[:, :1].mT) ^ (high[:, :1] == low[:, :1].mT), 2),
        (lambda low, high: (low[:, :1] != high[:, :1].mT) & (high[:, :1] != low[:, :1].mT), 2),
        (lambda low, high: (low[:, :1] <= high[:, :1].mT) & (high[:, :1] <= low[:, :1].mT), 3),
        (lambda low, high: (low[:, :1] <= high[:, :1].mT) & (high[:, 1:2] >= low[:, :1].mT), 3),
        (lambda low, high: (low[:, :1] <= high[:2, :1].mT) & (high[:, :1] >= low[:2, :1].mT), 3),
        (lambda low, high: (low[:2, :1] <= high[:2, :1].mT) & (high[:2, :1] >= low[:2, :1].mT), 2),
        (lambda low, high: (low[0] <= high[0]) & (high[0] >= low[0]), 3),
    ],
)
def test_of_two_comparisons_that_are_each_other_s_transpose_one_is_made(compute, expected):
    tables = SQUARE, SQUARE.flip(0).contiguous()
    plan = record_replay(lambda: (compute(*tables),), tables)[1]
    launched = [call for call in plan.calls if call.op is not torch.as_strided]
    assert expected is None or len(launched) == expected
    for _ in range(20):
        others = torch.randint(-2, 3, (2, 3, 3))
        ours, theirs = plan.run([each.clone() for each in others])[0], compute(*others)
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: (x.amin(1), x.amax(1)), ["aminmax"]),
        (lambda x: (x.amin([-2], True), x.abs(), x.amax([-2], True)), ["aminmax", "abs"]),
        (lambda x: (x.amax(0), x.amin(0)), ["aminmax"]),
        (lambda x: (x.amax(1), x.amin(1), x.amax(0), x.amin(0)), ["aminmax", "aminmax"]),
        (lambda x: (x.amin(1), x.amax(1, True)), ["amin", "amax"]),
        (lambda x: (x.amin(1), x.amax(0)), ["amin", "amax"]),
        (lambda x: (x.amin(1), x.abs().amax(1)), ["amin", "abs", "amax"]),
        (lambda x: (x.amin(), x.amax()), ["amin", "amax"]),
        (lambda x: (x.amin([0, 1]), x.amax([0, 1])), ["amin", "amax"]),
        (lambda x: (x.amin(1) + 1, x.amax(1) + 2, x.amax(1) + 3), ["aminmax", "add", "add", "add"]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32])
def test_the_least_and_the_greatest_are_found_by_one(compute, expected, dtype):
    table = SMALL.to(dtype)
    if dtype == torch.bool and "abs" in expected:
        return
    plan = record_replay(lambda: compute(table), (table,))[1]
    assert names(plan) == expected
    for _ in range(5):
        other = torch.randint(0, 3, table.shape).to(dtype)
        for ours, theirs in zip(plan.run([other]), compute(other), strict=True):
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride() and ours.dtype == theirs.dtype


@pytest.mark.parametrize("name", MASKS)
def test_masks_have_the_same_tiles(name, monkeypatch):
    factory, q_len, kv_len = MASKS[name]
    heads = None if "heads" in name else 2
    for exact in (True, False):
        found = [
            loom.block_mask(factory(), q_len, kv_len, batch=3, heads=heads, block_size=4, exact=exact) for _ in range(4)
        ]
        with monkeypatch.context() as plainly:
            plainly.setattr(kinds, "_kinds", kinds.kinds_cache())
            plainly.setattr(cached, "_plans", LRU(0))
            plainly.setattr(recorder, "_are_launched", lambda values: False)
            plain = loom.block_mask(factory(), q_len, kv_len, batch=3, heads=heads, block_size=4, exact=exact)
        assert all(differing(blocks, plain) == [] for blocks in found)


@given(st.randoms(use_true_random=False), st.booleans())
def test_random_masks_have_the_tiles_of_torch(rnd, algebra):
    case = random_case(rnd, algebra=algebra)
    theirs = tables_of_torch(case)
    assume(theirs is not None)
    for _ in range(3):
        ours = loom.create_block_mask(case.mask_mod, case.batch, case.heads, case.q_len, case.kv_len, "cpu", case.block)
        assert differing(ours, theirs) == []


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: loom.causal & loom.padding(torch.arange(640) >= torch.tensor([[300], [500]])), 15),
        (lambda: loom.causal & loom.documents(offsets=[0, 100, 640]), 10),
        (lambda: loom.causal & loom.documents(torch.randint(7, (2, 640))), 23),
        (lambda: loom.causal & loom.lengths(torch.tensor([300, 500])), 10),
    ],
    ids=["padding", "documents", "documents by ids", "lengths"],
)
def test_how_many_are_launched(make, most, monkeypatch):
    seen = []
    with_states = kinds.RecipeOfKind.with_states
    monkeypatch.setattr(
        kinds.RecipeOfKind, "with_states", lambda self, *given: seen.append(with_states(self, *given)) or seen[-1]
    )
    for _ in range(3):
        loom.block_mask(make(), 640, 640)
    (kind,) = seen
    launched = [
        call for call in kind.states.calls if call.op is not torch.as_strided and call.op is not aten.view.dtype
    ]
    assert len(launched) <= most
