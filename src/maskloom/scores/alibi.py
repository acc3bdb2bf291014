"""Attention with linear biases."""

import math

import torch
from torch import Tensor

from maskloom.masks.checks import count
from maskloom.scores.base import ScoreValue, score_value


@score_value
class Alibi(ScoreValue):
    """See `alibi`. ``slopes`` is float32 (H,)."""

    slopes: Tensor

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + self.slopes[h] * (kv_idx - q_idx)

    def __repr__(self) -> str:
        return f"alibi({len(self.slopes)})"

    @property
    def heads(self) -> int:
        return len(self.slopes)


def alibi(n_heads: int) -> Alibi:
    """A penalty that grows with the distance to the key, at a rate of each head's own: ``score + slope[h] * (kv_idx - q_idx)``.

    ::

        alibi(8), head 0   k0    k1    k2    k3        slopes of 8 heads   1/2  1/4  1/8  ...  1/256
                       q0   0    1/2    1   3/2
                       q1 -1/2    0    1/2   1
                       q2  -1   -1/2    0   1/2

    Keys before the query are penalised, and keys after it rewarded: it belongs to a causal mask. H heads, a power of two,
    have the slopes ``2 ** (-8 / H)``, its square, its cube and so on. Another number of heads has those of the power of two
    below it, and then every other one of the power of two above, from the first on: the rule of the paper's code.

    It holds a table (H,): for a GPU, move it with ``.to``. Source: Press et al. 2022 (arXiv 2108.12409), section 3, and
    its code's ``get_slopes``.

    Args:
        n_heads: H, query heads of the whole layer, at least 1. For some of them, `shifted_score` with ``h_offset``.

    Raises:
        TypeError: not an int. ValueError: below 1.
    """
    return Alibi(torch.tensor(_slopes(count("n_heads", n_heads, least=1, of="heads")), dtype=torch.float32))


def _slopes(heads: int) -> list[float]:
    below = 1 << (heads.bit_length() - 1)
    return _geometric(below) + _geometric(2 * below)[0::2][: heads - below]


def _geometric(heads: int) -> list[float]:
    return [math.pow(2, -8 * (head + 1) / heads) for head in range(heads)]
