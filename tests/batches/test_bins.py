"""Which sequences share a row."""

from itertools import chain

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from maskloom.batches import bins, fill, pack_lengths, row_slices

lens = st.lists(st.integers(0, 13), max_size=40)
ways = st.sampled_from([("best_fit", None), ("best_fit", 1), ("best_fit", 3), ("next_fit", None)])
overs = st.sampled_from(["truncate", "split", "drop"])


def in_plain_words(lengths, capacity):
    """Best fit over all, one sequence at a time: the room of every row."""
    rooms = []
    for size in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= size]
        rooms.append((rooms.pop(rooms.index(min(fitting))) if fitting else capacity) - size)
    return sorted(rooms)


@given(lens, st.integers(13, 17), ways)
def test_every_sequence_is_in_one_row(lengths, capacity, way):
    method, open_rows = way
    rows = pack_lengths(lengths, capacity, method, open_rows=open_rows)
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(row == sorted(row) and sum(lengths[i] for i in row) <= capacity for row in rows)
    assert [row[-1] for row in rows] == sorted(row[-1] for row in rows)
    assert fill(rows, lengths, capacity) == (sum(lengths) / (len(rows) * capacity) if rows else 1)


@given(lens.filter(all), st.integers(13, 17))
def test_sequences_of_one_length_together_are_placed_as_one_by_one(lengths, capacity):
    rows = pack_lengths(lengths, capacity)
    assert sorted(capacity - sum(lengths[i] for i in row) for row in rows) == in_plain_words(lengths, capacity)


@given(lens.filter(all), st.integers(13, 17))
def test_next_fit_keeps_the_order(lengths, capacity):
    rows, free = [], 0
    for i, length in enumerate(lengths):
        if length > free:
            rows.append([])
            free = capacity
        rows[-1].append(i)
        free -= length
    assert pack_lengths(lengths, capacity, "next_fit") == rows == pack_lengths(lengths, capacity, open_rows=1)


@given(lens, st.integers(1, 7), ways, overs)
def test_every_token_comes_out_once_in_order(lengths, capacity, way, over):
    method, open_rows = way
    rows = pack_lengths(lengths, capacity, method, open_rows=open_rows, over=over)
    slices = row_slices(rows, lengths, capacity)
    assert [[i for i, _ in row] for row in slices] == rows
    assert all(sum(piece.stop - piece.start for _, piece in row) <= capacity for row in slices)
    tokens = {i: [] for i in range(len(lengths))}
    for i, piece in chain.from_iterable(slices):
        assert piece.stop <= lengths[i]
        tokens[i] += range(lengths[i])[piece]
    expected = {
        "truncate": lambda length: range(min(length, capacity)),
        "split": range,
        "drop": lambda length: range(length if length <= capacity else 0),
    }[over]
    assert tokens == {i: list(expected(length)) for i, length in enumerate(lengths)}
    total = sum(map(len, tokens.values()))
    assert fill(rows, lengths, capacity) == (total / (len(rows) * capacity) if rows else 1)


def drawn(kind, capacity, number):
    random = np.random.default_rng(0)
    if kind == "uniform":
        return random.integers(1, capacity + 1, number)
    return random.lognormal(np.log(300), 1, number).astype(int).clip(1, capacity)


@pytest.mark.parametrize("capacity", [2048, 4099])
@pytest.mark.parametrize("kind", ["lognormal", "uniform"])
def test_rows_are_full(kind, capacity):
    lengths = drawn(kind, capacity, 100_000)
    assert fill(pack_lengths(lengths, capacity), lengths, capacity) >= 0.995
    assert fill(pack_lengths(lengths, capacity, open_rows=64), lengths, capacity) >= 0.97


def test_the_work_grows_with_distinct_lengths_and_not_with_sequences(monkeypatch):
    searches = []
    search = bins._Rows._least_room
    monkeypatch.setattr(bins._Rows, "_least_room", lambda rows, size: searches.append(size) or search(rows, size))
    pack_lengths(drawn("lognormal", 2048, 100_000), 2048)
    assert len(searches) < 10_000


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_lengths_come_in_any_form(dtype):
    lengths = [5, 3, 4, 2]
    assert pack_lengths(lengths, 7) == [[1, 2], [0, 3]]
    assert pack_lengths(torch.tensor(lengths, dtype=dtype), 7) == [[1, 2], [0, 3]]
    assert pack_lengths(np.array(lengths), np.int64(7)) == [[1, 2], [0, 3]]
    assert pack_lengths(tuple(lengths), 7) == [[1, 2], [0, 3]]
    assert pack_lengths([], 7) == pack_lengths(torch.zeros(0, dtype=dtype), 7) == []


def test_wide_rooms_are_found():
    capacity, random = 131_072, np.random.default_rng(0)
    lengths = random.integers(1, capacity + 1, 300).tolist()
    rows = pack_lengths(lengths, capacity)
    assert sorted(capacity - sum(lengths[i] for i in row) for row in rows) == in_plain_words(lengths, capacity)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: pack_lengths([5, 9, 8], 7),
            ValueError,
            "2 of 3 sequences are longer than the capacity 7; the first is number 1, with 9. over= takes truncate",
        ),
        (lambda: pack_lengths([5], 0), ValueError, "capacity is a number of positions, at least 1; got 0"),
        (lambda: pack_lengths([5, -1], 7), ValueError, "at least 0; got -1"),
        (lambda: pack_lengths([0.5], 7), TypeError, "lengths are integers; got torch.float32"),
        (lambda: pack_lengths([[5]], 7), ValueError, r"one length for each batch row, shape \(B,\); got shape \(1, 1\)"),
        (lambda: pack_lengths(iter([5]), 7), TypeError, "lengths are integers, a tensor or a list of them; got"),
        (lambda: pack_lengths(torch.ones(3, dtype=torch.int64, device="meta"), 7), ValueError, "lengths is on the meta device"),
        (lambda: row_slices([[0], [1, 2]], [5, 3], 7), IndexError, r"indices of 2 lengths, from 0 on; row 1 is \[1, 2\]"),
        (lambda: row_slices([[0, -1]], [5, 3], 7), IndexError, r"row 0 is \[0, -1\]"),
        (lambda: fill([[3]], [5, 3], 7), IndexError, r"row 0 is \[3\]"),
        (lambda: fill([[-1]], [5, 3], 7), IndexError, r"row 0 is \[-1\]"),
        (lambda: pack_lengths([5], 7, "worst_fit"), ValueError, "method is one of best_fit, next_fit; got 'worst_fit'"),
        (lambda: pack_lengths([5], 7, over="cut"), ValueError, "over is one of raise, truncate, split, drop; got 'cut'"),
        (lambda: pack_lengths([5], 7, open_rows=0), ValueError, "open_rows is a number of rows, at least 1; got 0"),
        (lambda: pack_lengths([5], 7, "next_fit", open_rows=3), ValueError, "next_fit has one open row; got open_rows=3"),
    ],
)  # fmt: skip
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
