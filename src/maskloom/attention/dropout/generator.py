"""Which pairs dropout keeps: a hash of the seed, the batch row, the head, the query and the key, the same wherever it runs.

It has no state, so a kernel, a table and a recomputation find the same pairs. A row of queries has 62 bits, made once for all
its keys (SplitMix64 of a counter); with the key they make a word of 31 bits for each pair, in three products. Kernels have
indices in int32 and torch in int64: a product that wraps in int32 has the same low 31 bits as one that does not, and words are
never negative, so both shift right alike. A word is used in few places: torch's compiler writes an expression out anew
wherever it is used.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (counters in place of a state); Steele, Lea and Flood
2014, "Fast splittable pseudorandom number generators" (SplitMix64). The constants of the three products are odd numbers below
2³¹ for which, in pairs, one changed bit changes each bit of the result with probability 1/2, within the noise of 400,000 samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maskloom.scores.base import ScoreMod, ScoreValue, score_dataclass
from maskloom.scores.lifted import by_shape

_BITS = 31
_MOST = (1 << _BITS) - 1
_FIRST, _SECOND, _THIRD = 0x7993EAA7, 0x2C7A3D35, 0x31848BAB


@score_dataclass
class Dropping(ScoreValue):
    """The score of a pair that is kept, -inf of one that is dropped.

    Attributes:
        one, two: int32 (B, H, Q), the words of each row.
        keys: integers (B or 1, K), the position of each key; None where that is its index.
        least: int32, without dimensions: the least word of a pair that is kept.
    """

    one: Tensor
    two: Tensor
    keys: Tensor | None
    least: Tensor

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        key = kv_idx if self.keys is None else self.keys[b, kv_idx]
        word = pair_word(self.one[b, h, q_idx], self.two[b, h, q_idx], key)
        return torch.where(word >= self.least, score, -math.inf)

    @property
    def adds(self) -> bool:
        return True  # 0 or -inf


def dropping_of(
    rate: float,
    seed: Tensor,
    sizes: tuple[int, int, int, int],
    placed: Callable[[ScoreMod], ScoreMod],
    *,
    by_slots: bool,
) -> Dropping:
    """What drops a pair with probability ``rate``, to 2⁻³¹; of rate 1 the caller has to hide the last.

    Args:
        seed: int64, without dimensions.
        sizes: B, H, Q, K.
        placed: a score_mod at the true positions and heads, from one at indices.
        by_slots: whether keys lie in the slots of a cache, whose positions are not their indices.
    """
    score = torch.zeros(1, 1, 1, 1, device=seed.device)

    def at_all(value: ScoreValue) -> Tensor:
        return by_shape(placed(value), score, sizes, (0, 0, 0, 0))

    batch, heads, q_len, _ = sizes
    bits = at_all(_RowBits(seed)).squeeze(3).expand(batch, heads, q_len)
    one, two = (((bits >> shift) & _MOST).to(torch.int32) for shift in (0, _BITS))
    least = torch.full((), min(int(rate * (1 << _BITS)), _MOST), dtype=torch.int32, device=seed.device)
    return Dropping(one, two, at_all(_KeyPosition())[:, 0, 0].expand(batch, -1) if by_slots else None, least)


def pair_word(one: Tensor, two: Tensor, key: Tensor) -> Tensor:
    """A word from 0 to 2³¹ - 1 for each pair, of the words of its row and of the key's position, at least 0."""
    word = (one + key) & _MOST
    word = ((word ^ (word >> 15)) * _FIRST) & _MOST
    word = ((word ^ (word >> 13) ^ two) * _SECOND) & _MOST
    return ((word ^ (word >> 16)) * _THIRD) & _MOST


@score_dataclass
class _RowBits(ScoreValue):
    """Not a score but 64 bits for each row: SplitMix64 of its place. A score_mod in form, so that offsets shift it as one."""

    seed: Tensor

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        counter = self.seed
        for index, step in zip((b, h, q_idx), _STEPS, strict=True):
            counter = counter * step + index.to(torch.int64)
        return mixed(counter * _LAST_STEP)


@score_dataclass
class _KeyPosition(ScoreValue):
    """Not a score but the key's position."""

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx


def mixed(bits: Tensor) -> Tensor:
    """SplitMix64's function of 64 bits, int64; products wrap."""
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    """64 bits as int64 has them."""
    return constant - (1 << 64) if constant >> 63 else constant


_STEPS = tuple(map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0xD1342543DE82EF95)))
"""What the counter is multiplied by before the batch row, the head and the query are added to it: odd numbers.

No index is multiplied itself: Inductor (torch 2.11) writes such a product with the constant in int32, where it does not fit."""

_LAST_STEP = 0x2545F4914F6CDD1D
