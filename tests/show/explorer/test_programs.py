from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.masks.algebra import as_mask
from maskloom.masks.dense import dense
from maskloom.show.explorer.programs import operands_of
from tests.blocks.random_masks import random_case
from tests.catalog import EVERY
from tests.show.explorer.engine import in_javascript, instructions_of


@pytest.mark.parametrize("name", EVERY)
def test_every_mask_of_the_catalogue_is_the_same_in_javascript(name):
    make, q_len, kv_len = EVERY[name]
    mask, rnd = make(), Random(name)
    table, found = mask.dense(q_len, kv_len), instructions_of(mask)
    for b, h in {(0, 0), (table.shape[0] - 1, table.shape[1] - 1)}:
        queries = sorted(rnd.sample(range(q_len), min(q_len, 11)))
        assert torch.equal(in_javascript(found, b, h, queries, list(range(kv_len))), table[b, h, queries])


def check(case, rnd):
    """Random pairs of a case; None where torch refuses it or the page does."""
    mask = as_mask(case.mask_mod)
    try:
        table = dense(mask, case.q_len, case.kv_len, batch=case.batch, heads=case.heads, device="cpu")
    except (RuntimeError, IndexError):
        return None
    found = instructions_of(mask, case.batch, case.heads)
    if found[1].slot is None:
        return found[1].reason
    b, h = rnd.randrange(case.batch), rnd.randrange(case.heads)
    queries, keys = (
        sorted(rnd.sample(range(length), min(length, most))) for length, most in ((case.q_len, 13), (case.kv_len, 17))
    )
    assert torch.equal(in_javascript(found, b, h, queries, keys), table[b, h, queries][:, keys]), case
    return ""


@given(st.randoms(use_true_random=False))
def test_random_functions_are_the_same_in_javascript(rnd):
    check(random_case(rnd), rnd)


def test_most_random_functions_run_in_the_page():
    outcomes = [check(random_case(Random(seed)), Random(seed)) for seed in range(1000, 1100)]
    known = [outcome for outcome in outcomes if outcome is not None]
    assert known.count("") > 0.8 * len(known)
    assert {outcome.split(" in ")[0] for outcome in known} <= {"", "torch.vmap promotes the types"}


NUMBERS = [0, 1, -1, 2, -3, 7, -127, 128, 255, 2**31 - 1, -(2**31), 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**62 + 3]
NUMBERS += [-(2**62) - 5, 2**63 - 1, -(2**63) + 1, 3037000500]

OF_TWO = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "min": torch.minimum, "max": torch.maximum,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "//": lambda x, y: x // y, "%": lambda x, y: x % y, "fmod": torch.fmod, "/": lambda x, y: x / y,
    "<<": lambda x, y: x << (y % 8), ">>": lambda x, y: x >> (y % 8),
    "float": lambda x, y: x.float() * y.double(), "sign": lambda x, y: x.sign() + (-y).abs() - ~y,
    "float32": lambda x, y: x.to(torch.float32) - y.to(torch.float32),
}  # fmt: skip


