"""Attention as a layer of the page: weights of elements, or of long sequences the means of cells."""

import math
from collections.abc import Iterator
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
_LEVELS = (255, 63)  # 0 is not finite; of many weights fewer levels, which take less room
_FINE = 1 << 20  # weights
_MOST_BYTES = 4_300_000
_AT_ONCE = 1 << 22


def scores_for(subject: "Subject") -> dict[str, Any] | None:
    """The weights of the batch rows and heads of a page, in cells so small that they have room."""
    if subject.scores is None:
        return None
    batch, heads = subject.scores.shape[:2]
    which = [[(row % batch, head % heads) for head in subject.heads] for row in subject.rows]
    pairs = list(dict.fromkeys(pair for row in which for pair in row))
    side = 1 << (-(-max(subject.scores.shape[2:]) // LONGEST) - 1).bit_length()
    while (grids := _grids(subject.scores, pairs, side)) is None:
        side *= 2
    numbers = [[pairs.index(pair) for pair in row] for row in which]
    return {"side": side, **grids, "which": numbers}


def _grids(scores: Tensor, pairs: list[tuple[int, int]], side: int) -> dict[str, Any] | None:
    """The grids of some batch rows and heads; None if there is no room for them."""
    shape = [-(-length // side) for length in scores.shape[2:]]
    levels = _levels(len(pairs) * math.prod(shape))
    found, size = [], 0
    for place, pair in enumerate(pairs):
        found.append(_stored(means(scores[pair], side), levels))
        size += size_of(found[-1]["numbers"])
        if size + (len(pairs) - place - 1) * size // (2 * place + 2) > _MOST_BYTES:  # others take at least half as much
            return None
    return {"shape": shape, "levels": levels, "grids": found}


def _levels(count: int) -> int | None:
    """How many numbers a weight may have; None for float32 itself."""
    if count <= _EXACT:
        return None
    return _LEVELS[0] if count <= _FINE else _LEVELS[1]


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
    """Numbers of a grid: as they are, or as levels between the least and the largest, denser near the least."""
    finite = values[values.isfinite()]
    scale = scale_of([finite[finite != 0].numpy()], None, from_zero=True)
    low, high = scale.low, max(float(finite.max()) if finite.numel() else 0.0, scale.high)
    ends = {"low": low, "high": high, "top": scale.high}
    if levels is None:
        return ends | {"numbers": stored(values.contiguous())}
    part = ((values - low) / (high - low)).clamp(0, 1).sqrt()
    number = torch.where(values.isfinite(), (part * (levels - 1)).round() + 1, 0)
    return ends | {"numbers": stored(number.to(torch.uint8))}
