"""Ranges of keys say exactly what a mask shows, for each class that says them; other masks say nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.core import captures
from maskloom.masks.ranges import Places, shown_keys
from tests.catalog import EVERY

Q, K = 13, 17
ROWS = torch.tensor(
    [[0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 1, 0], [0, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
)
KNOWN = {
    "causal & lengths": loom.causal & loom.lengths([5, 0, 13], [7, 17, 13]),
    "documents": loom.documents(offsets=[0, 2, 2, 11], length=K),
    "documents by row": loom.documents(position_ids=ROWS) & loom.masks.anticausal,
    "simplified": loom.masks.simplify(loom.causal & loom.documents(offsets=[0, 2, 2, 11], length=K)),
    "simplified, by row": loom.masks.simplify(loom.causal & loom.documents(position_ids=ROWS)),
    "simplified lengths": loom.masks.simplify(loom.causal & loom.lengths([5, 0, 13])),
    "padding": loom.padding(ROWS[:, :Q] == 2, ROWS == 1) & loom.window(back=3, ahead=2),
    "keys": loom.key_padding(ROWS == 0) & loom.real(ROWS > 0),
    "ids": loom.causal & loom.documents(torch.tensor([0] * 5 + [1] * 3 + [4] * 6 + [-1] * 3)),
    "ids by row": loom.documents(torch.where(ROWS > 5, -1, (ROWS == 0).cumsum(1))),
    "ids across": loom.documents(
        [0, 0, 1, 1, 1, 1, 1, 3, 3, 3, 3, -1, -1], kv_ids=[0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 4, -1, -1]
    ),
    "offsets across": loom.documents(offsets=[0, 3, 3, 13], kv_offsets=[0, 5, 9, 16], length=Q, kv_length=K)
    & loom.window(back=9, ahead=4),
}


def places(batch, q_len, kv_len):
    return Places(torch.arange(batch)[:, None], torch.arange(q_len)[None], torch.arange(kv_len)[None])


def table_of(mask, batch, q_len, kv_len):
    """What the ranges of a mask say, element by element: (B, Q, K); None where they say nothing."""
    shown = shown_keys(mask, places(batch, q_len, kv_len))
    if shown is None:
        return None
    first, end = (torch.as_tensor(one) + torch.zeros(1, q_len, dtype=torch.int64) for one in (shown.first, shown.end))
    keys = torch.arange(kv_len)
    table = (keys >= first[..., None]) & (keys < end[..., None])
    table = table if shown.keys is None else table & shown.keys[:, None]
    for queries, others in shown.ids:
        table = table & (queries[..., None] == others[:, None]) & (queries >= 0)[..., None]
    return table.expand(batch, -1, -1)


@pytest.mark.parametrize("name", EVERY)
def test_ranges_are_the_mask_or_nothing(name):
    make, q_len, kv_len = EVERY[name]
    mask = make()
    dense = mask.dense(q_len, kv_len)
    found = table_of(mask, len(dense), q_len, kv_len)
    assert found is None or (torch.equal(found, dense.any(1)) and torch.equal(found, dense.all(1)))


@pytest.mark.parametrize("name", KNOWN)
def test_these_are_known(name):
    dense = KNOWN[name].dense(Q, K)
    assert torch.equal(table_of(KNOWN[name], len(dense), Q, K), dense[:, 0])


@pytest.mark.parametrize(
    "mask", [loom.causal | loom.sinks(2), ~loom.causal, loom.causal & loom.prefix(3), lambda b, h, q, kv: q >= kv]
)
def test_others_say_nothing(mask):
    assert shown_keys(mask, places(1, Q, K)) is None


def of(dtype):
    """The mask with lengths and ids of another dtype."""
    return lambda mask: captures.moved(mask, lambda held: held.to(dtype) if held.dtype == torch.int64 else held)


NARROW = [lambda mask: mask, of(torch.int32), of(torch.int16), of(torch.int8)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize(
    "make",
    [
        lambda ends: loom.causal & loom.lengths(ends[1:]),
        lambda ends: loom.lengths(ends[1:]) & loom.key_padding(ROWS == 0),
        lambda ends: loom.documents(offsets=ends, length=K) & loom.window(back=3, ahead=2),
        lambda ends: loom.masks.simplify(loom.documents(offsets=ends, length=K) & loom.causal),
    ],
)
def test_ends_of_narrow_dtypes_are_negated_and_compared(make, dtype):
    mask = make(torch.tensor([0, 9, 13], dtype=dtype))
    dense = mask.dense(Q, K, batch=2)
    assert torch.equal(table_of(mask, 2, Q, K), dense[:, 0])
    shown = shown_keys(mask, places(2, Q, K))
    assert all(isinstance(one, int) or one.dtype in (torch.int32, torch.int64) for one in (shown.first, shown.end))


@given(st.data())
def test_any_joined_ranges(data):
    numbers, batch = st.integers(0, 19), 3
    some = {
        "lengths": lambda: loom.lengths(data.draw(st.lists(st.integers(0, K), min_size=batch, max_size=batch))),
        "window": lambda: loom.window(back=data.draw(numbers), ahead=data.draw(numbers)),
        "documents": lambda: loom.documents(position_ids=torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=K, max_size=K)))),
        "keys": lambda: loom.key_padding(torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=K, max_size=K), min_size=batch, max_size=batch)))),
        "causal": lambda: loom.causal,
        "ids": lambda: loom.documents(torch.tensor(data.draw(st.lists(st.lists(st.integers(-1, 2), min_size=K, max_size=K), min_size=batch, max_size=batch)))),
    }  # fmt: skip
    names = data.draw(st.lists(st.sampled_from(sorted(some)), min_size=1, max_size=4, unique=True))
    mask = loom.and_masks(*(some[name]() for name in names))
    mask = data.draw(st.sampled_from(NARROW))(mask)
    dense = mask.dense(Q, K, batch=batch, heads=1)
    assert torch.equal(table_of(mask, batch, Q, K), dense[:, 0])
