"""Learned biases of the distance between query and key."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.core.checks import check_ids_below, count, integers, readable
from maskloom.core.values import shown
from maskloom.scores.base import ScoreValue, score_dataclass


@score_dataclass
class RelativeBias(ScoreValue):
    """See `relative_bias`. From the distance ``reach`` on all keys share an entry; ``last`` is its column, ``2 * reach``."""

    table: Tensor
    buckets: Tensor | None
    reach: int | Tensor
    last: int | Tensor  # a field, because a kernel cannot capture a number that is computed from a dynamic one

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        column = (kv_idx - q_idx + self.reach).clamp(min=0).clamp(max=self.last)
        return score + self.table[h, column if self.buckets is None else self.buckets[column]]

    def __repr__(self) -> str:
        buckets = "" if self.buckets is None else f", buckets={shown(self.buckets)}"
        return f"relative_bias({shown(self.table)}{buckets})"

    @property
    def adds(self) -> bool:
        return True

    @property
    def is_by_distance(self) -> bool:
        return True

    @property
    def heads(self) -> int:
        return self.table.shape[0]


def relative_bias(table: Tensor, *, buckets: Tensor | Sequence[int] | None = None) -> RelativeBias:
    """A learned bias for each head and distance: ``score + table[h, kv_idx - q_idx + max_distance]``.

    ::

        relative_bias(tensor([[5.0, 6, 7, 8, 9]])), head 0   k0   k1   k2   k3
                                                         q0   7    8    9    9
                                                         q1   6    7    8    9
                                                         q2   5    6    7    8

    Here ``max_distance`` is 2; larger distances have the bias of ``max_distance``. With ``buckets`` several distances
    share a column: the bias is ``table[h, buckets[kv_idx - q_idx + max_distance]]``. `t5_buckets` makes T5's buckets.

    It holds the table itself, so that the table gets gradients, and updates by an optimiser are seen. Made from a
    Parameter, it stays valid; if the table is computed from a Parameter (``embedding.weight.T``), make it in every
    forward.

    Source: Shaw et al. 2018 (arXiv 1803.02155), section 3.2, for the clipping; Raffel et al. 2020 (arXiv 1910.10683),
    section 2.1, for one scalar per head.

    Args:
        table: floating point (H, 2 * max_distance + 1); with ``buckets`` (H, number of buckets).
        buckets: the column for each distance from ``-max_distance`` to ``max_distance``: integers (2 * max_distance +
            1,); they are moved to the table's device.

    Raises:
        TypeError: a table that is not a floating-point tensor; buckets that are not integers. ValueError: other shapes,
            a bucket that the table does not have.
    """
    if not isinstance(table, Tensor) or not table.is_floating_point():
        got = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"table is a floating-point tensor (heads, distances); got {got}")
    if table.ndim != 2 or table.numel() == 0:
        raise ValueError(f"table has shape (heads, distances); got {tuple(table.shape)}")
    if buckets is not None:
        checked = _checked_buckets(buckets, table.shape[1]).to(table.device)
        return RelativeBias(table, checked, len(checked) // 2, len(checked) - 1)
    if table.shape[1] % 2 == 0:
        raise ValueError(
            "table has an odd number of columns, 2 * max_distance + 1, one for each distance from -max_distance to "
            f"max_distance; got shape {tuple(table.shape)}"
        )
    return RelativeBias(table, None, table.shape[1] // 2, table.shape[1] - 1)


def t5_buckets(number: int, *, max_distance: int = 128, bidirectional: bool = True) -> Tensor:
    """T5's buckets of distances, for `relative_bias`: one per small distance; large ones share, on a log scale.

    ::

        kv_idx - q_idx                                                 -8 -7 -6 -5 -4 -3 -2 -1  0  1  2  3  4  5  6  7  8
        t5_buckets(8, max_distance=8)                                   3  3  3  3  3  2  2  1  0  5  6  6  7  7  7  7  7
        t5_buckets(8, max_distance=8, bidirectional=False)              7  7  6  5  4  3  2  1  0  0  0  0  0  0  0  0  0

    Half of the buckets of one direction are for one distance each; the other half are for growing ranges, up to
    ``max_distance``; all larger distances share the last bucket. If bidirectional, the first half is for keys up to the
    query, and the second half for keys after it; otherwise keys after the query share bucket 0 with the query itself.

    T5 does not scale its scores: ``attend(..., scale=1.0)``. Source: Raffel et al. 2020 (arXiv 1910.10683), section
    2.1, and its code's ``_relative_position_bucket``; computed in float32 like there, so that trained tables stay
    valid.

    Args:
        number: number of buckets (columns of the table): at least 2, or even and at least 4 if bidirectional. T5 has
            32.
        max_distance: in positions, more than the largest distance with its own bucket.
        bidirectional: True as in T5's encoder; False as in its decoder.

    Returns:
        int64 (2 * max_distance + 1,), for distances from ``-max_distance`` to ``max_distance``.

    Raises:
        TypeError, ValueError: other numbers.
    """
    number = count("number", number, least=4 if bidirectional else 2, of="buckets")
    if bidirectional and number % 2:
        raise ValueError(f"number is even, half of the buckets for each direction; got {number}")
    of_one_side = number // 2 if bidirectional else number
    exact = of_one_side // 2
    max_distance = count("max_distance", max_distance, least=exact + 1)
    distance = torch.arange(-max_distance, max_distance + 1)
    behind = distance.abs() if bidirectional else (-distance).clamp(min=0)
    scale = math.log(max_distance / exact)
    far = exact + (torch.log(behind.float() / exact) / scale * (of_one_side - exact)).long()
    bucket = torch.where(behind < exact, behind, far.clamp(max=of_one_side - 1))
    return bucket + of_one_side * (distance > 0) if bidirectional else bucket


def _checked_buckets(buckets: Tensor | Sequence[int], columns: int) -> Tensor:
    checked = integers("buckets", buckets)
    if checked.ndim != 1 or len(checked) % 2 == 0:
        raise ValueError(
            "buckets has an odd number of entries, 2 * max_distance + 1, one for each distance from -max_distance to "
            f"max_distance; got shape {tuple(checked.shape)}"
        )
    check_ids_below("the table has columns for", checked, columns, "buckets")
    if readable(checked) and int(checked.min()) < 0:
        raise ValueError(f"buckets are columns of the table, at least 0; got {int(checked.min())}")
    return checked.long()
