"""What a BlockMask's tables say, tile by tile and element by element.

A BlockMask means: every element of its full tiles, and those elements of its partial tiles where mask_mod says True.
Neither the tables nor mask_mod alone are the mask.
"""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.masks.dense import dense, needed_sizes

SKIPPED, PARTIAL, FULL = 0, 1, 2

_PARTS = tuple(inspect.signature(BlockMask).parameters)  # newer torch has more of them


def rebuilt(block_mask: BlockMask, **changes: Any) -> BlockMask:
    """A BlockMask of the same parts, but for some: also while torch compiles, where nothing can be copied."""
    return BlockMask(**{part: changes[part] if part in changes else getattr(block_mask, part) for part in _PARTS})


def tile_states(block_mask: BlockMask) -> Tensor:
    """What attention does with each tile: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL."""
    kv_block = block_mask.BLOCK_SIZE[1]
    key_tiles = -(-block_mask.seq_lengths[1] // kv_block)
    states = _listed(block_mask.kv_num_blocks, block_mask.kv_indices, key_tiles).to(torch.int8)
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, key_tiles)
        states = states.masked_fill(full, FULL)
    return states


class TileCounts(NamedTuple):
    """How many tiles a BlockMask has of each state, over all batch rows and heads of its tables."""

    skipped: int
    partial: int
    full: int


def tile_counts(block_mask: BlockMask) -> TileCounts:
    """How many tiles attention skips, and how many it visits with and without asking mask_mod."""
    counts = torch.bincount(tile_states(block_mask).flatten().long(), minlength=3)
    return TileCounts(*counts.tolist())


def dense_of(block_mask: BlockMask, batch: int, heads: int) -> Tensor:
    """The mask that a BlockMask means, element by element: bool (B or 1, H or 1, Q, K).

    Args:
        batch, heads: B and H of the attention. mask_mod is evaluated with these, also where the tables are shared.

    Raises:
        ValueError: mask_mod reads tables for another number of batch rows or heads.
    """
    q_len, kv_len = block_mask.seq_lengths
    q_block, kv_block = block_mask.BLOCK_SIZE
    device = block_mask.kv_num_blocks.device
    states = tile_states(block_mask)
    states = states.repeat_interleave(q_block, -2)[..., :q_len, :].repeat_interleave(kv_block, -1)[..., :kv_len]
    batch, heads = needed_sizes(block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
    elements = dense(block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
    return (states == FULL) | ((states == PARTIAL) & elements)


def _listed(counts: Tensor, indices: Tensor, key_tiles: int) -> Tensor:
    """Which key tiles a table lists for each query tile: bool (B, H, query tiles, key tiles)."""
    position = torch.arange(indices.shape[-1], device=indices.device)
    target = torch.where(position < counts[..., None], indices.long(), key_tiles)  # entries beyond the count: overboard
    listed = torch.zeros(*indices.shape[:-1], key_tiles + 1, dtype=torch.bool, device=indices.device)
    return listed.scatter(-1, target, True)[..., :key_tiles]
