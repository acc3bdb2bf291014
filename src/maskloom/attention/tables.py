"""The mask as attention without tiles takes it: what it hides at all, and a table that is kept with it."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.blocks.dense import rows_of
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.core.cache import MOST_BYTES, cached_with
from maskloom.core.torch_state import can_cache
from maskloom.masks.algebra import Everything
from maskloom.masks.dense import needed_sizes
from maskloom.masks.patterns.relative import Causal
from maskloom.program.program import MaskMod

KEPT_BYTES = MOST_BYTES
"""The largest table that is kept, in bytes (256 MiB), one for each element."""

Visibility = Literal["everything", "causal", "some"]


def visibility(mask: BlockMask | MaskMod | None) -> Visibility:
    """What queries see, as far as structure says: everything, exactly what `causal` lets them see, or some other part.

    Of a BlockMask the tables are looked at too, once; while torch traces they cannot be, and that is "some".
    """
    if not isinstance(mask, BlockMask):
        return _sight_of_function(mask)
    if not can_cache():
        return "some"
    # functions too: what they read plays no part in it
    return cached_with(mask, ("sight",), lambda: _sight_of_tables(mask), functions_too=True)


def kept_table(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> Tensor | None:
    """The mask as a table, kept with it: bool (B or 1, H or 1, Q, K).

    None if it would be larger than `KEPT_BYTES`, and for a mask that hides nothing.
    """
    if mask is None or isinstance(mask, Everything):
        return None
    batch, heads, q_len, _ = query.shape
    kv_len, device = key.shape[-2], query.device

    def build() -> Tensor | None:
        rows, columns = table_sizes_of(query, key, mask)
        if not torch.compiler.is_compiling() and rows * columns * q_len * kv_len > KEPT_BYTES:
            return None
        return rows_of(mask, 0, q_len, batch=rows, heads=columns, kv_len=kv_len, device=device)

    return cached_with(mask, ("table", batch, heads, q_len, kv_len, device), build)


def _sight_of_function(mask: MaskMod | None) -> Visibility:
    if mask is None or mask is noop_mask or isinstance(mask, Everything):
        return "everything"
    return "causal" if isinstance(mask, Causal) else "some"


def _sight_of_tables(mask: BlockMask) -> Visibility:
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
    (q_len, kv_len), (q_block, kv_block) = mask.seq_lengths, mask.BLOCK_SIZE
    first_query, first_key = (
        torch.arange(0, length, block, device=states.device) for length, block in ((q_len, q_block), (kv_len, kv_block))
    )
    if states.shape[-2:] != (len(first_query), len(first_key)):
        return False
    last_query = (first_query + q_block).clamp(max=q_len)[:, None] - 1
    is_whole = (first_query + q_block <= q_len)[:, None] & (first_key + kv_block <= kv_len)
    is_full = is_whole & (first_query[:, None] >= first_key + kv_block - 1)
    is_skipped = last_query < first_key
    right = torch.where(is_full, FULL, torch.where(is_skipped, SKIPPED, PARTIAL))
    return bool(((states == PARTIAL) | (states == right)).all())


def table_sizes_of(query: Tensor, key: Tensor, mask: BlockMask | MaskMod) -> tuple[int, int]:
    """The smallest B and H of a table of the mask."""
    batch, heads, q_len, _ = query.shape
    function = mask.mask_mod if isinstance(mask, BlockMask) else mask
    needed = needed_sizes(function, q_len, key.shape[-2], batch=batch, heads=heads, device=query.device)
    if not isinstance(mask, BlockMask):
        return needed
    return max(needed[0], mask.kv_indices.shape[0]), max(needed[1], mask.kv_indices.shape[1])
