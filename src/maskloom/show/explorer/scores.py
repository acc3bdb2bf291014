"""Attention as a layer of the page: weights of elements, or of long sequences the means of cells."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskloom.show.colour_scale import scale_of
from maskloom.show.explorer.stored import size_of, stored

if TYPE_CHECKING:
    from maskloom.show.explorer.subject import Subject

LONGEST = 2048
"""The number of tokens up to which the page has single weights, if they have room in it."""

_EXACT = 1 << 16  # weights that are stored as float32
_LEVELS = (255, 63)  # of many weights fewer, which take less room
_MOST_BYTES = 4_300_000
_AT_ONCE = 1 << 22
_SAMPLE = 1 << 20  # weights that levels are chosen by


def scores_for(subject: "Subject") -> dict[str, Any] | None:
    """The weights of the batch rows and heads of a page, in cells so small that they have room."""
    if subject.scores is None:
        return None
    batch, heads = subject.scores.shape[:2]
    which = [[(row % batch, head % heads) for head in subject.heads] for row in subject.rows]
    pairs = list(dict.fromkeys(pair for row in which for pair in row))
    first = 1 << (-(-max(subject.scores.shape[2:]) // LONGEST) - 1).bit_length()
    tried = (
        (side, grids)
        for side in (first << doubled for doubled in range(64))
        for levels in _levels(subject.scores, pairs, side)
        if (grids := _grids(subject.scores, pairs, side, levels)) is not None
    )
    side, grids = next(tried)
    numbers = [[pairs.index(pair) for pair in row] for row in which]
    return {"side": side, "shape": _shape(subject.scores, side), "grids": grids, "which": numbers}


def _shape(scores: Tensor, side: int) -> list[int]:
    return [-(-length // side) for length in scores.shape[2:]]


def _levels(scores: Tensor, pairs: list[tuple[int, int]], side: int) -> Sequence[int | None]:
    """How many numbers a weight may have, the best first; None for float32 itself."""
    return (None,) if len(pairs) * math.prod(_shape(scores, side)) <= _EXACT else _LEVELS


def _grids(scores: Tensor, pairs: list[tuple[int, int]], side: int, levels: int | None) -> list[dict[str, Any]] | None:
    """The grids of some batch rows and heads; None if there is no room for them."""
    found, size = [], 0
    for place, pair in enumerate(pairs):
        found.append(_stored(means(scores[pair], side), levels))
        size += size_of(found[-1]["numbers"])
        if size + (len(pairs) - place - 1) * size // (2 * place + 2) > _MOST_BYTES:  # others take at least half as much
            return None
    return found


def means(weights: Tensor, side: int) -> Tensor:
    """The mean of the finite weights in each cell: float32 (rows, columns) on the CPU; NaN where there is none."""
    if side == 1:
        values = weights.float().cpu()
        return torch.where(values.isfinite(), values, math.nan)
    return torch.cat([_means(part, side) for part in _bands(weights, side)])


def _bands(weights: Tensor, side: int) -> Iterator[Tensor]:
    """Some rows of cells at a time, so that little memory is used."""
    yield from weights.split(side * max(1, _AT_ONCE // (side * weights.shape[1])))


def _means(weights: Tensor, side: int) -> Tensor:
    values = weights.double()
    finite = values.isfinite()
    total, count = (_summed(part, side) for part in (torch.where(finite, values, 0), finite.double()))
    return (total / count).float().cpu()


def _summed(values: Tensor, side: int) -> Tensor:
    rows, columns = (-(-length // side) for length in values.shape)
    room = columns * side - values.shape[1], rows * side - values.shape[0]
    whole = torch.nn.functional.pad(values, (0, room[0], 0, room[1]))
    return whole.unflatten(1, (columns, side)).sum(-1).unflatten(0, (rows, side)).sum(1)


def _stored(values: Tensor, levels: int | None) -> dict[str, Any]:
    """A grid as the page reads it: float32, or the numbers of levels from 1 on, and 0 where it is not finite."""
    finite = values[values.isfinite()]
    nonzero = finite[finite != 0]
    scale = scale_of([nonzero.numpy()], None, from_zero=True)
    ends = {
        "low": scale.low,
        "high": max(float(finite.max()) if finite.numel() else 0.0, scale.high),
        "top": scale.high,
    }
    if levels is None:
        return ends | {"book": None, "numbers": stored(values.contiguous())}
    book = book_of(nonzero, levels - 1)
    number = torch.bucketize(values, (book[1:] + book[:-1]) / 2) + 1
    number = torch.where(values.isfinite(), number, 0)
    return ends | {"book": [float(f"{one:.6g}") for one in book.tolist()], "numbers": stored(number.to(torch.uint8))}


def book_of(nonzero: Tensor, count: int) -> Tensor:
    """Levels for weights: zero, some where many weights lie, and some as far apart as the weights reach; ascending."""
    if not nonzero.numel():
        return torch.zeros(1)
    sample = nonzero[:: -(-nonzero.numel() // _SAMPLE)].sort().values
    half = (count - 1) // 2
    many = sample[torch.linspace(0, len(sample) - 1, half).long()]
    least, most = float(sample[len(sample) // 100]), float(nonzero.max())
    if least > 0:
        apart = torch.linspace(math.log(least), math.log(most), count - 1 - half).exp()
    else:
        apart = torch.linspace(float(nonzero.min()), most, count - 1 - half)
    return torch.cat([torch.zeros(1), many, apart]).unique()
