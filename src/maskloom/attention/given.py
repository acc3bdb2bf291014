"""What a backend needs of the mask that it was given: a BlockMask or a dense table, built once and kept with it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.attention.kept import Kept
from maskloom.blocks.build import block_mask as build_block_mask
from maskloom.blocks.tables import PARTIAL, dense_of, rebuilt, tile_states
from maskloom.masks import captured
from maskloom.masks.algebra import Everything, everything
from maskloom.masks.dense import MaskMod, dense, needed_sizes

R = TypeVar("R")

_kept = Kept()


def as_block_mask(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> BlockMask:
    """The BlockMask that the fused kernel gets: the given one, or one built from a mask and kept with it."""
    if isinstance(mask, BlockMask):
        return mask
    source = everything if mask is None else mask
    batch, heads, q_len, _ = query.shape
    kv_len, device = key.shape[-2], query.device

    def build() -> BlockMask:
        rows, columns = needed_sizes(source, q_len, kv_len, batch=batch, heads=heads, device=device)
        return build_block_mask(source, q_len, kv_len, batch=rows, heads=columns, device=device)

    def without_source() -> BlockMask:  # what is kept with a mask must not hold it
        built = build()
        return rebuilt(built, mask_mod=noop_mask) if built.mask_mod is source else built

    if torch.compiler.is_dynamo_compiling():
        return build()
    kept = keep(source, ("blocks", batch, heads, q_len, kv_len, device), without_source)
    return rebuilt(kept, mask_mod=source) if kept.mask_mod is noop_mask else kept


def as_table(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> Tensor | None:
    """The mask as a dense table, kept with it: bool (B or 1, H or 1, Q, K); None if everything is seen."""
    if mask is None or isinstance(mask, Everything):
        return None
    batch, heads, q_len, _ = query.shape
    kv_len, device = key.shape[-2], query.device

    def build() -> Tensor:
        if isinstance(mask, BlockMask):
            return dense_of(mask, batch, heads)
        rows, columns = needed_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=device)
        return dense(mask, q_len, kv_len, batch=rows, heads=columns, device=device)

    return keep(mask, ("table", batch, heads, q_len, kv_len, device), build)


def refuse_shared_tables(block_mask: BlockMask, batch: int, heads: int) -> None:
    """Refuse the tables of batch row 0, or head 0, that stand for all where the mask's differ (attention-gym#98).

    A hand-made BlockMask may share tables that are not those of row 0: that is its own affair.

    Raises:
        ValueError: the tables are such ones.
    """
    given = block_mask.kv_indices.shape[:2]
    if torch.compiler.is_dynamo_compiling() or tuple(given) == (batch, heads):
        return

    def check() -> bool:
        q_len, kv_len = block_mask.seq_lengths
        device = block_mask.kv_indices.device
        needed = needed_sizes(block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
        for axis, letter in enumerate("BH"):
            if given[axis] == 1 and needed[axis] > 1 and _stands_for_others(block_mask, needed, axis):
                raise ValueError(
                    f"the block mask was built with {letter}=None, and its mask differs from one to another of "
                    f"{needed[axis]}: its tables hold only the first; build it with {letter}={needed[axis]}, "
                    "or with maskloom.block_mask"
                )
        return True

    keep(block_mask, ("checked", batch, heads), check, functions_too=True)  # looked at once is enough for a warning


def _stands_for_others(block_mask: BlockMask, needed: tuple[int, int], axis: int) -> bool:
    """Whether its tables are those of the first of ``needed[axis]``, and others need others."""
    q_len, kv_len = block_mask.seq_lengths
    batch, heads = needed
    all_tables = build_block_mask(
        block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads,
        device=block_mask.kv_indices.device, block_size=block_mask.BLOCK_SIZE,
    )  # fmt: skip
    right, given = tile_states(all_tables), tile_states(block_mask)
    first = right.narrow(axis, 0, 1)
    return bool(((given == first) | (given == first.clamp(max=PARTIAL))).all()) and not bool((right == first).all())


def keep(source: Any, key: tuple[Any, ...], compute: Callable[[], R], *, functions_too: bool = False) -> R:
    """``compute()``, kept with ``source`` unless that holds a function: what a function reads may change unseen."""
    mask = source.mask_mod if isinstance(source, BlockMask) else source
    if torch.compiler.is_dynamo_compiling() or (captured.holds_code(mask) and not functions_too):
        return compute()
    tensors = captured.tensors(mask)
    if not isinstance(source, BlockMask):
        return _kept.get(source, tensors, key, compute)
    tables = (source.kv_num_blocks, source.kv_indices, source.full_kv_num_blocks, source.full_kv_indices)
    tensors += [table for table in tables if table is not None]
    return _kept.get(source, tensors, key, compute, parts=(mask,))
