"""Block masks while torch.compile or torch.export traces: torch builds them, since no program can be recorded."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.grid import Wanted
from maskloom.core.block_masks import rebuilt
from maskloom.core.symbols import is_dynamic
from maskloom.core.torch_state import is_exporting
from maskloom.masks.dense import GIVE_SIZES
from maskloom.program.dependence import Dependence
from maskloom.program.program import MaskMod
from maskloom.program.under_compile import sizes_read

TORCH_TAKES = frozenset(inspect.signature(flex.create_block_mask).parameters)
"""The parameters of this torch's ``create_block_mask``."""


def traced(mask: MaskMod, wanted: Wanted, device: torch.device | str | None, **options: Any) -> BlockMask:
    """torch's own function, which can be traced. Options that this torch does not have are left out."""
    q_len, kv_len, batch, heads, block, *_ = wanted
    if is_exporting() and (is_dynamic(q_len) or is_dynamic(kv_len)):
        raise ValueError("torch.export builds no block mask of lengths that are dynamic: give attend the mask itself")
    if batch is None or heads is None:
        raise ValueError(GIVE_SIZES)
    sizes = sizes_read(mask, "cpu")
    batch, heads = Dependence.on_all(sizes).sizes_for(batch, heads, q_len, kv_len)
    if device is None:
        raise ValueError(
            "while torch.compile or torch.export traces, give the device of the block mask, or build it outside"
        )
    known = {name: value for name, value in options.items() if name in TORCH_TAKES}

    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return mask(b, h, q_idx, kv_idx)

    # torch asks for a function's signature, which asks for its id: of a mask itself, that would tie the graph to this object
    return rebuilt(flex.create_block_mask(mod, batch, heads, q_len, kv_len, device, block, **known), mask_mod=mask)
