"""Attention with linear biases (ALiBi)."""

import math

import torch
from torch import Tensor

from maskloom.core.checks import check_flags, count
from maskloom.scores.base import ScoreValue, score_dataclass


@score_dataclass
class Alibi(ScoreValue):
    """See `alibi`. ``slopes`` is float32 (H,)."""

    slopes: Tensor
    symmetric: bool

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        distance = kv_idx - q_idx
        return score + self.slopes[h] * (-distance.abs() if self.symmetric else distance)

    def __repr__(self) -> str:
        return f"alibi({len(self.slopes)}{', symmetric=True' * self.symmetric})"

    @property
    def adds(self) -> bool:
        return True

    @property
    def is_by_distance(self) -> bool:
        return True

    @property
    def heads(self) -> int:
        return len(self.slopes)


def alibi(n_heads: int, *, symmetric: bool = False) -> Alibi:
    """A penalty that grows with the distance, at a rate per head: ``score + slope[h] * (kv_idx - q_idx)``.

    ::

        alibi(8), head 0   k0    k1    k2    k3        alibi(8, symmetric=True)   k0    k1    k2    k3
                       q0   0    1/2    1   3/2                               q0   0   -1/2  -1   -3/2
                       q1 -1/2    0    1/2   1                                q1 -1/2    0   -1/2  -1
                       q2  -1   -1/2    0   1/2                               q2  -1   -1/2    0   -1/2

    Keys before the query are penalised, and keys after it rewarded: use it with a causal mask. For encoders use
    ``symmetric``: ``score - slope[h] * abs(kv_idx - q_idx)``.

    The slopes of 8 heads are 1/2, 1/4, ..., 1/256. If the number of heads H is a power of two, they are ``2 ** (-8 /
    H)``, its square, its cube and so on. Another number of heads has the slopes of the next lower power of two, and
    then every other slope of the next higher one, starting with the first: the rule of the paper's code, and of Bloom's
    and MPT's.

    It holds a table (H,): for a GPU, move it with ``.to``. Source: Press et al. 2022 (arXiv 2108.12409), section 3, and
    its code's ``get_slopes``; symmetric in MosaicBERT (Portes et al. 2023) and in Jina's encoders.

    Args:
        n_heads: H, the number of query heads of the whole layer, at least 1. For some of them, `shifted_score` with
            ``h_offset``.
        symmetric: whether keys after the query are penalised like those before it.

    Raises:
        TypeError: not an int, or a flag that is none. ValueError: below 1.
    """
    check_flags(symmetric=symmetric)
    slopes = _slopes(count("n_heads", n_heads, least=1, of="heads"))
    return Alibi(torch.tensor(slopes, dtype=torch.float32), symmetric)


def _slopes(heads: int) -> list[float]:
    below = 1 << (heads.bit_length() - 1)
    return _geometric(below) + _geometric(2 * below)[0::2][: heads - below]


def _geometric(heads: int) -> list[float]:
    return [math.pow(2, -8 * (head + 1) / heads) for head in range(heads)]
