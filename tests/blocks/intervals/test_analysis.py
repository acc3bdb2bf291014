"""Soundness of the interval rules: against every element, on the traps, and with a rule broken on purpose."""

from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_mask

import maskloom as loom
from maskloom.blocks.grid import Grid
from maskloom.blocks.intervals import analysis as analysis
from maskloom.blocks.intervals.analysis import analyse
from maskloom.blocks.intervals.interval import Interval
from maskloom.blocks.intervals.rules import RULES
from maskloom.program.record import record
from tests.blocks.random_masks import Case, differing, random_case, tables_of_torch

aten = torch.ops.aten


def _unsound_tiles(case: Case, rules=RULES) -> int:
    """How many tiles hold an element that the intervals exclude."""
    grid = Grid(case.batch, case.heads, case.q_len, case.kv_len, *case.block)
    answer = analyse(record(case.mask_mod, "cpu"), grid.indices(torch.device("cpu")), rules).answer
    must, may = answer.lo.expand(grid.shape), answer.hi.expand(grid.shape)
    truth = create_mask(case.mask_mod, case.batch, case.heads, case.q_len, case.kv_len, "cpu")
    must, may = (_per_element(end, case) for end in (must, may))
    return int(((truth & ~may) | (~truth & must)).sum())


def _per_element(tiles: torch.Tensor, case: Case) -> torch.Tensor:
    rows = tiles.repeat_interleave(case.block[0], -2)[..., : case.q_len, :]
    return rows.repeat_interleave(case.block[1], -1)[..., : case.kv_len]


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_no_element_lies_outside_its_interval(first):
    for seed in range(first, first + 30):
        case = random_case(Random(seed))
        if tables_of_torch(case) is not None:
            assert _unsound_tiles(case) == 0, case


def _narrowed(rule):
    """The rule, its upper end pulled down to the lower one: what a careless rule for a lookup or a sum would say."""

    def broken(op, *args, **kwargs):
        out = rule(op, *args, **kwargs)
        return Interval(out.lo, out.lo.clone(), out.nan) if isinstance(out, Interval) else out

    return broken


BREAKABLE = [aten.sub, aten.index, aten.bitwise_and, aten.le, aten.remainder, aten.where, aten.any]


@pytest.mark.parametrize("packet", BREAKABLE, ids=lambda packet: packet.__name__)
def test_a_broken_rule_is_caught(packet):
    rules = {**RULES, packet: _narrowed(RULES[packet])}
    cases = (random_case(Random(seed)) for seed in range(600))
    assert any(_unsound_tiles(case, rules) > 0 for case in cases if tables_of_torch(case) is not None)


def test_breaking_a_rule_spoils_the_tables(monkeypatch):
    broken = {**RULES, aten.ge: _narrowed(RULES[aten.ge])}
    monkeypatch.setattr(analysis.analyse, "__defaults__", (broken,))
    blocks = loom.block_mask(loom.causal, 256, 256, device="cpu")
    assert blocks.kv_num_blocks.tolist() != [[[1, 1]]]


NAN, INF = float("nan"), float("inf")


def _table(values, dtype, length=64):
    return torch.tensor(values, dtype=dtype).repeat(length)[:length]


floats = _table([1.0, NAN, 3.0], torch.float32)
all_nan = _table([NAN], torch.float32)
infinite = _table([INF, 1.0, -INF, 0.0], torch.float32)
bytes_ = _table([1, 250, 3], torch.uint8)
wide = torch.tensor([1, 2, 3, 250]).repeat_interleave(16).to(torch.uint16)
waves = _table([1j, 2, 3 + 1j], torch.complex64)
shorts = _table([-30000, 30000], torch.int16)
huge = _table([2**62, -(2**62), 5], torch.int64)
relative = torch.randn(127, generator=torch.Generator().manual_seed(0)) > 0
tenths = _table([0.1, 0.3], torch.float32)
thirds = _table([0.1, 0.3, 1.7], torch.bfloat16)

