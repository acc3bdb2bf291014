"""The longest row that a mask declares: never longer than what it shows, over every mask."""

import pytest
import torch

import maskloom as loom
from maskloom.masks.declared import longest_row
from tests.catalog import EVERY


@pytest.mark.parametrize("name", EVERY)
def test_no_row_is_longer_than_the_tables_of_the_mask(name):
    make, q_len, kv_len = EVERY[name]
    longest = longest_row(make())
    assert longest is None or 0 <= longest.length <= max(q_len, kv_len)


@pytest.mark.parametrize(
    ("mask", "length", "row"),
    [
        (loom.lengths([3, 7, 5]), 7, 1),
        (loom.lengths([3, 7, 5], [2, 1, 11]), 11, 2),
        (loom.lengths([3]), 3, None),
        (loom.padding(torch.tensor([[False, True, False, True], [True, True, True, True]])), 3, 0),
        (loom.real(torch.tensor([[0, 0], [0, 1]])), 2, 1),
        (loom.key_padding(torch.ones(2, 3, dtype=torch.bool)), 0, 0),
        (loom.documents(torch.tensor([2, -1, 0, -1])), 3, None),
        (loom.documents(offsets=[0, 2, 5], length=7), 5, None),
        (loom.causal & (loom.sinks(1) | ~loom.lengths([2, 3])), 3, 1),
        (loom.masks.transposed(loom.lengths([2, 3], [5, 4])), 5, 0),
        (loom.masks.repeat_heads(loom.masks.per_head([loom.lengths([2, 3]), loom.causal]), 2), 3, 1),
    ],
)
def test_rows(mask, length, row):
    found = longest_row(mask)
    assert (found.length, found.row) == (length, row)


def test_where_positions_are_others_nothing_is_declared():
    long = loom.lengths([9, 5])
    for mask in (
        loom.masks.shifted(long, q_offset=2),
        loom.masks.per_batch([long, loom.causal]),
        loom.causal,
        lambda b, h, q, k: q >= k,
    ):
        assert longest_row(mask) is None
    assert longest_row(long.to("meta")) is None
