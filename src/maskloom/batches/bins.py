"""Which sequences share a row: bin packing of lengths into rows of one capacity.

Best fit puts a sequence into the fullest row that has room for it. Over all lengths, longest first, sequences of one
length are placed together (`_Rows`), so a million takes about a second. In the given order, with some rows open, it is
one search for each sequence (`_best_fit_open`).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskloom.core.checks import check_has_values, count, length_table, positive, refuse_bools_among_numbers
from maskloom.core.words import brief

Method = Literal["best_fit", "next_fit"]
Over = Literal["raise", "truncate", "split", "drop"]
Ints = NDArray[np.int64]


def pack_lengths(
    lengths: Sequence[int] | Tensor,
    capacity: int,
    method: Method = "best_fit",
    *,
    open_rows: int | None = None,
    over: Over = "raise",
) -> list[list[int]]:
    """Which sequences share a row of ``capacity`` positions, so that few positions stay empty.

    ``pack_lengths([5, 3, 4, 2], capacity=7)`` is ``[[0, 3], [1, 2]]``. Every sequence is in one row. Indices rise
    inside each row, and rows come in the order of their last index. `row_slices` says which tokens of a sequence are
    meant, and `fill` how full the rows are.

    Source: best fit decreasing (Johnson 1974); for language models, Ding et al. 2024 (arXiv 2404.10830).

    Args:
        lengths: integers (n,), the number of tokens of each sequence.
        capacity: positions in a row.
        method: "best_fit" puts a sequence into the fullest row with room for it. "next_fit" fills one row after the
            other, in the given order.
        open_rows: for best fit over a stream: rows are filled in the given order of the sequences, and at most so many
            are open at a time, so that chance orders the rows too. By default all sequences are sorted first.
        over: what becomes of a sequence longer than the capacity. "raise" is a ValueError. "truncate" keeps its first
            tokens, "drop" none. "split" cuts it into pieces of ``capacity`` tokens and a rest: its index then comes
            once for each piece, in their order.

    Returns:
        a list of rows, each a list of indices.

    Raises:
        TypeError, ValueError: not integers (n,), a negative length, a capacity or number of open rows below 1, a
            length above the capacity, another method or ``over``.
    """
    lens, capacity = lengths_on_host(lengths), positive("capacity", capacity)
    _check_choices(method, open_rows, over)
    index, sizes = fitted(lens, capacity, over)
    if open_rows is None and method == "best_fit":
        rows = _best_fit(sizes, capacity)
    else:
        rows = _best_fit_open(
            sizes, capacity, 1 if open_rows is None else count("open_rows", open_rows, least=1, of="rows")
        )
    return _as_lists(index, rows, sizes == capacity)


def row_slices(
    rows: Sequence[Sequence[int]], lengths: Sequence[int] | Tensor, capacity: int
) -> list[list[tuple[int, slice]]]:
    """Which tokens stand in the rows of `pack_lengths`: for each row pairs (index, slice of that sequence's tokens).

    A sequence of at most ``capacity`` tokens is there as a whole. For a longer one its k-th place in the rows holds the
    k-th piece of ``capacity`` tokens, whether it was truncated or split.

    Raises:
        TypeError, ValueError: not integers (n,), a negative length, a capacity below 1. IndexError: a row with an index
            that has no length.
    """
    lens, capacity = lengths_on_host(lengths).tolist(), positive("capacity", capacity)
    _check_rows(rows, len(lens))
    starts: dict[int, int] = {}
    found = []
    for row in rows:
        found.append([(i, slice(starts.get(i, 0), min(lens[i], starts.get(i, 0) + capacity))) for i in row])
        starts.update((i, piece.stop) for i, piece in found[-1])
    return found


def fill(rows: Sequence[Sequence[int]], lengths: Sequence[int] | Tensor, capacity: int) -> float:
    """How full the rows of `pack_lengths` are: tokens over positions, from 0 to 1; 1 if there are no rows.

    Raises:
        TypeError, ValueError, IndexError: as `row_slices`.
    """
    lens, capacity = lengths_on_host(lengths), positive("capacity", capacity)
    _check_rows(rows, len(lens))
    places = np.bincount(np.fromiter(chain.from_iterable(rows), np.int64), minlength=len(lens))
    return float(np.minimum(lens, places * capacity).sum() / (len(rows) * capacity)) if rows else 1.0


def _check_rows(rows: Sequence[Sequence[int]], number: int) -> None:
    for row, indices in enumerate(rows):
        if not all(kind is int or issubclass(kind, np.integer) for kind in set(map(type, indices))):
            raise TypeError(f"rows hold indices, ints; row {row} is {brief(indices)}")
        if indices and not 0 <= min(indices) <= max(indices) < number:
            raise IndexError(f"rows hold indices of {number} lengths, from 0 on; row {row} is {brief(indices)}")


def lengths_on_host(lengths: Sequence[int] | Tensor) -> Ints:
    """Checked lengths: int64 (n,)."""
    if not isinstance(lengths, (Tensor, Sequence)) and not hasattr(lengths, "__array__"):
        raise TypeError(f"lengths are integers, a tensor or a list of them; got {brief(lengths)}")
    if not isinstance(lengths, Tensor) and len(lengths) == 0:
        return np.zeros(0, np.int64)
    refuse_bools_among_numbers("lengths", lengths, "integers")
    if not isinstance(lengths, Tensor) and (array := np.asarray(lengths)).dtype.kind in "ui":
        lengths = torch.from_numpy(array.astype(np.int64))  # on the CPU, whatever the default device
    table = length_table("lengths", lengths)
    check_has_values("lengths", table)
    return table.cpu().numpy().astype(np.int64)


def _check_choices(method: str, open_rows: object, over: str) -> None:
    for name, value, choices in (("method", method, get_args(Method)), ("over", over, get_args(Over))):
        if value not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}; got {brief(value)}")
    if method == "next_fit" and open_rows is not None:
        raise ValueError(f"next_fit has one open row; got open_rows={brief(open_rows)}")


def fitted(lens: Ints, capacity: int, over: Over) -> tuple[Ints, Ints]:
    """The pieces to be placed, in order: the index of each one's sequence, and its size."""
    index, is_over = np.arange(len(lens)), lens > capacity
    if not is_over.any():
        return index, lens
    if over == "raise":
        at = int(is_over.argmax())
        raise ValueError(
            f"{int(is_over.sum())} of {len(lens)} sequences are longer than the capacity {capacity}; the first is "
            f"number {at}, with {int(lens[at])}. over= takes truncate, split or drop"
        )
    if over == "drop":
        return index[~is_over], lens[~is_over]
    if over == "truncate":
        return index, lens.clip(max=capacity)
    pieces = np.maximum(-(-lens // capacity), 1)
    index = index.repeat(pieces)
    sizes = np.full(len(index), capacity)
    last = pieces.cumsum() - 1
    sizes[last] = lens - (pieces - 1) * capacity
    return index, sizes


def _best_fit_open(sizes: Ints, capacity: int, most: int) -> Ints:
    """The row of each piece, where at most ``most`` rows are open at a time."""
    scale = len(sizes) + 1
    room: list[int] = []  # of each open row: its room · scale + its number; sorted
    rows, opened = [], 0
    for size in (sizes * scale).tolist():
        at = bisect_left(room, size)
        if at < len(room):
            row = room.pop(at)
        else:
            if len(room) == most:
                del room[0]  # the fullest
            row, opened = capacity * scale + opened, opened + 1
        rows.append(row % scale)
        if row - size >= scale:  # there is room left
            insort(room, row - size)
    return np.array(rows, np.int64)


def _best_fit(sizes: Ints, capacity: int) -> Ints:
    """The row of each piece, where the longest are placed first."""
    order = np.argsort(-sizes, kind="stable")
    found, counts = np.unique(sizes, return_counts=True)
    rows = _Rows(capacity)
    placed: list[int] = []
    for size, number in zip(found[::-1].tolist(), counts[::-1].tolist(), strict=True):
        rows.place(size, number, placed)
    result = np.empty(len(sizes), np.int64)
    result[order] = placed
    return result


class _Rows:
    """Rows by the room that they have, for many pieces of one size at a time.

    A set of bits says which rooms there are: one integer for each 1024 of them, and one for all of these.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._opened = capacity, 0
        self._with_room: dict[int, list[int]] = {}
        self._words = [0] * ((capacity >> 10) + 1)
        self._summary = 0

    def place(self, size: int, number: int, placed: list[int]) -> None:
        """Place ``number`` pieces of one size, and append the row of each to ``placed``."""
        if size == 0:  # they fit wherever there is room
            room = self._least_room(1)
            placed += (self._open(1) if room is None else self._with_room[room])[:1] * number
            return
        while number:
            room = self._least_room(size)
            if room is None:
                room, rows = self._capacity, self._open(-(-number // (self._capacity // size)))
            else:
                rows = self._taken(room)
            number -= self._filled(rows, room, size, number, placed)

    def _filled(self, rows: list[int], room: int, size: int, number: int, placed: list[int]) -> int:
        """Fill rows of one room with pieces of one size, one row after the other; how many were placed."""
        each = room // size
        whole = min(number // each, len(rows))  # rows that take as many as they can
        placed += [row for row in rows[:whole] for _ in range(each)] if each > 1 else rows[:whole]
        self._add(room - each * size, rows[:whole])
        rest = min(number - whole * each, each) if whole < len(rows) else 0
        if rest:
            placed += [rows[whole]] * rest
            self._add(room - rest * size, [rows[whole]])
        self._add(room, rows[whole + (rest > 0) :])
        return whole * each + rest

    def _open(self, number: int) -> list[int]:
        first, self._opened = self._opened, self._opened + number
        return list(range(first, self._opened))

    def _add(self, room: int, rows: list[int]) -> None:
        if not rows or not room:
            return
        if room in self._with_room:
            self._with_room[room] += rows
            return
        self._with_room[room] = rows
        self._words[room >> 10] |= 1 << (room & 1023)
        self._summary |= 1 << (room >> 10)

    def _taken(self, room: int) -> list[int]:
        self._words[room >> 10] ^= 1 << (room & 1023)
        if not self._words[room >> 10]:
            self._summary ^= 1 << (room >> 10)
        return self._with_room.pop(room)

    def _least_room(self, size: int) -> int | None:
        """The least room of at least ``size``; None if no row has it."""
        at = size >> 10
        here = self._words[at] >> (size & 1023)
        if here:
            return size + _lowest(here)
        above = self._summary >> (at + 1)
        if not above:
            return None
        at += 1 + _lowest(above)
        return (at << 10) + _lowest(self._words[at])


def _lowest(bits: int) -> int:
    """The number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1


def _as_lists(index: Ints, rows: Ints, is_full: NDArray[np.bool_]) -> list[list[int]]:
    """The rows as lists of indices: ordered by the last index; of one sequence's pieces the full ones come first."""
    if not len(rows):
        return []
    order = np.argsort(rows, kind="stable")  # the index rises in each row, as pieces are in order
    ends = np.flatnonzero(np.diff(rows[order], append=-1)) + 1
    starts = np.append(0, ends[:-1])
    last = order[ends - 1]  # the last piece of each row
    by_last = np.argsort(np.where(is_full[last], 2 * index[last], 2 * index[last] + 1))
    flat = index[order].tolist()
    return [flat[start:end] for start, end in zip(starts[by_last].tolist(), ends[by_last].tolist(), strict=True)]
