"""Packed documents: their offsets, and the id and position of each token, each computed from another.

=========  =================  ============================================================
form       shape              meaning
=========  =================  ============================================================
offsets    (..., pieces + 1)  the start of each piece, and the end
ids        (..., L)           the number of the piece of each position; negative = padding
positions  (..., L)           the distance of each position from its piece's start
=========  =================  ============================================================
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from maskloom.core.checks import checked_offsets, count, exactly_one, flags, integers_by_position, readable
from maskloom.core.launches import can_launch
from maskloom.core.symbols import is_dynamic
from maskloom.core.torch_state import counting_writes
from maskloom.program.vmapped import greatest


def positions(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    pads: Tensor | None = None,
    length: int | None = None,
) -> Tensor:
    """The position of each token in its own document, from 0: what rotary and learned position embeddings take.

    ``positions(offsets=[0, 2, 5])`` is ``[0, 1, 0, 1, 2]``. Padding has position 0, so that every position may index a
    table. Give one of ids, offsets and pads:

    Args:
        ids: integers (L,) or (B, L), the number of each token's document; a negative id is padding. Documents are
            contiguous: positions start again wherever the id changes.
        offsets: integers (documents + 1,), the start of each document, and the end (``cu_seqlens`` of FlashAttention).
        pads: bool (B, L), True = padding, anywhere: each row is one document, and positions count its real tokens, as
            ``attention_mask.cumsum(-1) - 1`` does.
        length: with offsets, L; by default the last offset, which is read from the tensor (this waits for a GPU). The
            rest is padding.

    Returns:
        int64 (L,) or (B, L).

    Raises:
        TypeError, ValueError: none or several of them, not integers or not bool, another shape, offsets that do not
            start at 0 or that fall (checked on the CPU only), a length below the last offset.
    """
    exactly_one("positions", ids=ids, offsets=offsets, pads=pads)
    _check_length("positions", offsets, length)
    if pads is not None:
        real = ~flags("pads", pads, true_means="padding")
        return (real.cumsum(-1) - 1) * real
    if offsets is not None:
        table = ids_from_offsets(checked_offsets(offsets), length)
    else:
        assert ids is not None
        table = integers_by_position("ids", ids)
    return positions_from_ids(table).long() * (table >= 0)


def document_ids(
    *,
    offsets: Tensor | Sequence[int] | None = None,
    position_ids: Tensor | Sequence[int] | None = None,
    length: int | None = None,
) -> Tensor:
    """The number of each token's document, from 0, and -1 at padding: ``seq_idx`` of transformers, ids of `documents`.

    ``document_ids(offsets=[0, 2, 5])`` is ``[0, 0, 1, 1, 1]``. Give one of offsets and position_ids:

    Args:
        offsets: integers (documents + 1,), the start of each document, and the end (``cu_seqlens`` of FlashAttention).
        position_ids: integers (L,) or (B, L), positions that count up inside a document. A document starts where a
            position is not the previous one plus 1.
        length: with offsets, L; by default the last offset, which is read from the tensor (this waits for a GPU). The
            rest is padding.

    Returns:
        int32 (L,) or (B, L).

    Raises:
        TypeError, ValueError: none or both of them, not integers, another shape, offsets that do not start at 0 or that
            fall (checked on the CPU only), a length below the last offset.
    """
    exactly_one("document_ids", offsets=offsets, position_ids=position_ids)
    _check_length("document_ids", offsets, length)
    if offsets is not None:
        return ids_from_offsets(checked_offsets(offsets), length)
    return ids_from_positions(integers_by_position("position_ids", position_ids))


def _check_length(name: str, offsets: object, length: int | None) -> None:
    if length is not None and offsets is None:
        raise TypeError(f"{name} takes length= with offsets alone: the other forms have one entry for each position")


@counting_writes
def ids_from_offsets(offsets: Tensor, length: int | None) -> Tensor:
    """Ids of consecutive pieces, -1 after the last: int32 (..., L).

    Args:
        offsets: integers (pieces + 1,) or (B, pieces + 1).
        length: L; by default the last offset (reading it waits for a GPU).
    """
    length = _checked_length(offsets, length)
    if can_launch(offsets):
        from maskloom.batches.documents_triton import ids_by_kernel  # here: not every torch comes with Triton

        return ids_by_kernel(offsets, length)
    return _ids(offsets, length)


def _ids(offsets: Tensor, length: int) -> Tensor:
    offsets = offsets if offsets.dtype == torch.int32 else offsets.to(torch.int64)
    positions = torch.arange(length, dtype=offsets.dtype, device=offsets.device)
    begun = torch.searchsorted(
        offsets, positions.expand(*offsets.shape[:-1], -1).contiguous(), right=True, out_int32=True
    )
    return begun % offsets.shape[-1] - 1  # behind the last piece all offsets have begun


def _checked_length(offsets: Tensor, length: int | None) -> int:
    filled = offsets[..., -1:]
    most = greatest(filled, "length=") if length is None or readable(offsets) else 0
    if length is None and most < 1:
        raise ValueError(f"a row has at least 1 position; got {most}")
    length = most if length is None else count("length", length, least=1)
    if length < most:
        raise ValueError(f"length is {length}, and {most} positions are filled")
    return length


@counting_writes
def packed_tables(offsets: Tensor, length: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a mask of consecutive pieces holds: `kept_offsets`, and int32 (L,) `ids_from_offsets` and the start of each
    position's piece, which is L after the last piece.

    Args:
        offsets: integers (pieces + 1,).
        length: L; by default the last offset (reading it waits for a GPU).
    """
    length = _checked_length(offsets, length)
    if can_launch(offsets):
        from maskloom.batches.documents_triton import tables_by_kernel  # here: not every torch comes with Triton

        return tables_by_kernel(offsets, _kept_entries(offsets), length)
    ids, entries = _ids(offsets, length), offsets.shape[0]
    is_last = torch.arange(entries, device=offsets.device) == entries - 1
    starts = offsets.to(torch.int32).masked_fill(is_last, length)[ids]  # -1 reads the last one
    return _kept(offsets), ids, starts