def check_operation(operation, left, right):
    """Whether an operation on ``left[q]`` and ``right[kv]`` gives in JavaScript what it gives in torch, and its size."""
    found = operation(left[:, None], right)

    def mask(b, h, q_idx, kv_idx):
        number = operation(left[q_idx], right[kv_idx])
        same = (number == found[q_idx, kv_idx]) | (number != number) & (found[q_idx, kv_idx] != found[q_idx, kv_idx])
        return torch.where(h == 0, same, number < kv_idx * 7 - 40)

    for h in range(2):
        given = instructions_of(as_mask(mask))
        computed = in_javascript(given, 0, h, list(range(len(left))), list(range(len(right))))
        want = found < torch.arange(len(right)) * 7 - 40 if h else torch.ones_like(computed)
        assert torch.equal(computed, want), (left[(computed != want).any(1)], right[(computed != want).any(0)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("name", OF_TWO)
def test_integers_of_any_size_are_computed_as_torch_does(name, dtype):
    numbers = torch.tensor(sorted({int(torch.tensor(number).to(dtype)) for number in NUMBERS}), dtype=dtype)
    left = numbers[numbers != torch.iinfo(dtype).min]  # divided by -1 it has no answer
    check_operation(OF_TWO[name], left, numbers[numbers != 0])


FLOATS = [0.0, -0.0, 0.1, -0.5, 1.5, 2.5, -2.5, 3.7, 1e-3, 65504.0, 7e4, 1e30, -1e30, 3e38, float("inf"), float("-inf")]
FLOATS += [float("nan"), 2.0**-24, 2.0**-25, 1 + 2.0**-11, 16777217.0]

OF_FLOATS = {
    "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": lambda x, y: x / y,
    "min": torch.minimum, "max": torch.maximum, "round": lambda x, y: (x * 3).round() - y.floor() + x.ceil() - y.trunc(),
    "abs": lambda x, y: x.abs() - (-y), "sqrt": lambda x, y: x.sqrt() + y, "square": lambda x, y: x**2 - y,
    "where": lambda x, y: torch.where(x < y, x, y * 2), "clamp": lambda x, y: x.clamp(-1.5, 20) + y,
}  # fmt: skip
OF_WIDE_FLOATS = OF_FLOATS | {
    "//": lambda x, y: x // y, "%": lambda x, y: x % y, "fmod": torch.fmod, "**3": lambda x, y: x**3 + y,
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(dtype, name) for dtype in (torch.float64, torch.float32) for name in OF_WIDE_FLOATS]
    + [(dtype, name) for dtype in (torch.float16, torch.bfloat16) for name in OF_FLOATS],
    ids=str,
)
def test_floats_round_as_torchs_do(dtype, name):
    table = torch.tensor(FLOATS, dtype=torch.float64).to(dtype)
    if name in ("%", "fmod"):  # torch's vectors take no exact remainder of the largest numbers
        table = table[(table.abs() < 3e38) | table.isinf()]
    check_operation(OF_WIDE_FLOATS[name], table, table[:-1])


def test_an_index_outside_a_table_is_an_error_and_one_below_zero_counts_from_the_end():
    table = torch.tensor([True, False, False, True, True])
    found = instructions_of(as_mask(lambda b, h, q_idx, kv_idx: table[q_idx - kv_idx]))
    assert in_javascript(found, 0, 0, [0], [0, 1, 5]).tolist() == [[True, True, True]]
    with pytest.raises(Exception, match="index -6 is outside a table of 5 entries"):
        in_javascript(found, 0, 0, [0], [6])
    divided = instructions_of(as_mask(lambda b, h, q_idx, kv_idx: q_idx // (kv_idx + 1) > 2))
    with pytest.raises(Exception, match="the mask divides by zero"):
        in_javascript(divided, 0, 0, [5], [-1])


TENSOR = torch.tensor([2.0, 3.0])
REFUSED = {
    "exp is not known to give the same numbers in a browser": lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).exp() < 1,
    "sum of floats rounds in an order of its own": lambda b, h, q_idx, kv_idx: (TENSOR * q_idx).sum() > kv_idx,
    "it computes with all of a table of shape (5000,) for one pair": lambda b, h, q_idx, kv_idx: (
        torch.arange(5000) < q_idx
    ).any(),
    "it takes the power 1.5 in torch.float32": lambda b, h, q_idx, kv_idx: q_idx**1.5 > kv_idx,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_page_cannot_run_is_named(reason):
    out, operand = instructions_of(as_mask(REFUSED[reason]))
    assert (operand.slot, operand.reason) == (None, reason)
    assert out.code == [] and out.tables == []


def test_tables_of_batch_rows_and_heads_are_kept_once():
    table = (torch.rand(2, 3, 11, 13, generator=torch.Generator().manual_seed(0)) < 0.5)[[0, 1, 0, 1, 0]]
    mask = loom.masks.from_dense(table)
    out, operand = instructions_of(mask, 5, 3)
    assert sorted(tuple(held.shape) for held in out.tables) == [(2, 3, 11, 13), (5,)]
    for b in range(5):
        assert torch.equal(in_javascript((out, operand), b, 2, [*range(11)], [*range(13)]), table[b, 2])
    few, _ = instructions_of(loom.masks.from_dense(table.repeat_interleave(4, 0)), 1, 2)
    assert sorted(tuple(held.shape) for held in few.tables) == [(1, 2, 11, 13), (3,), (20,)]


def test_equal_instructions_are_one():
    mask = loom.causal & loom.window(back=3)
    (expression, operands), out = operands_of(mask | ~loom.causal), instructions_of(loom.causal)[0]
    assert expression["join"] == "or" and len(operands) == 3
    assert instructions_of(loom.causal & loom.causal)[0].code[0] == out.code[0]
    assert len(instructions_of(loom.causal & loom.causal)[0].code) == 2


BOUNDS = torch.tensor([2, 5, 5, 11])
FLAGS = torch.tensor([[1, 0, 3], [0, 0, 0]], dtype=torch.uint8)
TABLE = torch.arange(60).reshape(3, 4, 5) % 7
WRITTEN = {
    "bucketize": lambda b, h, q, k: torch.bucketize(q, BOUNDS) == torch.bucketize(k, BOUNDS, right=True),
    "searchsorted": lambda b, h, q, k: torch.searchsorted(BOUNDS, q) >= torch.searchsorted(BOUNDS, k, side="right"),
    "isin": lambda b, h, q, k: torch.isin(q - k, BOUNDS) | torch.isin(k, BOUNDS, invert=True) & (q > 3),
    "any of uint8": lambda b, h, q, k: (FLAGS[b % 2] * (q > k)).any() == (FLAGS[h].sum() > 0),
    "square root": lambda b, h, q, k: (q * 1.0) ** 0.5 > k.float().sqrt() * 0.7,
    "not finite": lambda b, h, q, k: torch.isinf(q / (k - 3)) | torch.isfinite((k - q) / (q - 5)) & torch.isnan(k / k),
    "argmax": lambda b, h, q, k: torch.stack([q % 3, k % 5, b * q]).argmax() == torch.stack([k, q]).argmin(),
    "values with dimensions": lambda b, h, q, k: (TABLE[b][:, k % 5] * q).cumsum(0)[q % 4] % 5 < (TABLE[b, q % 4] - k).amax(),
    "chosen": lambda b, h, q, k: torch.stack([q, k, q - k, k * 3])[(q + k) % 4 - 4] % 4 > 1,
    "two indices of values": lambda b, h, q, k: (TABLE[b] + q - k)[k % 4, q % 5] % 3 == 1,
    "listed": lambda b, h, q, k: TABLE[b][torch.stack([q, k]) % 4, torch.stack([k, q]) % 5].sum() % 2 == 0,
    "before": lambda b, h, q, k: (TABLE[:, q % 4][:, torch.stack([q, k]) % 5] * k).sum() % 3 == b,
    "wide": lambda b, h, q, k: (q + 2**40) * (k + 2**30) % 1013 < 500,
    "shapes": lambda b, h, q, k: (
        torch.cat([q[None], k[None], (q * k).view(1)]).view(3, 1).expand(3, 2).t().unbind(0)[1][1:].max() > b * 7
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_users_write_runs_in_the_page(name):
    mask, q_len, kv_len = as_mask(WRITTEN[name]), 13, 11
    table, found = dense(mask, q_len, kv_len, batch=3, heads=2, device="cpu"), instructions_of(mask)
    assert table.any() and not table.all()
    for b, h in ((0, 0), (2, 1)):
        assert torch.equal(in_javascript(found, b, h, [*range(q_len)], [*range(kv_len)]), table[b, h])