TRAPS = {
    "no order": lambda b, h, q, kv: (wide[q] == wide[kv]) | (waves[q] == waves[kv]) | (wide[q].to(torch.int64) > kv),
    "one of several": lambda b, h, q, kv: (F.one_hot(q // 9, 8) * F.one_hot(kv // 9, 8)).sum() > 0,
    "NaN compared": lambda b, h, q, kv: floats[kv] > 0,
    "NaN, not": lambda b, h, q, kv: ~(floats[kv] > 0),
    "NaN unequal": lambda b, h, q, kv: floats[kv] != floats[q],
    "only NaN": lambda b, h, q, kv: ~(all_nan[kv] <= 5) & (all_nan[q] != 1),
    "NaN as bool": lambda b, h, q, kv: all_nan[q].bool() & floats[kv].bool(),
    "NaN from infinities": lambda b, h, q, kv: ~((infinite[q] - infinite[kv]) <= INF),
    "NaN from 0 · inf": lambda b, h, q, kv: ~((infinite[q] * infinite[kv]) <= INF),
    "NaN from 0 / 0": lambda b, h, q, kv: ~((infinite[q] / infinite[kv]) <= INF),
    "NaN from a number": lambda b, h, q, kv: ~(thirds[q] * INF <= INF) | (torch.where(q > 3, floats[kv], NAN) < 2),
    "0 times an infinite number": lambda b, h, q, kv: ~((infinite[q] - 1) * INF <= INF),
    "positions that wrap": lambda b, h, q, kv: relative.repeat(2)[q.to(torch.int8).add(100).to(torch.int64)],
    "a double beside floats": lambda b, h, q, kv: tenths[q] > torch.tensor(0.1, dtype=torch.float64),
    "a byte table beside indices": lambda b, h, q, kv: (bytes_[:3] <= q * 9 - kv).any(),
    "isnan": lambda b, h, q, kv: floats[q].isnan() | all_nan[kv].isnan(),
    "uint8 wraps": lambda b, h, q, kv: bytes_[q] - bytes_[kv] < 5,
    "int16 wraps": lambda b, h, q, kv: shorts[q] + shorts[kv] < 0,
    "int64 wraps": lambda b, h, q, kv: huge[q] + huge[kv] < 0,
    "int64 product wraps": lambda b, h, q, kv: huge[q] * kv > 0,
    "cast wraps": lambda b, h, q, kv: (q * 5).to(torch.int8) > kv,
    "negative index": lambda b, h, q, kv: relative[q - kv],
    "negative index, all": lambda b, h, q, kv: relative[-1 - q],
    "index from far away": lambda b, h, q, kv: relative[(q * kv).clamp(-127, 126)],
    "negative modulo": lambda b, h, q, kv: (q - kv) % 7 < (kv - q) % -5 + 6,
    "negative floor division": lambda b, h, q, kv: (q - kv) // 5 == torch.div(q - kv, 5, rounding_mode="trunc"),
    "bfloat16 rounds": lambda b, h, q, kv: thirds[q] * 0.1 + thirds[kv] > 0.2,
    "least number by -1": lambda b, h, q, kv: (huge[q] * 2 - 2**62) // (kv - 40).clamp(-2, -1) > q,
    "alpha": lambda b, h, q, kv: torch.add(q, 3, alpha=2) > torch.sub(kv, q, alpha=3) + torch.rsub(kv, 4, alpha=2),
    "views": lambda b, h, q, kv: (torch.stack([q, kv]).view(1, 2).expand(3, 2) > 3).view(-1)[1:4].all(),
    "negative exact index": lambda b, h, q, kv: relative[b - 3] | (q > kv),
    "negative bits": lambda b, h, q, kv: ((q - kv) & 13) + ((q - kv) | 3) ^ (kv - q) > 3,
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps(name):
    case = Case(TRAPS[name], 1, 1, 64, 61, (16, 8), name)
    assert _unsound_tiles(case) == 0


DECIDED = {
    "causal": lambda b, h, q, kv: q >= kv,
    "window": lambda b, h, q, kv: (q - kv < 16) & (q >= kv),
    "row by row": lambda b, h, q, kv: relative[q] | ~relative[q],
    "tile by tile": lambda b, h, q, kv: q // 16 == kv // 16,
    "strided": lambda b, h, q, kv: (q // 16) % 2 == 0,
    "power": lambda b, h, q, kv: (q // 16 - kv // 16) ** 2 <= 1,
    "bits": lambda b, h, q, kv: (q & 15) < 16,
    "count": lambda b, h, q, kv: (torch.tensor([0, 16, 32]) <= q).sum() == (torch.tensor([0, 16, 32]) <= kv).sum(),
}


@pytest.mark.parametrize("name", DECIDED)
def test_tiles_that_touch_no_boundary_are_decided_without_an_element(name):
    grid = Grid(1, 1, 64, 64, 16, 16)
    answer = analyse(record(DECIDED[name], "cpu"), grid.indices(torch.device("cpu"))).answer
    truth = create_mask(DECIDED[name], 1, 1, 64, 64, "cpu").view(1, 1, 4, 16, 4, 16)
    mixed = truth.any(-1).any(-2) & ~truth.all(-1).all(-2)
    undecided = (answer.hi & ~answer.lo).expand(1, 1, 4, 4)
    assert name == "row by row" or not (undecided & ~mixed).any()


@pytest.mark.parametrize("name", TRAPS)
def test_traps_have_the_tables_of_torch(name):
    case = Case(TRAPS[name], 1, 1, 64, 61, (16, 8), name)
    ours = loom.create_block_mask(case.mask_mod, 1, 1, 64, 61, "cpu", (16, 8))
    assert differing(ours, tables_of_torch(case)) == []


def test_an_exact_index_past_the_table_raises_as_in_torch():
    with pytest.raises(IndexError, match=r"index 50[01] is out of bounds"):
        loom.block_mask(lambda b, h, q, kv: relative[b + 500] & (q > kv), 64, 64, batch=2, device="cpu")


def test_an_operation_without_a_rule_is_named():
    found = analyse(
        record(lambda b, h, q, kv: torch.sin(q.float()) > 0, "cpu"),
        Grid(1, 1, 64, 64, 16, 16).indices(torch.device("cpu")),
    )
    assert found.unsupported_ops == ("sin",)


def test_a_write_into_a_shared_tensor_is_an_obstacle_and_evaluated():
    def mask(b, h, q, kv):
        seen = q >= kv
        view = seen[None]
        seen &= q < 40
        return seen & view[0]

    program = record(mask, "cpu")
    assert program.unsupported_reason == "bitwise_and_, which writes into a tensor"
    blocks = loom.block_mask(mask, 64, 64, block_size=16, device="cpu")
    truth = torch.nn.attention.flex_attention.create_block_mask(mask, 1, 1, 64, 64, "cpu", 16)
    assert torch.equal(blocks.kv_indices, truth.kv_indices)
