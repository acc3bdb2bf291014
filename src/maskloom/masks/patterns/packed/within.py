"""Masks inside documents: positions restart in each, and the mask may depend on the number of the document."""

import types
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from maskloom.core.checks import check_ids_below, required_arguments
from maskloom.core.torch_state import NOT_LIFTED
from maskloom.core.values import FrozenValue, value
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, Tabled, as_mask, mask_dataclass
from maskloom.masks.lookups import at
from maskloom.masks.padded import CountedSides, PaddingMask, Position
from maskloom.masks.patterns.packed.cross_documents import CrossDocuments, PackedCrossDocuments
from maskloom.masks.patterns.packed.segments import (
    AnyDocuments,
    CountedDocuments,
    copied_segments,
    positions_inside,
    positions_of,
)
from maskloom.masks.patterns.transforms import choice, chosen
from maskloom.masks.signed import Signed
from maskloom.program.answers import ask
from maskloom.program.program import MaskMod

__all__ = ["within", "per_document"]

DocumentMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(b, h, q_idx, kv_idx, document) -> bool``: a mask_mod that also gets the number of the document."""


@value
class PerDocument(FrozenValue):
    """See `per_document`. ``parts`` are the distinct masks; ``which`` (documents,) is the part of each document."""

    masks: tuple[Mask, ...]
    parts: tuple[Mask, ...]
    which: Tensor

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, document: Tensor, signed: Signed) -> Tensor:
        """The answer of the document's mask, where positions may be negative."""
        return choice(self.which[document], [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])

    def __repr__(self) -> str:
        return f"per_document([{', '.join(map(repr, self.masks))}])"


@value
class ByNumber(FrozenValue):
    """A function that also gets the number of the document, inside `within`."""

    function: DocumentMod

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, document: Tensor, signed: Signed) -> Tensor:
        """The answer of the function; it must handle negative positions itself."""
        if q_idx.ndim and torch.compiler.is_dynamo_compiling():
            raise TypeError(NOT_LIFTED)
        return ask(self.function, b, h, q_idx, kv_idx, document)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def per_document(masks: Sequence[MaskMod]) -> PerDocument:
    """Document d has the mask ``masks[d]``: for `within`, which knows the documents.

    ::

        within(documents(offsets=[0, 2, 5]), per_document([causal, window(back=0)]))   k0 k1 k2 k3 k4
                                                                                   q0   x
                                                                                   q1   x  x
                                                                                   q2         x
                                                                                   q3            x
                                                                                   q4               x

    Documents with equal masks share the work. If masks differ only by a number, a function that reads a table is
    faster: see `within`. It holds a table (documents,): for a GPU, move the result of `within` with ``.to``.

    Args:
        masks: a Mask or a mask_mod for each document.

    Raises:
        TypeError: not a list, or an item that is not a mask. ValueError: an empty list.
    """
    return PerDocument(*chosen("per_document", "document", masks))


@mask_dataclass
class Within(Tabled, PaddingMask):
    """See `within`. The positions, (Q,) or (B, Q), and (K,) or (B, K), are positions inside each document."""

    runs_in_flash = True

    segments: AnyDocuments | CrossDocuments | PackedCrossDocuments
    mask: Mask | PerDocument | ByNumber
    q_positions: Tensor
    kv_positions: Tensor
    lower_right: bool

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        inside = at(self.q_positions, b, q_idx), at(self.kv_positions, b, kv_idx)
        return self.segments(b, h, q_idx, kv_idx) & self._answer(b, h, *inside, q_idx)

    def _answer(self, b: Tensor, h: Tensor, q_position: Tensor, kv_position: Tensor, q_idx: Tensor) -> Tensor:
        counted = isinstance(self.segments, CountedDocuments)  # position ids may start below 0
        signed = Signed(counted or self.lower_right, counted)
        if isinstance(self.mask, Mask):
            return self.mask.signed(b, h, q_position, kv_position, signed)
        document = at(self.segments.ids, b, q_idx)
        if document.dtype not in (torch.int64, torch.int32):  # of which torch takes no index, or uint8 for bools
            document = document.long()
        return self.mask.signed(b, h, q_position, kv_position, document * (document >= 0), signed)

    def __repr__(self) -> str:
        aligned = ", lower_right=True" if self.lower_right else ""
        return f"within({self.segments!r}, {self.mask!r}{aligned})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return self.segments.hidden_keys(kv_len, first)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor | None:
        return self.segments.hidden_queries(q_len, first)

    def row_ends(self) -> Tensor | None:
        return self.segments.row_ends()

    def counted_sides(self) -> CountedSides:
        return self.segments.counted_sides()


