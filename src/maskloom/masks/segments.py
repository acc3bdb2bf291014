"""Masks of packed sequences: several documents in one row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.masks.algebra import mask_value, shown
from maskloom.masks.checks import count, integers, readable
from maskloom.masks.padding import PaddingMask


class _ByIds(PaddingMask):
    """Documents by an id for each position; what has a negative id is in none, and hidden."""

    ids: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if self.ids.ndim == 1:
            q_id, kv_id = self.ids[q_idx], self.ids[kv_idx]
        else:
            q_id, kv_id = self.ids[b, q_idx], self.ids[b, kv_idx]
        return (q_id == kv_id) & (q_id >= 0)

    def hidden_keys(self, kv_len: int) -> Tensor:
        return torch.atleast_2d(self.ids)[:, :kv_len] < 0


@mask_value
class Documents(_ByIds):
    """Documents by an id for each position; nothing is known about where they lie. See `documents`."""

    ids: Tensor
    name = "documents"


@mask_value
class PackedDocuments(_ByIds):
    """Documents that lie one behind the other, by their offsets. ``ids`` follows from them. See `documents`."""

    offsets: Tensor
    ids: Tensor

    def __repr__(self) -> str:
        return f"documents(offsets={shown(self.offsets)})"


def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    length: int | None = None,
) -> Documents | PackedDocuments:
    """A query sees the keys of its own document.

    ::

        documents(offsets=[0, 2, 5])   k0 k1 k2 k3 k4
                                   q0   x  x
                                   q1   x  x
                                   q2         x  x  x
                                   q3         x  x  x
                                   q4         x  x  x

    Give either of:

    Args:
        ids: integers (L,), or (B, L) with documents of their own in each batch row: positions with equal ids are one
            document, wherever they lie. A negative id is no document: it sees nothing and nothing sees it.
        offsets: integers (documents + 1,), where each document begins, and the end: ``[0, 2, 5]`` is one of 2 and one
            of 5 - 2 = 3 positions (``cu_seqlens`` of FlashAttention). This says that documents are contiguous.
        length: with offsets, the positions of a row, if there are more than the documents fill; the rest sees nothing.
            By default the last offset, which is read from the tensor (on a GPU that waits for it).

    Raises:
        TypeError, ValueError: both or neither, not integers, offsets that do not start at 0 or that fall (looked at on
            the CPU only), a length below the last offset.
    """
    if (ids is None) == (offsets is None):
        raise TypeError("documents takes ids or offsets=, one of them; got " + ("neither" if ids is None else "both"))
    if offsets is not None:
        table = _checked_offsets(offsets)
        length = None if length is None else count("length", length)
        return PackedDocuments(table, _ids_from_offsets(table, length))
    if length is not None:
        raise TypeError("documents(ids) takes no length=: ids have one entry for each position")
    table = integers("ids", ids)
    if table.ndim not in (1, 2) or table.numel() == 0:
        raise ValueError(f"ids has shape (L,) or (B, L); got {tuple(table.shape)}")
    return Documents(table)


def _checked_offsets(offsets: Tensor | Sequence[int]) -> Tensor:
    table = integers("offsets", offsets)
    if table.ndim != 1 or table.numel() < 2:
        raise ValueError(f"offsets has shape (documents + 1,), at least 2 entries; got {tuple(table.shape)}")
    if readable(table):
        if int(table[0]) != 0:
            raise ValueError(f"offsets start at 0; got {int(table[0])}")
        falls = (table.diff() < 0).nonzero()
        if len(falls):
            at = int(falls[0])
            raise ValueError(
                f"offsets never fall; got {int(table[at])} and then {int(table[at + 1])} at entry {at + 1}"
            )
    return table


def _ids_from_offsets(offsets: Tensor, length: int | None) -> Tensor:
    if length is None:
        length = int(offsets[-1])
    elif readable(offsets) and length < int(offsets[-1]):
        raise ValueError(f"length is {length}, and the documents fill {int(offsets[-1])} positions")
    if length < 1:
        raise ValueError(f"documents need at least 1 position; got {length}")
    positions = torch.arange(length, device=offsets.device)
    ids = torch.searchsorted(offsets.to(torch.int64), positions, right=True) - 1
    return torch.where(positions < offsets[-1], ids, -1).to(torch.int32)
