"""Lengths, pads and offsets, to and fro."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import maskloom as loom
from maskloom.batches.forms import lengths_from_offsets, offsets_from_lengths

lens = st.lists(st.integers(0, 7), min_size=1, max_size=5)


@given(lens, st.sampled_from(["right", "left"]))
def test_pads_and_lengths_are_inverse(lens, side):
    pads = loom.batches.pads_from_lengths(lens, 11, side=side)
    assert pads.shape == (len(lens), 11)
    assert loom.batches.lengths_from_pads(pads, side=side).tolist() == lens
    assert pads.flip(-1).equal(loom.batches.pads_from_lengths(lens, 11, side="left" if side == "right" else "right"))


@given(lens)
def test_offsets_and_lengths_are_inverse(lens):
    offsets = offsets_from_lengths(lens)
    assert offsets.dtype == torch.int32
    assert offsets[0] == 0
    assert lengths_from_offsets(offsets).tolist() == lens


def test_pads_from_lengths():
    assert loom.batches.pads_from_lengths([2, 3]).tolist() == [[False, False, True], [False, False, False]]
    assert loom.batches.pads_from_lengths(torch.tensor([1]), 3, side="left").tolist() == [[True, True, False]]
    narrow = torch.tensor([10, 100], dtype=torch.uint8)
    assert loom.batches.pads_from_lengths(narrow, 300, side="left").sum(-1).tolist() == [290, 200]


def test_pads_from_tokens_anywhere_or_at_one_end():
    tokens = torch.tensor([[9, 4, 9, 7, 9, 9], [4, 9, 9, 9, 9, 4]])
    assert loom.batches.pads_from_tokens(tokens, 9).sum().item() == 8
    right = loom.batches.pads_from_tokens(tokens, 9, where="right")
    assert right.int().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]
    left = loom.batches.pads_from_tokens(tokens, 9, where="left")
    assert left.int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_pads_from_zeros_looks_at_all_features():
    x = torch.ones(2, 5, 3)
    x[0, 3:] = 0
    x[0, 1] = 0
    x[1, 2, 0] = 0  # a real token whose first feature is 0
    assert loom.batches.pads_from_zeros(x).int().tolist() == [[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert loom.batches.pads_from_zeros(x, where="right").int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    article = torch.eq(x[:, :, 0], 0)  # the article's line, which drops that token
    assert loom.padding(article) != loom.padding(loom.batches.pads_from_zeros(x))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: loom.batches.pads_from_lengths([3, 8], 5), ValueError, "length is 5, and the longest sequence has 8"),
        (
            lambda: loom.batches.pads_from_lengths([3], 5, side="middle"),
            ValueError,
            "side is one of right, left; got 'middle'",
        ),
        (lambda: loom.batches.pads_from_lengths([-3], 5), ValueError, "got -3"),
        (
            lambda: loom.batches.lengths_from_pads(torch.tensor([[True, False]])),
            ValueError,
            "row 0 has padding that is not at",
        ),
        (
            lambda: loom.batches.pads_from_lengths(torch.ones(3, dtype=torch.int64, device="meta")),
            ValueError,
            "lens is on the meta device, where there are no values to read: give length=",
        ),
        (lambda: loom.batches.pads_from_tokens(torch.tensor([1, 2]), 0), ValueError, r"\(B, L\); got \(2,\)"),
        (
            lambda: loom.batches.pads_from_tokens(torch.ones(2, 3).long(), None),
            TypeError,
            "pad_id is the token id .* got None",
        ),
        (lambda: loom.batches.pads_from_tokens(torch.ones(2, 3), 0), TypeError, "tokens are integers"),
        (
            lambda: loom.batches.pads_from_tokens(torch.full((2, 3), 255, dtype=torch.uint8), -1),
            ValueError,
            "pad_id is from 0 to 255, as tokens are torch.uint8; got -1",
        ),
        (lambda: loom.batches.pads_from_zeros(torch.ones(2, 3)), ValueError, r"\(B, L, features\); got \(2, 3\)"),
        (lambda: loom.batches.pads_from_zeros(torch.ones(2, 3, 5), where="up"), ValueError, "where is one of"),
        (
            lambda: lengths_from_offsets(torch.zeros(2, 3).long()),
            ValueError,
            r"shape \(sequences \+ 1,\); got \(2, 3\)",
        ),
        (lambda: lengths_from_offsets([0, 5, 3]), ValueError, r"offsets never fall; got \[0, 5, 3\]"),
        (lambda: lengths_from_offsets(torch.tensor([0, 5, 3], dtype=torch.uint8)), ValueError, "offsets never fall"),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_no_sequences_have_one_offset():
    assert lengths_from_offsets(loom.batches.offsets_from_lengths([])).shape == (0,)


def test_offsets_of_lengths_start_at_0():
    for offsets in ([3, 5], [-4, 5]):
        with pytest.raises(ValueError, match=f"offsets start at 0; got {offsets[0]}"):
            lengths_from_offsets(offsets)