def within(
    segments: AnyDocuments | CrossDocuments | PackedCrossDocuments,
    mask: MaskMod | PerDocument | DocumentMod,
    *,
    lower_right: bool = False,
) -> Within:
    """A mask inside each document. Positions restart in each: at 0, or at its first position id.

    ::

        within(documents(offsets=[0, 2, 5]), sinks(1) | window(back=0))   k0 k1 k2 k3 k4
                                                                      q0   x
                                                                      q1   x  x
                                                                      q2         x
                                                                      q3         x  x
                                                                      q4         x     x

    ``causal`` and windows are the same with and without it; chunks, sinks and prefixes are not. ``within(segments,
    causal | prefix(n))`` is a prefix-LM for each document; `document_prefix` has a separate length for each. The
    segments are copied, since positions are computed from them: later writes into their ids have no effect. Source:
    packed sequences whose position ids restart, Krell et al. 2021 (arXiv 2107.02027).

    A function of five arguments also gets the number of the document, and may read a table by it: with ``back``
    (documents,), ``within(segments, lambda b, h, q, k, d: (q >= k) & (q - k <= back[d]))`` has one window for each
    document. With bools ``two_way`` (documents,), in ``within(segments, lambda b, h, q, k, d: (q >= k) | two_way[d])``
    some documents are causal.

    Args:
        segments: contiguous documents, made by `documents`. Their numbers are the ids, or the order of offsets or
            position ids.
        mask: a Mask or a mask_mod, called with positions inside the document; ``b`` and ``h`` stay. Or `per_document`,
            or a function (b, h, q_idx, kv_idx, document) -> bool.
        lower_right: for ``documents(offsets=.., kv_offsets=..)``: align the last query of each document with its last
            key, as in `documents_lower_right`, instead of the first query with the first key.

    Raises:
        TypeError: segments of another kind, lower_right without offsets on both sides, a mask with other arguments.
        ValueError: documents in several pieces, where positions cannot restart, or more documents than masks (checked
            on the CPU only).
    """
    q_positions, kv_positions = _both_positions(segments)
    held = _checked_mask(mask, segments)
    if lower_right:
        q_positions = q_positions + _further(segments)
    return Within(copied_segments(segments), held, q_positions, kv_positions, bool(lower_right))


def _checked_mask(
    mask: object, segments: AnyDocuments | CrossDocuments | PackedCrossDocuments
) -> Mask | PerDocument | ByNumber:
    if isinstance(mask, PerDocument):
        check_ids_below("per_document has masks for", segments.ids, len(mask.masks), "documents")
        return mask
    return ByNumber(cast(DocumentMod, mask)) if _takes_the_number(mask) else as_mask(cast(MaskMod, mask))


def _takes_the_number(mask: object) -> bool:
    if isinstance(mask, Mask) or not callable(mask):
        return False
    if torch.compiler.is_dynamo_compiling():  # dynamo cannot read signatures
        return isinstance(mask, types.FunctionType) and mask.__code__.co_argcount == 5
    return required_arguments(mask) == 5


def _both_positions(segments: AnyDocuments | CrossDocuments | PackedCrossDocuments) -> tuple[Tensor, Tensor]:
    """The distance of each query, and of each key, from the start of its document."""
    if isinstance(segments, (CrossDocuments, PackedCrossDocuments)):
        by_ids = isinstance(segments, CrossDocuments)
        return positions_of("within", segments.ids, by_ids), positions_of("within", segments.kv_ids, by_ids)
    positions = positions_inside("within", segments)
    if isinstance(segments, CountedDocuments):
        positions = segments.position_ids.to(torch.int32)
    return positions, positions


def _further(segments: AnyDocuments | CrossDocuments | PackedCrossDocuments) -> Tensor:
    """How many more keys than queries the document of each query has: int32 (Q,)."""
    if not isinstance(segments, PackedCrossDocuments):
        raise TypeError(f"lower_right needs documents(offsets=.., kv_offsets=..); got {brief(segments)}")
    more = segments.kv_offsets.long().diff() - segments.offsets.long().diff()
    return more[segments.ids.clamp(min=0).long()].to(torch.int32)
