"""The keys and queries that a mask is known to hide, by the padding masks at its top level."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.core.checks import is_zero
from maskloom.masks.algebra import And, Mask, as_mask, is_torch_and
from maskloom.masks.padded import NO_COUNTS, CountedSides, PaddingMask, Position
from maskloom.masks.patterns.shift import Shifted
from maskloom.program.program import MaskMod


def known_padding(mask_mod: MaskMod, kv_len: int, *, of_one_sequence: bool = False) -> Tensor | None:
    """Which key positions a mask is known to hide from every query: bool (B or 1, KV), True = hidden; None if unknown.

    Padding is known if a padding mask is the mask itself or a conjunct at the top level, also inside torch's
    ``and_masks``, and under `shifted`, which changes the key positions. Under ``|`` or ``~`` nothing is known.

    Args:
        of_one_sequence: queries and keys are one sequence. A position that is hidden only as a key is then a real query
            (``lengths(lens, kv_lens)`` with different lengths), so only positions hidden as both count. A mask without
            information about queries (`key_padding`) counts for both, unless `shifted` gives queries and keys different
            offsets.

    Raises:
        ValueError: two padding masks for different sizes; or torch compiles, and the mask is a composition of torch's,
            whose parts cannot be read then.
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
    """Which queries a mask is known to mask fully: bool (B or 1, Q), True = hidden; None if unknown.

    It follows the rule of `known_padding`, with the same error.
    """
    found = [part.hidden_queries(q_len) for part in _paddings(mask_mod)]
    return _all_of([hidden for hidden in found if hidden is not None])


def counted_padding(mask_mod: MaskMod) -> CountedSides:
    """The padding that the host counted when a mask was made; nothing if several parts of the mask say what is padding.

    It follows the rule of `known_padding`, with the same error; under `shifted` nothing is counted.
    """
    placed = _paddings(mask_mod)
    if len(placed) != 1 or not (is_zero(placed[0].first_query) and is_zero(placed[0].first_key)):
        return NO_COUNTS
    return placed[0].mask.counted_sides()


def _all_of(hidden: Sequence[Tensor]) -> Tensor | None:
    """The positions that any of the tables hides; None if there is no table."""
    known: Tensor | None = None
    for found in hidden:
        known = found if known is None else torch.logical_or(*_of_one_batch(known, found))
    return known


def _of_one_batch(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two tables, after a check that they are for one batch and length."""
    pairs = tuple(zip(first.shape, second.shape, strict=True))
    if pairs[1][0] != pairs[1][1] or (pairs[0][0] != pairs[0][1] and 1 not in pairs[0]):
        raise ValueError(
            f"the mask knows padding for (batch, length) = {tuple(first.shape)} and for {tuple(second.shape)}: not for one batch"
        )
    return first, second


class _Placed(NamedTuple):
    """A padding mask, with the positions of the first query and the first key in it."""

    mask: PaddingMask
    first_query: Position
    first_key: Position

    @property
    def begins_together(self) -> bool:
        """Whether the first query and the first key are known to have the same position."""
        query, key = self.first_query, self.first_key
        return query is key or (isinstance(query, int) and isinstance(key, int) and query == key)

    def hidden_keys(self, kv_len: int) -> Tensor:
        """Which keys, from the first one on, the mask hides: bool (B or 1, KV)."""
        first = self.first_key
        return self.mask.hidden_keys(kv_len) if is_zero(first) else self.mask.hidden_keys(kv_len, first)

    def hidden_queries(self, q_len: int) -> Tensor | None:
        """Which queries, from the first one on, the mask is known to mask fully: bool (B or 1, Q), or None."""
        first = self.first_query
        return self.mask.hidden_queries(q_len) if is_zero(first) else self.mask.hidden_queries(q_len, first)


def _paddings(mask_mod: MaskMod) -> list[_Placed]:
    """The padding masks that are conjuncts at the top level of a mask."""
    if torch.compiler.is_dynamo_compiling() and is_torch_and(mask_mod):
        # dynamo cannot call a closure once it has read a cell of it (assertion in side_effects.load_cell; 2.11, 2.13)
        raise ValueError(
            "torch.compile cannot look into torch's and_masks, to see whether it hides padding: "
            "combine the masks with & or maskloom.and_masks, or open it first with maskloom.as_mask(mask)"
        )
    return _placed(as_mask(mask_mod), 0, 0)


def _placed(mask: Mask, first_query: Position, first_key: Position) -> list[_Placed]:
    if isinstance(mask, Shifted):  # head offsets do not matter: padding is the same for every head
        together = first_key is first_query and mask.kv_offset is mask.q_offset  # keeps them one tensor
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
