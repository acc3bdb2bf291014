"""Masks that hide padding.

A table named ``pads`` has True = padding, as ``nn.MultiheadAttention`` has it. A table where True or 1 is a real token,
as Hugging Face's ``attention_mask`` has it, goes to `real`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.masks.algebra import And, Mask, Tabled, as_mask, is_torch_and, mask_value, shown
from maskloom.masks.checks import INTEGERS, flags, is_zero, length_table, may_be_negative, readable
from maskloom.masks.dense import MaskMod
from maskloom.masks.moved import Shifted
from maskloom.masks.signed import Signed, read_from_zero, without_negative

Position = int | Tensor
"""A position: an int, or integers without dimensions, or (B,), one for each batch row."""


def positions_from(first: Position, length: int, device: torch.device) -> Tensor:
    """So many positions: integers (length,), or (B, length) where each batch row has its own first one."""
    positions = torch.arange(length, device=device)
    return positions if is_zero(first) else positions + (first[..., None] if isinstance(first, Tensor) else first)


def outside(lens: Tensor, first: Position, length: int) -> Tensor:
    """Which of ``length`` positions lie behind a length (B,), or before position 0: bool (B, length)."""
    positions = positions_from(first, length, lens.device)
    behind = positions >= lens[:, None]
    return behind | (positions < 0) if may_be_negative(first) else behind


def pads_at(pads: Tensor, first: Position, length: int) -> Tensor:
    """Which of ``length`` positions are padding, by a table (B or 1, L) of it: bool (B or 1, length). Before position 0 is padding."""
    if not may_be_negative(first):
        return pads[:, first : first + length]
    positions = positions_from(first, length, pads.device)
    return entries_of(pads, positions.clamp(0, pads.shape[1] - 1)) | (positions < 0)


def entries_of(table: Tensor, at: Tensor) -> Tensor:
    """Entries of a table (B or 1, L) at positions (length,), or (B, length), of each batch row's own."""
    return table[:, at] if at.ndim == 1 else table.expand(len(at), -1).gather(1, at)


def ends(is_real: Tensor) -> Tensor:
    """The position behind the last real one in each row of a table bool (B or 1, L): int64 (B or 1,)."""
    return (is_real * torch.arange(1, is_real.shape[1] + 1, device=is_real.device)).amax(1)


class PaddingMask(Mask):
    """A mask that hides certain keys from every query, and knows which."""

    @abstractmethod
    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        """Which of ``kv_len`` keys from position ``first`` on are hidden: bool (B or 1, KV).

        ``first`` is given for masks that are `shifted`, and only then. Keys before position 0 are hidden.
        """

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor | None:
        """Which of ``q_len`` queries from ``first`` on see nothing because they are padding: bool (B or 1, Q); None: not known."""
        return None

    def row_ends(self) -> Tensor | None:
        """The position behind the last real one, query or key, in each row: integers (B or 1,); None: it does not say."""
        return None

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return read_from_zero(self, b, h, q_idx, kv_idx, Signed(False, signed.kv))


@mask_value
class Lengths(PaddingMask):
    """See `lengths`."""

    q_lens: Tensor
    kv_lens: Tensor

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


@mask_value
class Padding(Tabled, PaddingMask):
    """See `padding`."""

    q_pads: Tensor
    kv_pads: Tensor

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


@mask_value
class Real(Tabled, PaddingMask):
    """See `real`."""

    q_real: Tensor
    kv_real: Tensor

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


@mask_value
class KeyPadding(PaddingMask):
    """See `key_padding`."""

    pads: Tensor
    name = "key_padding"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ~self.pads[b, kv_idx]

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(self.pads, first, kv_len)

    def row_ends(self) -> Tensor:
        return ends(~self.pads)


