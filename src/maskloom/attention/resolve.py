"""The BlockMask that a kernel gets: the given one, looked at once, or one built from a mask and kept with it."""

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.table_reads import with_mended_reads
from maskloom.blocks.build import block_mask as build_block_mask
from maskloom.blocks.construct import recipe_of
from maskloom.blocks.grid import Wanted
from maskloom.blocks.replay.manner import exact_now
from maskloom.blocks.tile_states import PARTIAL, tile_states
from maskloom.blocks.traced import traced
from maskloom.core import captures
from maskloom.core.block_masks import laid_out, rebuilt
from maskloom.core.cache import cached_with
from maskloom.core.pickling import stays_here
from maskloom.masks.algebra import Mask, everything
from maskloom.masks.dense import needed_sizes
from maskloom.masks.simplify import simplified
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import MaskMod


def as_block_mask(
    query: Tensor,
    key: Tensor,
    mask: BlockMask | MaskMod | None,
    *,
    mended: bool = False,
    block_size: tuple[int, int] = (128, 128),
    visits_all: bool = False,
) -> BlockMask:
    """The BlockMask that the fused kernel gets: the given one, or one built from a mask and kept with it.

    Args:
        mended: for Triton, by `with_mended_reads`.
        block_size: of one that is built, (Q, KV).
        visits_all: whether tiles of one that is built for a Mask are all visited; see `backends.base.visits_all`.
    """
    if isinstance(mask, BlockMask):
        mask = laid_out(mask) if torch.compiler.is_dynamo_compiling() else mask
        return _with_mended_reads(mask, query.device) if mended else mask
    source = everything if mask is None else mask
    batch, heads, q_len, _ = query.shape
    kv_len, device = key.shape[-2], query.device

    def build() -> BlockMask:
        rows, columns = needed_sizes(source, q_len, kv_len, batch=batch, heads=heads, device=device)
        if visits_all and isinstance(source, Mask):
            recipe = recipe_of(simplified(source), Wanted(q_len, kv_len, rows, columns, block_size), device)
            recipe.check()
            built = replace(recipe, visits_all=True).build()
            return _with_mended_reads(built, device) if mended else built
        built = build_block_mask(
            source, q_len, kv_len, batch=rows, heads=columns, device=device, block_size=block_size, exact=exact_now()
        )
        return _with_mended_reads(built, device) if mended else built

    def without_source() -> BlockMask:  # what is kept with a mask must not hold it: an equal one stands in its place
        with stays_here():
            built = build()
        return rebuilt(built, mask_mod=copy.copy(source)) if built.mask_mod is source else built

    if torch.compiler.is_dynamo_compiling():
        built = traced(source, Wanted(q_len, kv_len, batch, heads, block_size), device, fewest=True)
        return _with_mended_reads(built, device) if mended else built
    if captures.may_change(source):
        with stays_here():
            return build()
    key_of_blocks = "blocks", batch, heads, q_len, kv_len, device, mended, block_size, visits_all
    return cached_with(source, key_of_blocks, without_source)


def _with_mended_reads(blocks: BlockMask, device: torch.device) -> BlockMask:
    mask_mod = with_mended_reads(blocks.mask_mod, device)
    return blocks if mask_mod is blocks.mask_mod else rebuilt(blocks, mask_mod=mask_mod)


def refuse_shared_tables(block_mask: BlockMask, batch: int, heads: int) -> None:
    """Refuse the tables of batch row 0, or head 0, that stand for all where the mask's differ (attention-gym#98).

    A hand-made BlockMask may share tables that are not those of row 0: that is its own affair. While torch compiles, tables
    cannot be looked at: shared ones are refused where the mask reads a table of its own by batch row, or by head.

    Raises:
        ValueError: the tables are such ones.
    """
    given = block_mask.kv_indices.shape[:2]
    if tuple(given) == (batch, heads):
        return
    mask_mod, device = block_mask.mask_mod, block_mask.kv_indices.device
    if torch.compiler.is_compiling():
        reading = dependence_on(mask_mod, device)
        needed = reading.size("b", batch), reading.size("h", heads)
        for axis, read_by in enumerate((reading.sizes["b"], reading.sizes["h"])):
            if given[axis] == 1 and needed[axis] > 1 and read_by:
                raise _of_the_first("BH"[axis], needed[axis])
        return

    def check() -> bool:
        needed = needed_sizes(mask_mod, *block_mask.seq_lengths, batch=batch, heads=heads, device=device)
        for axis, letter in enumerate("BH"):
            if given[axis] == 1 and needed[axis] > 1 and _stands_for_others(block_mask, needed, axis):
                raise _of_the_first(letter, needed[axis])
        return True

    cached_with(
        block_mask, ("checked", batch, heads), check, functions_too=True
    )  # looked at once is enough for a warning


def _of_the_first(letter: str, needed: int) -> ValueError:
    return ValueError(
        f"the block mask was built with {letter}=None, and its mask differs from one to another of {needed}: its tables "
        f"hold only the first; build it with {letter}={needed}, or with maskloom.block_mask"
    )


def _stands_for_others(block_mask: BlockMask, needed: tuple[int, int], axis: int) -> bool:
    """Whether its tables are those of the first of ``needed[axis]``, and others need others."""
    q_len, kv_len = block_mask.seq_lengths
    batch, heads = needed
    with stays_here():
        all_tables = build_block_mask(
            block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads,
            device=block_mask.kv_indices.device, block_size=block_mask.BLOCK_SIZE,
        )  # fmt: skip
    right, given = tile_states(all_tables), tile_states(block_mask)
    first = right.narrow(axis, 0, 1)
    return bool(((given == first) | (given == first.clamp(max=PARTIAL))).all()) and not bool((right == first).all())
