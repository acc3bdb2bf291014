"""Masks of packed sequences: several documents in one row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.masks.algebra import Mask, Tabled, as_mask, mask_value, shown
from maskloom.masks.checks import (
    check_ids_below,
    checked_offsets,
    exactly_one,
    integers,
    integers_by_position,
    readable,
    refuse_length,
)
from maskloom.masks.dense import MaskMod
from maskloom.masks.padding import PaddingMask, Position, ends, pads_at
from maskloom.masks.signed import Signed
from maskloom.masks.tables import at, ids_from_offsets, ids_from_positions, positions_from_ids
from maskloom.masks.words import brief


class Segmented(Tabled, PaddingMask):
    """Positions have ids; what has a negative id is padding, and hidden."""

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


class _ByIds(Segmented):
    """Documents: what has equal ids sees each other."""

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self.ids_at(b, q_idx, kv_idx)
        return (q_id == kv_id) & (q_id >= 0)


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


@mask_value
class CountedDocuments(_ByIds):
    """Documents that lie one behind the other, by positions that count up. ``ids`` follows from them. See `documents`."""

    position_ids: Tensor
    ids: Tensor

    def __repr__(self) -> str:
        return f"documents(position_ids={shown(self.position_ids)})"


AnyDocuments = Documents | PackedDocuments | CountedDocuments


def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    position_ids: Tensor | Sequence[int] | None = None,
    length: int | None = None,
) -> AnyDocuments:
    """A query sees the keys of its own document.

    ::

        documents(offsets=[0, 2, 5])   k0 k1 k2 k3 k4
                                   q0   x  x
                                   q1   x  x
                                   q2         x  x  x
                                   q3         x  x  x
                                   q4         x  x  x

    Ids are held as they are, and writes into them are followed. Offsets and position ids are copied, since ids are made from
    them: a later write into what was given changes nothing.

    Give one of:

    Args:
        ids: integers (L,), or (B, L) with documents of their own in each batch row: positions with equal ids are one
            document, wherever they lie. A negative id is no document: it sees nothing and nothing sees it.
        offsets: integers (documents + 1,), where each document begins, and the end: ``[0, 2, 5]`` is one of 2 and one
            of 5 - 2 = 3 positions (``cu_seqlens`` of FlashAttention). This says that documents are contiguous.
        position_ids: integers (L,) or (B, L), positions that count up inside a document, as Hugging Face packs:
            ``[0, 1, 0, 1, 2]`` is the mask drawn above. A document begins where a position is not the one before and 1.
            This too says that documents are contiguous.
        length: with offsets, the positions of a row, if there are more than the documents fill; the rest sees nothing.
            By default the last offset, which is read from the tensor (on a GPU that waits for it).

    Raises:
        TypeError, ValueError: none or several of them, not integers, offsets that do not start at 0 or that fall (looked
            at on the CPU only), a length below the last offset.
    """
    exactly_one("documents", ids=ids, offsets=offsets, position_ids=position_ids)
    if offsets is not None:
        table = checked_offsets(offsets).clone()
        return PackedDocuments(table, ids_from_offsets(table, length))
    refuse_length(length)
    if position_ids is not None:
        positions = integers_by_position("position_ids", position_ids).clone()
        return CountedDocuments(positions, ids_from_positions(positions))
    return Documents(integers_by_position("ids", ids))


@mask_value
class Within(Tabled, PaddingMask):
    """See `within`. ``positions`` (L,) or (B, L) are those inside each document."""

    segments: AnyDocuments
    mask: Mask
    positions: Tensor
    name = "within"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_position, kv_position = at(self.positions, b, q_idx), at(self.positions, b, kv_idx)
        # what counts up may begin before 0
        signed = Signed(True, True) if isinstance(self.segments, CountedDocuments) else Signed(False, False)
        inside = self.mask.signed(b, h, q_position, kv_position, signed)
        return self.segments(b, h, q_idx, kv_idx) & inside

    def __repr__(self) -> str:
        return f"within({self.segments!r}, {self.mask!r})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return self.segments.hidden_keys(kv_len, first)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return self.segments.hidden_queries(q_len, first)

    def row_ends(self) -> Tensor:
        return self.segments.row_ends()


def within(segments: AnyDocuments, mask: MaskMod) -> Within:
    """A mask inside each document. Positions start anew in each: at 0, or at its first position id.

    ::

        within(documents(offsets=[0, 2, 5]), sinks(1) | window(back=0))   k0 k1 k2 k3 k4
                                                                      q0   x
                                                                      q1   x  x
                                                                      q2         x
                                                                      q3         x  x
                                                                      q4         x     x

    ``causal`` and windows mean the same with and without it; chunks, sinks and prefixes do not. ``within(segments, causal |
    prefix(n))`` is a prefix-LM for each document; `document_prefix` has a length of its own for each. The segments are copied,
    since positions are made from them: a later write into their ids changes nothing. Source: packed sequences whose position
    ids restart, Krell et al. 2021 (arXiv 2107.02027).

    Args:
        segments: made by `documents`, of documents that are contiguous.
        mask: a Mask or a mask_mod, asked with positions inside the document; ``b`` and ``h`` stay.

    Raises:
        TypeError: segments of another kind.
        ValueError: documents in several pieces, where positions cannot restart (looked at on the CPU only).
    """
    positions, segments = positions_inside("within", segments), _copied(segments)
    if isinstance(segments, CountedDocuments):
        positions = segments.position_ids.to(torch.int32)
    return Within(segments, as_mask(mask), positions)


@mask_value
class DocumentPrefix(Tabled):
    """See `document_prefix`. ``is_prefix`` (L,) or (B, L) marks the positions that lie in a prefix."""

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

    ``segments & causal | document_prefix(segments, n)`` is a prefix-LM over packed documents. Where n is the same for all, write
    ``within(segments, prefix(n))``. Segments and n are copied, since the prefixes are marked from them: a later write into them
    changes nothing. Source: prefix LM, Raffel et al. 2020 (T5), section 3.2.1.

    Args:
        segments: made by `documents`, of documents that are contiguous.
        n: keys in the prefix of each document, at least 0: integers (documents,), or (B, documents) where rows have
            documents of their own. Entry d is for the document with id d, or the d-th of offsets or position_ids.

    Raises:
        TypeError, ValueError: segments of another kind or in several pieces, not integers, a negative number, fewer
            numbers than documents (looked at on the CPU only).
    """
    positions, segments = positions_inside("document_prefix", segments), _copied(segments)
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


def _copied(segments: AnyDocuments) -> AnyDocuments:
    """The segments with tensors of their own: all but those by ids have copied already."""
    return Documents(segments.ids.clone()) if isinstance(segments, Documents) else segments


def positions_inside(name: str, segments: AnyDocuments) -> Tensor:
    """How far each position is from the beginning of its document: int32 (L,) or (B, L)."""
    if not isinstance(segments, AnyDocuments):
        raise TypeError(f"{name} takes documents made by documents(...); got {brief(segments)}")
    if isinstance(segments, Documents) and readable(segments.ids):
        _check_contiguous(name, segments.ids)
    return positions_from_ids(segments.ids)


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