_FEW_DOCUMENTS = 16


@counting_writes
def kept_offsets(offsets: Tensor) -> Tensor:
    """A copy for a mask to hold: behind more than 16 documents there are empty ones, up to a power of two.

    Batches with other numbers of documents then have tensors of the same shapes, so that what was recorded or compiled for one
    serves the next.
    """
    return _kept(offsets)


def _kept(offsets: Tensor) -> Tensor:
    more = _kept_entries(offsets) - offsets.shape[0]
    return offsets.clone() if more == 0 else torch.cat([offsets, offsets[-1:].expand(more)])


def _kept_entries(offsets: Tensor) -> int:
    entries = offsets.shape[0]
    if is_dynamic(entries) or entries <= _FEW_DOCUMENTS + 1:
        return entries
    return (1 << (entries - 2).bit_length()) + 1


@counting_writes
def ids_from_positions(positions: Tensor) -> Tensor:
    """Ids of pieces in which positions count up by 1: int32 (..., L)."""
    wide = positions.long()  # narrow dtypes would wrap around
    begins = (wide - neighbour(wide, -1) != 1) & (torch.arange(wide.shape[-1], device=wide.device) > 0)
    return begins.cumsum(-1, dtype=torch.int32)


@counting_writes
def starts_from_ids(ids: Tensor) -> Tensor:
    """The first position of each position's run of equal ids: int32 (L,) or (B, L)."""
    positions = torch.arange(ids.shape[-1], device=ids.device)
    begins = (ids != neighbour(ids, -1)) | (positions == 0)
    return (positions * begins).cummax(-1).values.to(torch.int32)


@counting_writes
def positions_from_ids(ids: Tensor) -> Tensor:
    """The distance of each position from the start of its run of equal ids: int32 (L,) or (B, L)."""
    return torch.arange(ids.shape[-1], dtype=torch.int32, device=ids.device) - starts_from_ids(ids)


def neighbour(table: Tensor, step: Literal[-1, 1]) -> Tensor:
    """The entry before each position (step -1) or after it (step 1); at the end of the table, the position's own entry.

    The size stays the same: from a table that is one shorter torch.export would conclude that no length is 2.
    """
    places = torch.arange(table.shape[-1], device=table.device) + step
    return table[..., places.clamp(0, table.shape[-1] - 1)]
