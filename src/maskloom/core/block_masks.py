"""torch's BlockMask as a container of parts, which differ between versions of torch."""

import inspect
from typing import Any

from torch.nn.attention.flex_attention import BlockMask

from maskloom.core.words import brief

_PARTS = tuple(inspect.signature(BlockMask).parameters)  # newer torch has more of them


def rebuilt(block_mask: BlockMask, **changes: Any) -> BlockMask:
    """A BlockMask of the same parts, but for some: also while torch compiles, where nothing can be copied."""
    return BlockMask(**{part: changes[part] if part in changes else getattr(block_mask, part) for part in _PARTS})


def checked_block_mask(value: object) -> BlockMask:
    """The BlockMask itself, or a TypeError that says what was given in its place."""
    if not isinstance(value, BlockMask):
        raise TypeError(
            f"a BlockMask, as block_mask(mask, q_len, kv_len) builds one; got {type(value).__name__}: {brief(value)}"
        )
    return value
