"""Positions before 0: where padding stands on the left, and a shift brings the first real token to position 0.

Nothing is there. Masks that hide padding hide it too, and a table has no entry for it: a negative index would read the table
from its end. Only what is `shifted` can ask for such positions, so only there does a mask look out for them (`Mask.signed`).
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Signed(NamedTuple):
    """Whether positions of queries, and of keys, may be negative."""

    q: bool
    kv: bool


def from_zero(idx: Tensor) -> Tensor:
    """The position, 0 in place of a negative one. (FlashAttention 4 takes no clamp.)"""
    return idx * (idx >= 0).to(idx.dtype)


def without_negative(answer: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
    """An answer, False where a position that may be negative is."""
    if signed.q:
        answer = answer & (q_idx >= 0)
    return answer & (kv_idx >= 0) if signed.kv else answer


def read_from_zero(
    mask: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    b: Tensor,
    h: Tensor,
    q_idx: Tensor,
    kv_idx: Tensor,
    signed: Signed,
) -> Tensor:
    """What a mask that reads tables answers, False where a position that may be negative is."""
    q_entry, kv_entry = from_zero(q_idx) if signed.q else q_idx, from_zero(kv_idx) if signed.kv else kv_idx
    return without_negative(mask(b, h, q_entry, kv_entry), q_idx, kv_idx, signed)
