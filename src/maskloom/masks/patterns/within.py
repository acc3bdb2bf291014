"""Masks inside documents: positions start anew in each, and a mask may be chosen by the document's number."""

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
from maskloom.masks.padded import PaddingMask, Position
from maskloom.masks.patterns.cross_documents import CrossDocuments, PackedCrossDocuments
from maskloom.masks.patterns.segments import (
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
"""``(b, h, q_idx, kv_idx, document) -> bool``: a mask_mod that is given the document's number too."""


@value
class PerDocument(FrozenValue):
    """See `per_document`. ``parts`` are the different masks, ``which`` (documents,) says which of them each document has."""

    masks: tuple[Mask, ...]
    parts: tuple[Mask, ...]
    which: Tensor

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, document: Tensor, signed: Signed) -> Tensor:
        """What the document's mask answers, where positions may be negative."""
        return choice(self.which[document], [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])

    def __repr__(self) -> str:
        return f"per_document([{', '.join(map(repr, self.masks))}])"


@value
class ByNumber(FrozenValue):
    """A function that is given the document's number, inside `within`."""

    function: DocumentMod

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, document: Tensor, signed: Signed) -> Tensor:
        """What the function answers; negative positions are its own affair."""
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

    Documents with equal masks share the work. What differs by a number alone is faster as a function that reads a table: see `within`.
    It holds a table (documents,): for a GPU, move what `within` makes of it with ``.to``.

    Args:
        masks: a Mask or a mask_mod for each document.

    Raises:
        TypeError: not a list, or something in it that is no mask. ValueError: none.
    """
    return PerDocument(*chosen("per_document", "document", masks))


@mask_dataclass
class Within(Tabled, PaddingMask):
    """See `within`. Positions (Q,) or (B, Q), and (K,) or (B, K), are those inside each document."""

    segments: AnyDocuments | CrossDocuments | PackedCrossDocuments
    mask: Mask | PerDocument | ByNumber
    q_positions: Tensor
    kv_positions: Tensor
    lower_right: bool

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        inside = at(self.q_positions, b, q_idx), at(self.kv_positions, b, kv_idx)
        return self.segments(b, h, q_idx, kv_idx) & self._answer(b, h, *inside, q_idx)

    def _answer(self, b: Tensor, h: Tensor, q_position: Tensor, kv_position: Tensor, q_idx: Tensor) -> Tensor:
        counted = isinstance(self.segments, CountedDocuments)  # what counts up may begin before 0
        signed = Signed(counted or self.lower_right, counted)
        if isinstance(self.mask, Mask):
            return self.mask.signed(b, h, q_position, kv_position, signed)
        document = at(self.segments.ids, b, q_idx)
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


def within(
    segments: AnyDocuments | CrossDocuments | PackedCrossDocuments,
    mask: MaskMod | PerDocument | DocumentMod,
    *,
    lower_right: bool = False,
) -> Within:
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

    A function of five arguments is given the number of the document too, and may read a table by it: with ``back`` (documents,) a
    window for each is ``within(segments, lambda b, h, q, k, d: (q >= k) & (q - k <= back[d]))``, and with bools ``two_way``
    (documents,) some documents are causal in ``within(segments, lambda b, h, q, k, d: (q >= k) | two_way[d])``.

    Args:
        segments: made by `documents`, of documents that are contiguous; their numbers are those of offsets or position ids, in
            order, or the ids.
        mask: a Mask or a mask_mod, asked with positions inside the document; ``b`` and ``h`` stay. Or `per_document`, or a function
            (b, h, q_idx, kv_idx, document) -> bool.
        lower_right: in ``documents(offsets=.., kv_offsets=..)``, count queries so that the last one of each document stands at its last
            key, as `documents_lower_right` has it, and not the first one at the first key.

    Raises:
        TypeError: segments of another kind, lower_right without offsets on both sides, a mask of other arguments.
        ValueError: documents in several pieces, where positions cannot restart, or more documents than masks (looked at on the CPU
            only).
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
    if torch.compiler.is_dynamo_compiling():  # which follows no signature
        return isinstance(mask, types.FunctionType) and mask.__code__.co_argcount == 5
    return required_arguments(mask) == 5


def _both_positions(segments: AnyDocuments | CrossDocuments | PackedCrossDocuments) -> tuple[Tensor, Tensor]:
    """Of queries and of keys, how far each is from the beginning of its document."""
    if isinstance(segments, (CrossDocuments, PackedCrossDocuments)):
        by_ids = isinstance(segments, CrossDocuments)
        return positions_of("within", segments.ids, by_ids), positions_of("within", segments.kv_ids, by_ids)
    positions = positions_inside("within", segments)
    if isinstance(segments, CountedDocuments):
        positions = segments.position_ids.to(torch.int32)
    return positions, positions


def _further(segments: AnyDocuments | CrossDocuments | PackedCrossDocuments) -> Tensor:
    """How many keys more than queries each query's document has: int32 (Q,)."""
    if not isinstance(segments, PackedCrossDocuments):
        raise TypeError(f"lower_right needs documents(offsets=.., kv_offsets=..); got {brief(segments)}")
    more = segments.kv_offsets.long().diff() - segments.offsets.long().diff()
    return more[segments.ids.clamp(min=0).long()].to(torch.int32)
