"""From a mask to its BlockMask: run it, lay the grid, classify the tiles, write the index tables.

A block mask that follows from numbers alone is kept, and copied for later calls.
"""

from collections.abc import Hashable

import torch
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.classify import classify
from maskloom.blocks.grid import Wanted, grid_of
from maskloom.blocks.index_tables import to_block_mask
from maskloom.core import captures
from maskloom.core.block_masks import copied_tables
from maskloom.core.cache import LRU
from maskloom.core.pickling import check_can_be_sent
from maskloom.core.torch_state import can_cache
from maskloom.program.mask_program import program_of
from maskloom.program.program import MaskMod

_constants: LRU[Hashable, BlockMask] = LRU(64)
"""Block masks that follow from numbers alone."""

_MOST_TILES = 1 << 14  # of such a block mask: 512 KiB of tables


def construct(
    mask: MaskMod,
    wanted: Wanted,
    device: torch.device | str | None,
    *,
    shifted: MaskMod | None = None,
    exact: bool = True,
    separate_full_blocks: bool = True,
) -> BlockMask:
    """The BlockMask of a mask.

    Args:
        shifted: the mask that the BlockMask holds, if the first positions are not 0; by default the mask itself.
        exact, separate_full_blocks: see `block_mask` and `create_block_mask`.

    Raises:
        TypeError, ValueError: the errors of `block_mask` that need the mask's program.
    """
    held = mask if shifted is None else shifted
    check_can_be_sent(held)
    device = captures.device_for(mask, device)
    program = program_of(mask, device)
    if program.is_mapped:
        raise ValueError(
            "torch.vmap maps over tensors of this mask, and a block mask has tables for one: give attend the mask itself, or "
            "build the block mask outside of vmap"
        )
    of_numbers = program.is_of_numbers and wanted.is_of_ints and program.device.type == "cpu" and can_cache()
    key = (program.key, wanted, exact, separate_full_blocks) if of_numbers else None
    built = None if key is None else _constants.get(key)
    if built is None:
        grid = grid_of(program.dependence, wanted)
        states = classify(program, grid, exact=exact)
        built = to_block_mask(states, held, grid, separate_full_blocks=separate_full_blocks)
        if key is None or built.kv_indices.numel() > _MOST_TILES:
            return built
        _constants.put(key, built)
    return copied_tables(built, mask_mod=held)  # with tables of its own: whoever gets it may write into them
