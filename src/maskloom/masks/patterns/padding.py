"""Masks that hide padding.

A table named ``pads`` has True = padding, as in ``nn.MultiheadAttention``. A table with True or 1 = a real token, as in
Hugging Face's ``attention_mask``, goes to `real`.
"""

from collections.abc import Sequence
from dataclasses import field

import torch
from torch import Tensor

from maskloom.core.checks import INTEGERS, flags, length_table, readable
from maskloom.core.host_count import HostCount, counted_flags, counted_lengths, not_counted
from maskloom.masks.algebra import Mask, Tabled, mask_dataclass, shown
from maskloom.masks.padded import CountedSides, PaddingMask, Position, counted_sides, ends, outside, pads_at
from maskloom.masks.signed import Signed, without_negative

__all__ = ["lengths", "real", "padding", "key_padding", "create_padding_mask"]
OF_TENSORS = ("real", "padding", "key_padding", "create_padding_mask")  # a text cannot hold tensors


@mask_dataclass
class Lengths(PaddingMask):
    """See `lengths`."""

    runs_in_flash = True

    q_lens: Tensor
    kv_lens: Tensor
    q_count: HostCount = field(default_factory=not_counted)
    kv_count: HostCount = field(default_factory=not_counted)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (q_idx < self.q_lens[b]) & (kv_idx < self.kv_lens[b])

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return without_negative(self(b, h, q_idx, kv_idx), q_idx, kv_idx, signed)

    def __repr__(self) -> str:
        return _one_or_both("lengths", self.q_lens, self.kv_lens)

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return outside(self.kv_lens, first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return outside(self.q_lens, first, q_len)

    def row_ends(self) -> Tensor:
        return torch.maximum(self.q_lens, self.kv_lens)

    def counted_sides(self) -> CountedSides:
        return counted_sides(self.q_lens, self.q_count, self.kv_lens, self.kv_count)

    def beside_causal(self) -> Mask:
        return QueryLengths(self.q_lens, self.q_count) if self.q_lens is self.kv_lens else self


@mask_dataclass
class Padding(Tabled, PaddingMask):
    """See `padding`."""

    runs_in_flash = True

    q_pads: Tensor
    kv_pads: Tensor
    q_count: HostCount = field(default_factory=not_counted)
    kv_count: HostCount = field(default_factory=not_counted)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ~(self.q_pads[b, q_idx] | self.kv_pads[b, kv_idx])

    def __repr__(self) -> str:
        return _one_or_both("padding", self.q_pads, self.kv_pads)

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(self.kv_pads, first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return pads_at(self.q_pads, first, q_len)

    def row_ends(self) -> Tensor:
        return torch.maximum(ends(~self.q_pads), ends(~self.kv_pads))

    def counted_sides(self) -> CountedSides:
        return counted_sides(self.q_pads, self.q_count, self.kv_pads, self.kv_count)


@mask_dataclass
class Real(Tabled, PaddingMask):
    """See `real`."""

    runs_in_flash = True

    q_real: Tensor
    kv_real: Tensor
    q_count: HostCount = field(default_factory=not_counted)
    kv_count: HostCount = field(default_factory=not_counted)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.q_real[b, q_idx] & self.kv_real[b, kv_idx]

    def __repr__(self) -> str:
        return _one_or_both("real", self.q_real, self.kv_real)

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(~self.kv_real, first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return pads_at(~self.q_real, first, q_len)

    def row_ends(self) -> Tensor:
        return torch.maximum(ends(self.q_real), ends(self.kv_real))

    def counted_sides(self) -> CountedSides:
        return counted_sides(self.q_real, self.q_count, self.kv_real, self.kv_count, pads_of=torch.logical_not)


@mask_dataclass
class KeyPadding(PaddingMask):
    """See `key_padding`."""

    runs_in_flash = True

    pads: Tensor
    count: HostCount = field(default_factory=not_counted)
    name = "key_padding"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ~self.pads[b, kv_idx]

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(self.pads, first, kv_len)

    def row_ends(self) -> Tensor:
        return ends(~self.pads)

    def counted_sides(self) -> CountedSides:
        return counted_sides(self.pads, self.count, self.pads, self.count)._replace(queries=None)

    def __repr__(self) -> str:
        return f"key_padding({shown(self.pads)})"


def lengths(lens: Tensor | Sequence[int], kv_lens: Tensor | Sequence[int] | None = None) -> Lengths:
    """The first ``lens[b]`` positions of batch row b are real; the padding after them is hidden, as query and as key.

    ::

        lengths([3])    k0 k1 k2 k3
                    q0   x  x  x
                    q1   x  x  x
                    q2   x  x  x
                    q3

    Args:
        lens: integers (B,), the number of real positions of each batch row.
        kv_lens: integers (B,), the lengths of the keys for cross-attention; by default the same.

    Raises:
        TypeError, ValueError: not integers, not (B,), a negative length (checked on the CPU only).
    """
    q_lens = length_table("lens", lens)
    if kv_lens is None:
        count = counted_lengths(q_lens)
        return Lengths(q_lens, q_lens, count, count)
    keys = length_table("kv_lens", kv_lens)
    _same_batch("lens", q_lens, "kv_lens", keys)
    return Lengths(q_lens, keys, counted_lengths(q_lens), counted_lengths(keys))


def real(is_real: Tensor, kv_is_real: Tensor | None = None) -> Real:
    """Positions marked True or 1 are real, anywhere; all others are hidden, as query and as key.

    This is the meaning of ``attention_mask`` in Hugging Face tokenizers.

    ::

        real(tensor([[1, 0, 1]]))   k0 k1 k2
                                q0   x     x
                                q1
                                q2   x     x

    To hide keys alone, as Hugging Face's models do, write ``key_padding(~is_real)``. The mask holds a bool table
    itself, and follows writes into it. An integer table is copied to bools, and later writes into it have no effect.

    Args:
        is_real: bool (B, L), or integers (B, L) of 0 and 1.
        kv_is_real: the same for the keys (B, KV), for cross-attention; by default the same table.

    Raises:
        TypeError: neither bool nor integers. ValueError: another shape, integers other than 0 and 1 (checked on the CPU
            only), or two tables of different batch sizes.
    """
    q_real = _real_flags("is_real", is_real)
    if kv_is_real is None:
        count = counted_flags(q_real, real=True)
        return Real(q_real, q_real, count, count)
    kv_real = _real_flags("kv_is_real", kv_is_real)
    _same_batch("is_real", q_real, "kv_is_real", kv_real)
    return Real(q_real, kv_real, counted_flags(q_real, real=True), counted_flags(kv_real, real=True))


def padding(pads: Tensor, kv_pads: Tensor | None = None) -> Padding:
    """Positions marked True are padding, anywhere, and hidden as query and as key.

    ::

        padding(tensor([[False, True, False]]))   k0 k1 k2
                                              q0   x     x
                                              q1
                                              q2   x     x

    From token ids: ``padding(pads_from_tokens(tokens, pad_id))``, and for cross-attention
    ``padding(pads_from_tokens(tokens, pad_id), pads_from_tokens(kv_tokens, kv_pad_id))``.

    Args:
        pads: bool (B, L), True = padding.
        kv_pads: bool (B, KV), the padding of the keys for cross-attention; by default the same.

    Raises:
        TypeError: not bool. ValueError: another shape, or two tables of different batch sizes.
    """
    q_pads = flags("pads", pads, true_means="padding")
    if kv_pads is None:
        count = counted_flags(q_pads, real=False)
        return Padding(q_pads, q_pads, count, count)
    keys = flags("kv_pads", kv_pads, true_means="padding")
    _same_batch("pads", q_pads, "kv_pads", keys)
    return Padding(q_pads, keys, counted_flags(q_pads, real=False), counted_flags(keys, real=False))


create_padding_mask = padding
"""`padding` under the name that the article on padded causal FlexAttention uses."""


def key_padding(pads: Tensor) -> KeyPadding:
    """Positions marked True are hidden as keys. Every query sees the other keys, even a padded query.

    It is ``key_padding_mask`` of ``nn.MultiheadAttention``. `MultiheadFlexAttention` sets hidden positions to zero, so
    there a query at a hidden position is the query of a zero vector.

    ::

        key_padding(tensor([[False, True, False]]))   k0 k1 k2
                                                  q0   x     x
                                                  q1   x     x
                                                  q2   x     x

    Args:
        pads: bool (B, KV), True = padding.

    Raises:
        TypeError: not bool. ValueError: another shape.
    """
    table = flags("pads", pads, true_means="padding")
    return KeyPadding(table, counted_flags(table, real=False))


def _real_flags(name: str, is_real: Tensor) -> Tensor:
    if isinstance(is_real, Tensor) and is_real.dtype in INTEGERS:
        if readable(is_real) and is_real.numel() and not bool(((is_real == 0) | (is_real == 1)).all()):
            raise ValueError(f"{name} holds 0 and 1; got values from {int(is_real.min())} to {int(is_real.max())}")
        is_real = is_real.bool()
    return flags(name, is_real, true_means="a real token")


def _same_batch(name: str, table: Tensor, other_name: str, other: Tensor) -> None:
    if table.shape[0] != other.shape[0]:
        raise ValueError(f"{name} has {table.shape[0]} batch rows and {other_name} has {other.shape[0]}")


def _one_or_both(name: str, q_table: Tensor, kv_table: Tensor) -> str:
    return f"{name}({shown(q_table)})" if q_table is kv_table else f"{name}({shown(q_table)}, {shown(kv_table)})"


@mask_dataclass
class QueryLengths(PaddingMask):
    """``lengths(lens)`` when combined with ``causal``: made by `simplify`, and only equal to it there.

    It still reports the keys beyond the length as hidden, since no unmasked query sees them, so the padding stays
    known.
    """

    runs_in_flash = True

    lens: Tensor
    count: HostCount = field(default_factory=not_counted)
    description = "q_idx < lens[b]"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx < self.lens[b]

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return without_negative(self(b, h, q_idx, kv_idx), q_idx, kv_idx, signed)

    def __repr__(self) -> str:
        return f"lengths({shown(self.lens)})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return outside(self.lens, first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return self.hidden_keys(q_len, first)

    def counted_sides(self) -> CountedSides:
        return counted_sides(self.lens, self.count, self.lens, self.count)
