"""Negative positions: with padding on the left, a shift moves the first real token to position 0.

Nothing is there: masks that hide padding hide these positions, and a table has no entry for them (a negative index
would read the table from its end). Only `shifted` can produce such positions, so masks check for them only under it
(`Mask.signed`).
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Signed(NamedTuple):
    """Whether positions of queries, and of keys, may be negative."""

    q: bool
    kv: bool


def from_zero(idx: Tensor) -> Tensor:
    """The position, with 0 for a negative one. (Not clamp, which FlashAttention 4 does not support.)"""
    return idx * (idx >= 0).to(idx.dtype)


def without_negative(answer: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
    """An answer, changed to False where a position that may be negative is negative."""
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
    """The answer of a mask that reads tables; False where a position that may be negative is negative."""
    q_entry, kv_entry = from_zero(q_idx) if signed.q else q_idx, from_zero(kv_idx) if signed.kv else kv_idx
    return without_negative(mask(b, h, q_entry, kv_entry), q_idx, kv_idx, signed)
