"""Block masks: which tiles attention must visit."""

from maskloom.blocks.build import block_mask, create_block_mask
from maskloom.blocks.fully_masked import fully_masked_queries
from maskloom.blocks.inspect import balance, density, explain_block_mask, fully_masked_rows, summary, tiles_per_row
from maskloom.blocks.lifecycle import BlockMaskCache, pin_memory, to_device, updatable, update_
from maskloom.blocks.loading import safe_globals
from maskloom.blocks.replay.captured import cuda_graphs

__all__ = [
    "block_mask",
    "create_block_mask",
    "explain_block_mask",
    "summary",
    "density",
    "tiles_per_row",
    "fully_masked_rows",
    "fully_masked_queries",
    "balance",
    "to_device",
    "pin_memory",
    "updatable",
    "update_",
    "BlockMaskCache",
    "safe_globals",
    "cuda_graphs",
]
