"""What a BlockMask's tables say, tile by tile and element by element.

A BlockMask means: every element of its full tiles, and those elements of its partial tiles where mask_mod says True.
Neither the tables nor mask_mod alone are the mask.
"""

import inspect
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.masks.dense import dense, needed_sizes
from maskloom.masks.sending import reduced
from maskloom.masks.words import brief

SKIPPED, PARTIAL, FULL = 0, 1, 2

_PARTS = tuple(inspect.signature(BlockMask).parameters)  # newer torch has more of them


def rebuilt(block_mask: BlockMask, **changes: Any) -> BlockMask:
    """A BlockMask of the same parts, but for some: also while torch compiles, where nothing can be copied."""
    return BlockMask(**{part: changes[part] if part in changes else getattr(block_mask, part) for part in _PARTS})


ForkingPickler.register(BlockMask, reduced)  # a DataLoader's worker says what cannot be pickled, whoever built it


_ALL = slice(None)


def checked_block_mask(value: object) -> BlockMask:
    """The BlockMask itself, or a TypeError that says what was given in its place."""
    if not isinstance(value, BlockMask):
        raise TypeError(
            f"a BlockMask, as block_mask(mask, q_len, kv_len) builds one; got {type(value).__name__}: {brief(value)}"
        )
    return value


def tile_states(block_mask: BlockMask, rows: slice = _ALL) -> Tensor:
    """What attention does with each tile: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL.

    Args:
        rows: which query tiles.
    """
    kv_block = block_mask.BLOCK_SIZE[1]
    key_tiles = -(-block_mask.seq_lengths[1] // kv_block)
    states = _listed(block_mask.kv_num_blocks[..., rows], block_mask.kv_indices[..., rows, :], key_tiles).to(torch.int8)
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = _listed(block_mask.full_kv_num_blocks[..., rows], block_mask.full_kv_indices[..., rows, :], key_tiles)
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


def dense_of(block_mask: BlockMask, batch: int, heads: int, *, queries: slice = _ALL) -> Tensor:
    """The mask that a BlockMask means, element by element: bool (B or 1, H or 1, Q, K).

    Args:
        batch, heads: B and H of the attention. mask_mod is evaluated with these, also where the tables are shared.
        queries: only these rows of it, ``slice(start, stop)``: bool (B or 1, H or 1, stop - start, K). No more than that
            is ever made.

    Raises:
        ValueError: mask_mod reads tables for another number of batch rows or heads, or there are no such queries.
    """
    q_len, kv_len = block_mask.seq_lengths
    kv_block, device = block_mask.BLOCK_SIZE[1], block_mask.kv_num_blocks.device
    batch, heads = needed_sizes(block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
    start, stop = _bounds(queries, q_len)
    states = _states_of_queries(block_mask, start, stop).repeat_interleave(kv_block, -1)[..., :kv_len]
    elements = dense(block_mask.mask_mod, stop - start, kv_len, batch=batch, heads=heads, device=device, q_offset=start)
    return (states == FULL) | ((states == PARTIAL) & elements)


def _bounds(queries: slice, q_len: int) -> tuple[int, int]:
    start, stop = queries.start or 0, q_len if queries.stop is None else queries.stop
    if queries.step not in (None, 1) or not 0 <= start < stop <= q_len:
        raise ValueError(f"queries is slice(start, stop) with 0 <= start < stop <= {q_len}; got {queries}")
    return start, stop


def _states_of_queries(block_mask: BlockMask, start: int, stop: int) -> Tensor:
    """The states of the tiles that each of the queries from ``start`` to ``stop`` lies in: (.., queries, key tiles)."""
    q_block = block_mask.BLOCK_SIZE[0]
    first = start // q_block
    states = tile_states(block_mask, slice(first, -(-stop // q_block))).repeat_interleave(q_block, -2)
    return states[..., start - first * q_block : stop - first * q_block, :]


def _listed(counts: Tensor, indices: Tensor, key_tiles: int) -> Tensor:
    """Which key tiles a table lists for each query tile: bool (B, H, query tiles, key tiles)."""
    position = torch.arange(indices.shape[-1], device=indices.device)
    target = torch.where(position < counts[..., None], indices.long(), key_tiles)  # entries beyond the count: overboard
    listed = torch.zeros(*indices.shape[:-1], key_tiles + 1, dtype=torch.bool, device=indices.device)
    return listed.scatter(-1, target, True)[..., :key_tiles]
