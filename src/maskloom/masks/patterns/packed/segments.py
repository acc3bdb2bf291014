"""Masks of packed sequences: several documents in one row."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from maskloom.batches.documents import (
    ids_from_positions,
    packed_tables,
    positions_from_ids,
    starts_from_ids,
)
from maskloom.core.checks import (
    check_ids_below,
    checked_offsets,
    exactly_one,
    integers,
    integers_by_position,
    readable,
    refuse_length,
)
from maskloom.core.host_count import HostCount, counted_ids, not_counted
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, Tabled, mask_dataclass, shown
from maskloom.masks.lookups import at
from maskloom.masks.padded import NO_COUNTS, CountedSides, PaddingMask, Position, counted_sides, ends, pads_at
from maskloom.masks.patterns.packed.cross_documents import (
    CrossDocuments,
    PackedCrossDocuments,
    cross_documents,
    packed_cross_documents,
)

__all__ = ["documents", "document_prefix"]


class Segmented(Tabled, PaddingMask):
    """A mask with an id for each position; a negative id is padding, and hidden."""

    ids: Tensor

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(torch.atleast_2d(self.ids) < 0, first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return self.hidden_keys(q_len, first)

    def row_ends(self) -> Tensor:
        return ends(torch.atleast_2d(self.ids) >= 0)

    def ids_at(self, b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> tuple[Tensor, Tensor]:
        """The ids of the query and of the key."""
        return at(self.ids, b, q_idx), at(self.ids, b, kv_idx)


def _negative(ids: Tensor) -> Tensor:
    return ids < 0


class _ByIds(Segmented):
    """Documents: positions with equal ids see each other."""

    runs_in_flash = True

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self.ids_at(b, q_idx, kv_idx)
        return (q_id == kv_id) & (q_id >= 0)


@mask_dataclass
class Documents(_ByIds):
    """Documents by an id for each position; their layout is unknown. See `documents`."""

    ids: Tensor
    count: HostCount = field(default_factory=not_counted)
    name = "documents"

    def counted_sides(self) -> CountedSides:
        return (
            NO_COUNTS
            if self.ids.ndim == 1
            else counted_sides(self.ids, self.count, self.ids, self.count, pads_of=_negative)
        )

    def __repr__(self) -> str:
        return f"documents({shown(self.ids)})"


@mask_dataclass
class PackedDocuments(_ByIds):
    """Consecutive documents, by their `kept_offsets`; ``ids`` and ``start`` are computed from them. See `documents`.

    ``start`` (L,) is what `FromDocumentStart` takes.
    """

    offsets: Tensor
    ids: Tensor
    start: Tensor

    def beside_causal(self) -> Mask:
        if self.ids.ndim > 1:
            return self
        return FromDocumentStart(self.offsets, self.start)

    def __repr__(self) -> str:
        return f"documents(offsets={shown(self.offsets)})"


@mask_dataclass
class CountedDocuments(_ByIds):
    """Consecutive documents, by positions that count up; ``ids`` and ``start`` are computed from them. See `documents`.

    ``start``, of the shape of ids, is what `FromRunStart` takes.
    """

    position_ids: Tensor
    ids: Tensor
    start: Tensor

    def beside_causal(self) -> Mask:
        return FromRunStart(self.position_ids, self.start)

    def __repr__(self) -> str:
        return f"documents(position_ids={shown(self.position_ids)})"


AnyDocuments = Documents | PackedDocuments | CountedDocuments
Segments = TypeVar("Segments", bound=AnyDocuments | CrossDocuments | PackedCrossDocuments)


@overload
def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    position_ids: Tensor | Sequence[int] | None = None,
    length: int | None = None,
) -> AnyDocuments: ...


@overload
def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    length: int | None = None,
    kv_ids: Tensor | Sequence[int] | None = None,
    kv_offsets: Tensor | Sequence[int] | None = None,
    kv_length: int | None = None,
) -> CrossDocuments | PackedCrossDocuments: ...


def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    position_ids: Tensor | Sequence[int] | None = None,
    length: int | None = None,
    kv_ids: Tensor | Sequence[int] | None = None,
    kv_offsets: Tensor | Sequence[int] | None = None,
    kv_length: int | None = None,
) -> AnyDocuments | CrossDocuments | PackedCrossDocuments:
    """A query sees the keys of its own document.

    ::

        documents(offsets=[0, 2, 5])   k0 k1 k2 k3 k4
                                   q0   x  x
                                   q1   x  x
                                   q2         x  x  x
                                   q3         x  x  x
                                   q4         x  x  x

    For cross-attention, give keys their own ids or offsets::

        documents(offsets=[0, 2, 3], kv_offsets=[0, 1, 4])   k0 k1 k2 k3
                                                         q0   x
                                                         q1   x
                                                         q2      x  x  x

    The mask holds ids themselves, and follows writes into them. Offsets and position ids are copied, since ids are
    computed from them: later writes into them have no effect.

    Give one of ids, offsets and position_ids:

    Args:
        ids: integers (L,), or (B, L) with separate documents in each batch row: positions with equal ids are one
            document, wherever they are. A negative id is not a document: it sees nothing, and nothing sees it.
        offsets: integers (documents + 1,), the start of each document, and the end: ``[0, 2, 5]`` is one document of 2
            and one of 5 - 2 = 3 positions (``cu_seqlens`` of FlashAttention). The documents are contiguous.
        position_ids: integers (L,) or (B, L), positions that count up inside a document, as in Hugging Face's packing:
            ``[0, 1, 0, 1, 2]`` is the mask drawn above. A document starts where a position is not the previous one plus
            1. The documents are contiguous too.
        length: with offsets, the number of positions of a row, if it has more than the documents fill; the rest is
            fully masked. By default the last offset, which is read from the tensor (this waits for a GPU).
        kv_ids: with ids, the ids of the keys, (K,) or (B, K); then ids are those of the queries.
        kv_offsets: with offsets, the start of each document's keys (``cu_seqlens_k``), for the same number of
            documents; a document may have no queries, or no keys. For causal inside, aligned to the end:
            `documents_lower_right`; for other masks: `within`.
        kv_length: with kv_offsets, the number of keys of a row, like length.

    Raises:
        TypeError, ValueError: none or several of them, not integers, offsets that do not start at 0 or that fall
            (checked on the CPU only), a length below the last offset; tables of keys without those of queries, or of
            another form or size.
    """
    exactly_one("documents", ids=ids, offsets=offsets, position_ids=position_ids)
    _check_beside(ids, offsets, kv_ids, kv_offsets, kv_length)
    if offsets is not None and kv_offsets is not None:
        return packed_cross_documents(offsets, kv_offsets, length, kv_length)
    if offsets is not None:
        table = checked_offsets(offsets)
        return PackedDocuments(*packed_tables(table, length))
    refuse_length(length)
    if position_ids is not None:
        positions = integers_by_position("position_ids", position_ids).clone()
        ids = ids_from_positions(positions)
        return CountedDocuments(positions, ids, starts_from_ids(ids))
    if ids is not None and kv_ids is not None:
        return cross_documents(ids, kv_ids)
    table = integers_by_position("ids", ids)
    return Documents(table, counted_ids(table))


def _check_beside(ids: object, offsets: object, kv_ids: object, kv_offsets: object, kv_length: object) -> None:
    """Raise a TypeError if tables of keys are given without the same kind of tables of queries."""
    if (kv_ids is not None and ids is None) or (kv_offsets is not None and offsets is None):
        raise TypeError("kv_ids goes with ids, and kv_offsets with offsets: queries and keys are told in one way")
    if kv_length is not None and kv_offsets is None:
        raise TypeError("kv_length goes with kv_offsets, as length with offsets")


@mask_dataclass
class DocumentPrefix(Tabled):
    """See `document_prefix`. ``is_prefix`` (L,) or (B, L) marks the positions in a prefix."""

    runs_in_flash = True

    segments: AnyDocuments
    n: Tensor
    is_prefix: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.segments(b, h, q_idx, kv_idx) & at(self.is_prefix, b, kv_idx)

    def __repr__(self) -> str:
        return f"document_prefix({self.segments!r}, {shown(self.n)})"


def document_prefix(segments: AnyDocuments, n: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> DocumentPrefix:
    """A query sees the first ``n[d]`` keys of its own document d, also those after it.

    ::

        document_prefix(documents(offsets=[0, 2, 5]), [1, 2])   k0 k1 k2 k3 k4
                                                            q0   x
                                                            q1   x
                                                            q2         x  x
                                                            q3         x  x
                                                            q4         x  x

    ``segments & causal | document_prefix(segments, n)`` is a prefix-LM over packed documents. If n is the same for all
    documents, write ``within(segments, prefix(n))``. Segments and n are copied, since the table of prefixes is computed
    from them: later writes into them have no effect. Source: prefix LM, Raffel et al. 2020 (T5), section 3.2.1.

    Args:
        segments: contiguous documents, made by `documents`.
        n: number of keys in the prefix of each document, at least 0: integers (documents,), or (B, documents) if rows
            have separate documents. Entry d is for the document with id d, or for the d-th of offsets or position_ids.

    Raises:
        TypeError, ValueError: segments of another kind or in several pieces, not integers, a negative number, fewer
            numbers than documents (checked on the CPU only).
    """
    positions, segments = positions_inside("document_prefix", segments), copied_segments(segments)
    table = integers("n", n).to(positions.device, copy=True)
    ids = segments.ids.clamp(min=0).long()
    if table.ndim not in (1, ids.ndim) or table.shape[-1] == 0 or (table.ndim == 2 and len(table) != len(ids)):
        raise ValueError(
            f"n has one number for each document, (documents,), or (B, documents) for ids (B, L); got shape "
            f"{tuple(table.shape)} for ids of shape {tuple(ids.shape)}"
        )
    if readable(table) and bool((table < 0).any()):
        raise ValueError(f"n are numbers of positions, at least 0; got {int(table.min())}")
    check_ids_below("n has numbers for", segments.ids, table.shape[-1], "documents")
    own = table[ids] if table.ndim == 1 else table.gather(1, ids)
    return DocumentPrefix(segments, table, (positions < own) & (segments.ids >= 0))


def copied_segments(segments: Segments) -> Segments:
    """The segments with their own tensors; only those from ids are copied here, the others were before."""
    if not isinstance(segments, (Documents, CrossDocuments)):
        return segments
    held: list[Any] = [getattr(segments, field.name) for field in dataclasses.fields(segments)]
    copies: list[Any] = [one.clone() if isinstance(one, Tensor) else one for one in held]
    if not torch.compiler.is_dynamo_compiling():
        of = {id(one): copy for one, copy in zip(held, copies, strict=True)}
        copies = [one.of_copies(of) if isinstance(one, HostCount) else one for one in copies]
    return type(segments)(*copies)


def positions_inside(name: str, segments: AnyDocuments) -> Tensor:
    """The distance of each position from the start of its document: int32 (L,) or (B, L)."""
    if not isinstance(segments, AnyDocuments):
        raise TypeError(f"{name} takes documents made by documents(...); got {brief(segments)}")
    return positions_of(name, segments.ids, isinstance(segments, Documents))


def positions_of(name: str, ids: Tensor, by_ids: bool) -> Tensor:
    """`positions_inside` from ids; documents given ``by_ids`` may be in several pieces, which is an error."""
    if by_ids and readable(ids):
        _check_contiguous(name, ids)
    return positions_from_ids(ids)


def _check_contiguous(name: str, ids: Tensor) -> None:
    for row, row_ids in enumerate(torch.atleast_2d(ids)):
        runs = row_ids.unique_consecutive()
        documents, pieces = runs[runs >= 0].unique(return_counts=True)
        if bool((pieces > 1).any()):
            document = int(documents[pieces > 1][0])
            raise ValueError(
                f"{name} needs documents in one piece, so that positions restart; document {document} has "
                f"{int(pieces.max())} pieces" + (f" in row {row}" if ids.ndim == 2 else "")
            )


@mask_dataclass
class FromDocumentStart(Tabled, PaddingMask):
    """``documents(offsets=...)`` when combined with ``causal``: made by `simplify`, and only equal to it there.

    ``start`` is the first position of each query's document; the length of the table after the last document.
    """

    runs_in_flash = True

    offsets: Tensor
    start: Tensor
    description = "kv_idx >= start[q_idx]"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        _ = self.start[kv_idx]  # declares that keys read a table of this length, as ids do; the value is unused
        return kv_idx >= self.start[q_idx]

    def __repr__(self) -> str:
        return f"documents(offsets={shown(self.offsets)})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return pads_at(self.start[None] == len(self.start), first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return self.hidden_keys(q_len, first)


@mask_dataclass
class FromRunStart(Tabled):
    """``documents(position_ids=...)`` when combined with ``causal``: made by `simplify`, and only equal to it there.

    ``start`` (L,) or (B, L) is the first position of each query's document.
    """

    runs_in_flash = True

    position_ids: Tensor
    start: Tensor
    description = "kv_idx >= start[q_idx]"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        _ = at(self.start, b, kv_idx)  # declares that keys read a table of this length, as ids do; the value is unused
        return kv_idx >= at(self.start, b, q_idx)

    def __repr__(self) -> str:
        return f"documents(position_ids={shown(self.position_ids)})"
