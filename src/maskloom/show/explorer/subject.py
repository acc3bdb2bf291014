"""What a page shows: the mask in the form that it needs, the sizes, and the batch rows and heads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.tile_states import FULL, PARTIAL, tile_states
from maskloom.masks.algebra import Mask, as_mask
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.masks.patterns.from_tables import from_blocks
from maskloom.program.program import MaskMod
from maskloom.show.labels import checked_tokens
from maskloom.show.measure.cells import checked_weights
from maskloom.show.measure.lengths import own_lengths
from maskloom.show.measure.selection import Members, Which
from maskloom.show.measure.source import Source, source_of
from maskloom.show.measure.tiles import block_of

MOST_MEMBERS = 256
"""Maximum number of pairs of a batch row and a head in one page."""


@dataclass(frozen=True)
class Subject:
    """What a page shows.

    Attributes:
        mask: the mask, of which the operands are shown.
        names: names of operands that have another one than their repr.
        source: the mask for measuring.
        block: positions of a tile, (queries, keys).
        rows, heads: the batch rows and heads that the page has.
        scores: float (B or 1, H or 1, Q, K), weights of attention, or None.
        tokens: labels of queries and of keys, or None.
    """

    mask: Mask
    names: dict[int, str]
    source: Source
    block: tuple[int, int]
    rows: list[int]
    heads: list[int]
    scores: Tensor | None
    tokens: tuple[list[str] | None, list[str] | None]


def subject_of(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None,
    kv_len: int | None,
    *,
    batch: Which | None,
    heads: Which | None,
    block_size: int | tuple[int, int] | None,
    tokens: Sequence[str] | None,
    key_tokens: Sequence[str] | None,
    scores: Tensor | None,
) -> Subject:
    """What a page shows, checked. Errors as in `page`."""
    weights = None if scores is None else checked_weights("scores", scores)
    given = mask if isinstance(mask, (BlockMask, Tensor)) else as_mask(mask)
    source = source_of(given, *_lengths(given, q_len, kv_len, weights, tokens, key_tokens))
    if weights is not None and tuple(weights.shape[2:]) != (source.q_len, source.kv_len):
        raise ValueError(
            f"scores are for Q={source.q_len} queries and K={source.kv_len} keys, shape (..., Q, K); "
            f"got {tuple(weights.shape[2:])}"
        )
    source.batch, source.heads = (_with_scores(source, weights, axis) for axis in (0, 1))
    rows, chosen = _chosen(source.batch, batch), _chosen(source.heads, heads)
    if len(rows) * len(chosen) > MOST_MEMBERS:
        raise ValueError(
            f"a page has at most {MOST_MEMBERS} pairs of a batch row and a head; got {len(rows)} × {len(chosen)}: "
            "choose some with batch= and heads="
        )
    labels = _both(tokens, key_tokens, source.q_len, source.kv_len)
    form, names = _as_expression(given, source)
    return Subject(form, names, source, _block(given, block_size, source), rows, chosen, weights, labels)


def _lengths(
    mask: Any, q_len: int | None, kv_len: int | None, scores: Tensor | None, *tokens: Sequence[str] | None
) -> tuple[int | None, int | None]:
    """Q and K as given, or those of the scores, or, of a mask without lengths, of the tokens."""
    if q_len is not None or kv_len is not None or isinstance(mask, (BlockMask, Tensor)):
        return q_len, kv_len
    if scores is not None:
        return scores.shape[2], scores.shape[3]
    if any(own_lengths(mask)):
        return None, None
    lengths = [None if labels is None or isinstance(labels, str) else len(labels) for labels in tokens]
    return lengths[0], lengths[1]


def _with_scores(source: Source, scores: Tensor | None, axis: int) -> Members:
    """The batch rows or heads that the mask and the scores have together."""
    members = (source.batch, source.heads)[axis]
    count = 1 if scores is None else scores.shape[axis]
    if count == 1:
        return members
    if members.varies and members.count not in (None, count):
        raise ValueError(f"scores have {count} {members.item}s, and the mask has {members.count}")
    return replace(members, count=count, varies=True)


def _chosen(members: Members, which: Which | None) -> list[int]:
    if which is None:
        which = "all" if members.count is not None else 0
    return list(dict.fromkeys(members.chosen(which)))


def _both(
    tokens: Sequence[str] | None, key_tokens: Sequence[str] | None, q_len: int, kv_len: int
) -> tuple[list[str] | None, list[str] | None]:
    queries = checked_tokens("tokens", tokens, q_len)
    if key_tokens is None and q_len == kv_len:
        return queries, queries
    return queries, checked_tokens("key_tokens", key_tokens, kv_len)


def _block(mask: Any, block_size: int | tuple[int, int] | None, source: Source) -> tuple[int, int]:
    return block_of(mask, block_size, source.q_len, source.kv_len)


def _as_expression(mask: Any, source: Source) -> tuple[Mask, dict[int, str]]:
    """The mask as one that has operands: a BlockMask is its partial tiles, of mask_mod, and its full ones."""
    if isinstance(mask, Tensor):
        return mask_of_table(mask, Sizes(None, None, source.q_len, source.kv_len)), {}
    if not isinstance(mask, BlockMask):
        return mask, {}
    states = tile_states(mask)
    partial, full = (from_blocks(states == state, mask.BLOCK_SIZE) for state in (PARTIAL, FULL))
    names = {id(partial): "partial tiles of the block mask", id(full): "full tiles of the block mask"}
    inner = as_mask(mask.mask_mod)
    return (partial & inner | full if bool(torch.any(states == FULL)) else partial & inner), names
