"""Ids and positions of packed documents."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import maskloom as loom
from maskloom.batches import document_ids, offsets_from_lengths, positions

lens = st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(sum)


@given(lens, st.integers(0, 3))
def test_offsets_give_ids_and_these_positions(lens, rest):
    offsets, length = offsets_from_lengths(lens), sum(lens) + rest
    ids = document_ids(offsets=offsets, length=length)
    assert ids.dtype == torch.int32
    assert ids.tolist() == [d for d, n in enumerate(lens) for _ in range(n)] + [-1] * rest
    found = positions(offsets=offsets, length=length)
    assert found.dtype == torch.int64
    assert found.tolist() == [i for n in lens for i in range(n)] + [0] * rest
    assert torch.equal(positions(ids), found) and torch.equal(positions(ids[None]), found[None])
    whole = positions(offsets=offsets)
    assert (
        loom.documents(position_ids=whole)
        .dense(sum(lens), sum(lens))
        .equal(loom.documents(offsets=offsets).dense(sum(lens), sum(lens)))
    )
    assert document_ids(position_ids=whole).diff().tolist() == document_ids(offsets=offsets).diff().sign().tolist()


def test_positions_of_rows_with_padding_count_real_tokens():
    pads = torch.tensor([[True, True, False, False, False], [False, True, False, False, True]])
    assert positions(pads=pads).tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 0]]
    ids = torch.tensor([[4, 4, 2, -1, -1], [-1, 0, 0, 0, 1]])
    assert positions(ids).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 2, 0]]


META = torch.zeros(3, dtype=torch.int64, device="meta")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: positions(), TypeError, "positions takes one of ids, offsets, pads; got none"),
        (lambda: positions([0], offsets=[0, 1]), TypeError, "got ids and offsets"),
        (lambda: positions([0, 0], length=3), TypeError, "positions takes length= with offsets alone"),
        (lambda: positions(pads=torch.ones(2, 3)), TypeError, "pads is a bool tensor, True = padding; got torch.float32"),
        (lambda: positions(offsets=[1, 3]), ValueError, "offsets start at 0; got 1"),
        (lambda: positions(torch.ones(2, 3, 5).long()), ValueError, r"ids has shape \(L,\) or \(B, L\); got \(2, 3, 5\)"),
        (lambda: positions(offsets=META), ValueError, "the table is on the meta device, .* no values to read: give length="),
        (lambda: document_ids(offsets=META), ValueError, "the table is on the meta device"),
        (lambda: document_ids(), TypeError, "document_ids takes one of offsets, position_ids; got none"),
        (lambda: document_ids(offsets=[0, 5], length=3), ValueError, "length is 3, and 5 positions are filled"),
        (lambda: document_ids(position_ids=[0, 1], length=3), TypeError, "document_ids takes length= with offsets alone"),
        (lambda: document_ids(position_ids=[0.5]), TypeError, "position_ids are integers; got torch.float32"),
    ],
)  # fmt: skip
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
