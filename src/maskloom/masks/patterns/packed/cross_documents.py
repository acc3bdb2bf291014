"""Packed cross-attention: rows of queries and rows of keys that hold parts of the same documents."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.batches.documents import ids_from_offsets, kept_offsets
from maskloom.core.checks import checked_offsets, integers_by_position
from maskloom.masks.algebra import Tabled, mask_dataclass, shown
from maskloom.masks.lookups import at
from maskloom.masks.padded import PaddingMask, Position, pads_at, positions_from

__all__ = ["documents_lower_right"]


class CrossSegmented(Tabled, PaddingMask):
    """Queries and keys have their own ids; a negative id is padding, and hidden."""

    runs_in_flash = True

    ids: Tensor
    kv_ids: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id = at(self.ids, b, q_idx)
        return (q_id == at(self.kv_ids, b, kv_idx)) & (q_id >= 0)

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(torch.atleast_2d(self.kv_ids) < 0, first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return pads_at(torch.atleast_2d(self.ids) < 0, first, q_len)


@mask_dataclass
class CrossDocuments(CrossSegmented):
    """Documents by an id for each query and each key. See `documents`."""

    ids: Tensor
    kv_ids: Tensor

    def __repr__(self) -> str:
        return f"documents({shown(self.ids)}, kv_ids={shown(self.kv_ids)})"


@mask_dataclass
class PackedCrossDocuments(CrossSegmented):
    """Consecutive documents, by offsets of queries and of keys; the ids are computed from them. See `documents`."""

    offsets: Tensor
    kv_offsets: Tensor
    ids: Tensor
    kv_ids: Tensor

    def __repr__(self) -> str:
        return f"documents(offsets={shown(self.offsets)}, kv_offsets={shown(self.kv_offsets)})"


def cross_documents(ids: Tensor | Sequence[int], kv_ids: Tensor | Sequence[int]) -> CrossDocuments:
    """`documents` by ids of queries and of keys."""
    q_table, kv_table = integers_by_position("ids", ids), integers_by_position("kv_ids", kv_ids)
    if q_table.ndim != kv_table.ndim or q_table.shape[:-1] != kv_table.shape[:-1]:
        raise ValueError(
            f"ids and kv_ids are both for all batch rows, (Q,) and (K,), or for the same rows, (B, Q) and (B, K); got "
            f"{tuple(q_table.shape)} and {tuple(kv_table.shape)}"
        )
    return CrossDocuments(q_table, kv_table)


def packed_cross_documents(
    offsets: Tensor | Sequence[int], kv_offsets: Tensor | Sequence[int], length: int | None, kv_length: int | None
) -> PackedCrossDocuments:
    """`documents` by offsets of queries and of keys, which are copied."""
    starts, kv_starts = both_offsets(offsets, kv_offsets)
    return PackedCrossDocuments(
        starts, kv_starts, ids_from_offsets(starts, length), ids_from_offsets(kv_starts, kv_length)
    )


def both_offsets(offsets: Tensor | Sequence[int], kv_offsets: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """`kept_offsets` of the same documents, for queries and for keys."""
    starts, kv_starts = checked_offsets(offsets), checked_offsets(kv_offsets, "kv_offsets")
    if starts.shape[0] != kv_starts.shape[0]:  # len() would make a size that is dynamic a constant
        raise ValueError(
            f"offsets and kv_offsets are of the same documents; got {len(starts) - 1} and {len(kv_starts) - 1}"
        )
    return kept_offsets(starts), kept_offsets(kv_starts)


@mask_dataclass
class DocumentsLowerRight(Tabled, PaddingMask):
    """See `documents_lower_right`. A query sees the keys ``first`` to ``last``, int32 (Q,)."""

    runs_in_flash = True

    offsets: Tensor
    kv_offsets: Tensor
    first: Tensor
    last: Tensor
    name = "documents_lower_right"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx >= self.first[q_idx]) & (kv_idx <= self.last[q_idx])

    def __repr__(self) -> str:
        return f"documents_lower_right({shown(self.offsets)}, {shown(self.kv_offsets)})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        positions = torch.atleast_2d(positions_from(first, kv_len, self.kv_offsets.device))
        return (positions < 0) | (positions >= self.kv_offsets[-1])

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return pads_at((self.first > self.last)[None], first, q_len)


def documents_lower_right(
    offsets: Tensor | Sequence[int], kv_offsets: Tensor | Sequence[int], *, length: int | None = None
) -> DocumentsLowerRight:
    """Packed documents with more keys than queries, or fewer: causal in each, with its last query at its last key.

    ::

        documents_lower_right([0, 2, 3], [0, 3, 5])   k0 k1 k2 k3 k4
                                                  q0   x  x
                                                  q1   x  x  x
                                                  q2            x  x

    For new packed queries of several sequences whose cached keys are packed too. If each document has as many queries
    as keys, it is ``causal & documents(offsets=offsets)``. A document may have no queries, or no keys: its queries are
    fully masked. If it has fewer keys than queries, its first queries are fully masked. For windows and other masks
    with this alignment: ``within(documents(offsets=.., kv_offsets=..), window(back=w), lower_right=True)``. The offsets
    are copied: later writes into them have no effect.

    Source: xformers' ``BlockDiagonalCausalFromBottomRightMask``; FlashAttention's causal with ``cu_seqlens_q`` and ``cu_seqlens_k``
    from version 2.1 on; `causal_lower_right` is the same for one document.

    Args:
        offsets: integers (documents + 1,), the start of each document's queries, and the end (``cu_seqlens_q``).
        kv_offsets: integers (documents + 1,), the start of its keys, and the end (``cu_seqlens_k``). Later keys are
            hidden.
        length: the number of queries in a row, if there are more than the documents fill; the rest is fully masked. By
            default the last offset, which is read from the tensor (this waits for a GPU).

    Raises:
        TypeError, ValueError: not integers, offsets that do not start at 0 or that fall (checked on the CPU only),
            different numbers of documents, a length below the last offset.
    """
    starts, kv_starts = both_offsets(offsets, kv_offsets)
    ids = ids_from_offsets(starts, length)
    document = ids.clamp(min=0).long()
    behind = kv_starts[1:].long() - starts[1:].long()  # from a document's last query to its last key
    last = torch.arange(len(ids), device=ids.device) + behind[document]
    first = kv_starts[:-1].long()[document]
    return DocumentsLowerRight(starts, kv_starts, first.to(torch.int32), last.masked_fill(ids < 0, -1).to(torch.int32))