def lengths(lens: Tensor | Sequence[int], kv_lens: Tensor | Sequence[int] | None = None) -> Lengths:
    """The first ``lens[b]`` positions of batch row b are real; the padding after them is hidden, as query and as key.

    ::

        lengths([3])    k0 k1 k2 k3
                    q0   x  x  x
                    q1   x  x  x
                    q2   x  x  x
                    q3

    Args:
        lens: integers (B,), real positions of each batch row.
        kv_lens: integers (B,), the keys' own lengths for cross-attention; by default the same.

    Raises:
        TypeError, ValueError: not integers, not (B,), a negative length (looked at on the CPU only).
    """
    q_lens = length_table("lens", lens)
    if kv_lens is None:
        return Lengths(q_lens, q_lens)
    keys = length_table("kv_lens", kv_lens)
    _same_batch("lens", q_lens, "kv_lens", keys)
    return Lengths(q_lens, keys)


def real(is_real: Tensor, kv_is_real: Tensor | None = None) -> Real:
    """Positions marked True or 1 are real, anywhere; all others are hidden, as query and as key.

    This is how Hugging Face tokenizers' ``attention_mask`` is meant.

    ::

        real(tensor([[1, 0, 1]]))   k0 k1 k2
                                q0   x     x
                                q1
                                q2   x     x

    To hide keys alone, as Hugging Face's models do, write ``key_padding(~is_real)``. Bools are held as they are, and writes into
    them are followed. Of integers bools are made, and a later write into them changes nothing.

    Args:
        is_real: bool (B, L), or integers (B, L) of 0 and 1.
        kv_is_real: the same for the keys (B, KV), for cross-attention; by default the same table.

    Raises:
        TypeError: neither bool nor integers. ValueError: another shape, integers other than 0 and 1 (looked at on the CPU only),
            or two tables of different batch sizes.
    """
    q_real = _real_flags("is_real", is_real)
    if kv_is_real is None:
        return Real(q_real, q_real)
    kv_real = _real_flags("kv_is_real", kv_is_real)
    _same_batch("is_real", q_real, "kv_is_real", kv_real)
    return Real(q_real, kv_real)


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
        kv_pads: bool (B, KV), the keys' own padding for cross-attention; by default the same.

    Raises:
        TypeError: not bool. ValueError: another shape, or two tables of different batch sizes.
    """
    q_pads = flags("pads", pads, true_means="padding")
    if kv_pads is None:
        return Padding(q_pads, q_pads)
    keys = flags("kv_pads", kv_pads, true_means="padding")
    _same_batch("pads", q_pads, "kv_pads", keys)
    return Padding(q_pads, keys)


create_padding_mask = padding
"""`padding` by the name that the article on padded causal FlexAttention gives it."""


def key_padding(pads: Tensor) -> KeyPadding:
    """Positions marked True are hidden as keys. Every query sees the other keys, a padded query too.

    As ``key_padding_mask`` of ``nn.MultiheadAttention``. `MultiheadFlexAttention` sets hidden positions to zero, so there a
    query at a hidden position is one of a zero vector.

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
    return KeyPadding(flags("pads", pads, true_means="padding"))


def known_padding(mask_mod: MaskMod, kv_len: int, *, of_one_sequence: bool = False) -> Tensor | None:
    """Which key positions a mask is known to hide from every query: bool (B or 1, KV), True = hidden; None if unknown.

    Padding is known where a padding mask is the mask or a conjunct at its top, also inside torch's ``and_masks`` and under
    `shifted`, which says at which positions the keys lie. Under ``|`` or ``~`` it proves nothing.

    Args:
        of_one_sequence: queries and keys are one sequence, and what is hidden as key alone is a real query (``lengths(lens,
            kv_lens)`` of different sides): then what is hidden as both. A mask that says nothing of queries (`key_padding`)
            speaks for both, unless it is shifted so that queries begin elsewhere than keys.

    Raises:
        ValueError: two paddings that are for other sizes; torch compiles, and the mask is a composition of torch's, which
            cannot be looked into then.
    """
    placed = _paddings(mask_mod)
    keys = _all_of([part.hidden_keys(kv_len) for part in placed])
    if keys is None or not of_one_sequence:
        return keys
    by_query = [(part, part.hidden_queries(kv_len)) for part in placed]
    queries = _all_of([hidden for _, hidden in by_query if hidden is not None])
    for_both = _all_of(
        [part.hidden_keys(kv_len) for part, hidden in by_query if hidden is None and part.begins_together]
    )
    as_both = None if queries is None else torch.logical_and(*_of_one_batch(keys, queries))
    return _all_of([hidden for hidden in (as_both, for_both) if hidden is not None])


