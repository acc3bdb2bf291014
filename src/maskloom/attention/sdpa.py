"""torch's scaled_dot_product_attention, given as little of the mask as it needs.

| the mask is                        | what goes in                                                                        |
|------------------------------------|-------------------------------------------------------------------------------------|
| everything                         | nothing                                                                             |
| exactly `causal`                   | ``is_causal=True``, which skips what lies above the diagonal                        |
| another, `KEPT_BYTES` as a table   | the table, built once and kept with the mask                                        |
| another, larger                    | tables of some rows of queries at a time, made again in the backward, never kept    |
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.attention.chunks import in_chunks, rows_of
from maskloom.attention.compiled import shares_heads
from maskloom.attention.derivatives import with_first_only
from maskloom.attention.fill import zeros_both_ways
from maskloom.attention.kept import MOST_BYTES, keep, tensors_of
from maskloom.blocks.build import block_mask
from maskloom.blocks.tables import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.masks.algebra import Everything
from maskloom.masks.dense import MaskMod, needed_sizes
from maskloom.masks.modes import is_lasting
from maskloom.masks.relative import Causal, causal

KEPT_BYTES = MOST_BYTES
"""The largest table that is kept, in bytes (256 MiB), one for each element."""

CHUNK = 2**26
"""Scores (B × H × queries × K) in one chunk, at most, where the table is larger than that."""

Sight = Literal["everything", "causal", "some"]


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask | MaskMod | None = None, *, scale: float | None = None
) -> Tensor:
    """torch's scaled_dot_product_attention with a mask.

    Args:
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E). H is a multiple of Hkv.
        mask: a BlockMask (meaning what `maskloom.blocks.tables.dense_of` says), a Mask, a mask_mod, or None for
            everything.
        scale: by default ``1 / sqrt(D)``.

    Returns:
        (B, H, Q, E). A query that sees nothing has output 0 and gradients 0.

    Raises:
        ValueError: the mask reads tables for another number of batch rows, heads or positions.
    """
    sight = sight_of(mask)
    if mask is None or sight != "some":
        return _attention(query, key, value, scale=scale, is_causal=sight == "causal")
    table = kept_table(query, key, mask)
    if table is not None:
        where = ("blind", *query.shape[:3], key.shape[-2], query.device)
        blind = keep(mask, where, lambda: _blind(table)) if _fills(query) else None
        return _attention(query, key, value, table, blind, scale=scale)
    batch, heads = _table_sizes(query, key, mask)

    def some_rows(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor]:
        count, kv_len, device = query.shape[-2], key.shape[-2], query.device
        rows = rows_of(mask, first, count, batch=batch, heads=heads, kv_len=kv_len, device=device)
        return (_attention(query, key, value, rows, _blind(rows) if _fills(query) else None, scale=scale),)

    return in_chunks(some_rows, query, key, value, most=CHUNK, reads=tensors_of(mask))[0]


def sight_of(mask: BlockMask | MaskMod | None) -> Sight:
    """What queries see, as far as structure says: everything, exactly what `causal` lets them see, or some other part.

    Of a BlockMask the tables are looked at too, once; while torch traces they cannot be, and that is "some".
    """
    if not isinstance(mask, BlockMask):
        return _sight_of_function(mask)
    if not is_lasting():
        return "some"
    # functions too: what they read plays no part in it
    return keep(mask, ("sight",), lambda: _sight_of_tables(mask), functions_too=True)


def kept_table(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> Tensor | None:
    """The mask as a table, kept with it: bool (B or 1, H or 1, Q, K).

    None if it would be larger than `KEPT_BYTES`, and for a mask that hides nothing.
    """
    if mask is None or isinstance(mask, Everything):
        return None
    batch, heads, q_len, _ = query.shape
    kv_len, device = key.shape[-2], query.device

    def build() -> Tensor | None:
        rows, columns = _table_sizes(query, key, mask)
        if not torch.compiler.is_compiling() and rows * columns * q_len * kv_len > KEPT_BYTES:
            return None
        return rows_of(mask, 0, q_len, batch=rows, heads=columns, kv_len=kv_len, device=device)

    return keep(mask, ("table", batch, heads, q_len, kv_len, device), build)


def _sight_of_function(mask: MaskMod | None) -> Sight:
    if mask is None or mask is noop_mask or isinstance(mask, Everything):
        return "everything"
    return "causal" if isinstance(mask, Causal) else "some"


def _sight_of_tables(mask: BlockMask) -> Sight:
    states, sight = tile_states(mask), _sight_of_function(mask.mask_mod)
    if bool((states == FULL).all()):
        return "everything"
    if sight == "everything":
        return sight if bool((states != SKIPPED).all()) else "some"
    if sight == "causal":
        return sight if _are_of_causal(mask, states) else "some"
    return "some"


def _are_of_causal(mask: BlockMask, states: Tensor) -> bool:
    """Whether a BlockMask whose mask_mod is causal skips and fills no tile but those that causal does."""
    q_len, kv_len = mask.seq_lengths
    right = tile_states(block_mask(causal, q_len, kv_len, device=states.device, block_size=mask.BLOCK_SIZE))
    if states.shape[-2:] != right.shape[-2:]:
        return False
    return bool(((states == PARTIAL) | (states == right)).all())


def _table_sizes(query: Tensor, key: Tensor, mask: BlockMask | MaskMod) -> tuple[int, int]:
    """The smallest B and H of a table of the mask."""
    batch, heads, q_len, _ = query.shape
    function = mask.mask_mod if isinstance(mask, BlockMask) else mask
    needed = needed_sizes(function, q_len, key.shape[-2], batch=batch, heads=heads, device=query.device)
    if not isinstance(mask, BlockMask):
        return needed
    return max(needed[0], mask.kv_indices.shape[0]), max(needed[1], mask.kv_indices.shape[1])


def _fills(query: Tensor) -> bool:
    """Whether hidden queries must be filled: cuDNN gives them the mean of the values."""
    return query.device.type != "cpu"


def _blind(table: Tensor) -> Tensor:
    """The queries that see nothing: bool (B or 1, H or 1, Q, 1)."""
    return ~table.any(-1, keepdim=True)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None = None,
    blind: Tensor | None = None,
    *,
    scale: float | None,
    is_causal: bool = False,
) -> Tensor:
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=table, is_causal=is_causal, scale=scale, enable_gqa=shares_heads(query, key)
    )
    out = with_first_only(out, "sdpa")
    return out if blind is None else zeros_both_ways(out, blind)