def known_hidden_queries(mask_mod: MaskMod, q_len: int) -> Tensor | None:
    """Which queries a mask is known to let see nothing: bool (B or 1, Q), True = hidden; None if unknown.

    Known by the same rule as `known_padding`, with the same error.
    """
    found = [part.hidden_queries(q_len) for part in _paddings(mask_mod)]
    return _all_of([hidden for hidden in found if hidden is not None])


def _all_of(hidden: Sequence[Tensor]) -> Tensor | None:
    """What any of them hides; None of none."""
    known: Tensor | None = None
    for found in hidden:
        known = found if known is None else torch.logical_or(*_of_one_batch(known, found))
    return known


def _of_one_batch(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two, of one batch and length."""
    pairs = tuple(zip(first.shape, second.shape, strict=True))
    if pairs[1][0] != pairs[1][1] or (pairs[0][0] != pairs[0][1] and 1 not in pairs[0]):
        raise ValueError(
            f"the mask knows padding for (batch, length) = {tuple(first.shape)} and for {tuple(second.shape)}: not for one batch"
        )
    return first, second


class _Placed(NamedTuple):
    """A padding mask, and the positions of the first query and the first key in it."""

    mask: PaddingMask
    first_query: Position
    first_key: Position

    @property
    def begins_together(self) -> bool:
        """Whether the first query and the first key are known to be at one position."""
        query, key = self.first_query, self.first_key
        return query is key or (isinstance(query, int) and isinstance(key, int) and query == key)

    def hidden_keys(self, kv_len: int) -> Tensor:
        """Which of the keys from the first on the mask hides: bool (B or 1, KV)."""
        first = self.first_key
        return self.mask.hidden_keys(kv_len) if is_zero(first) else self.mask.hidden_keys(kv_len, first)

    def hidden_queries(self, q_len: int) -> Tensor | None:
        """Which of the queries from the first on see nothing, as far as the mask knows: bool (B or 1, Q), or None."""
        first = self.first_query
        return self.mask.hidden_queries(q_len) if is_zero(first) else self.mask.hidden_queries(q_len, first)


def _paddings(mask_mod: MaskMod) -> list[_Placed]:
    """The padding masks that are conjuncts at the top of a mask."""
    if torch.compiler.is_dynamo_compiling() and is_torch_and(mask_mod):
        # dynamo cannot call a closure once it has read a cell of it (assertion in side_effects.load_cell; 2.11, 2.13)
        raise ValueError(
            "torch.compile cannot look into torch's and_masks, to see whether it hides padding: "
            "combine the masks with & or maskloom.and_masks, or open it first with maskloom.as_mask(mask)"
        )
    return _placed(as_mask(mask_mod), 0, 0)


def _placed(mask: Mask, first_query: Position, first_key: Position) -> list[_Placed]:
    if isinstance(mask, Shifted):  # padding is the same for every head
        together = first_key is first_query and mask.kv_offset is mask.q_offset  # then they stay one tensor
        first_query = _sum(first_query, mask.q_offset)
        first_key = first_query if together else _sum(first_key, mask.kv_offset)
        return _placed(mask.mask, first_query, first_key)
    if isinstance(mask, And):
        return [found for part in mask.parts for found in _placed(part, first_query, first_key)]
    return [_Placed(mask, first_query, first_key)] if isinstance(mask, PaddingMask) else []


def _sum(first: Position, second: Position) -> Position:
    if is_zero(first):
        return second
    return first if is_zero(second) else first + second


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
