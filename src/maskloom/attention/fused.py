"""FlexAttention's two kernels: Triton's, and FlashAttention 4, which torch calls FLASH."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.attention.compiled import fused_attention
from maskloom.attention.given import as_block_mask, with_mask
from maskloom.attention.request import Attended, Request
from maskloom.masks.algebra import Everything, Mask, as_mask, mask_value
from maskloom.masks.dense import MaskMod

_SMALLEST_HEAD_DIM = 16


def triton(request: Request) -> Attended:
    """Attention by the Triton kernel."""
    return _fused(request, as_block_mask(request.query, request.key, request.mask), request.kernel_options)


def flash(request: Request) -> Attended:
    """Attention by FlashAttention 4, with the sparse tables always in use."""
    blocks = as_block_mask(request.query, request.key, request.mask)
    options = {**(request.kernel_options or {}), "BACKEND": "FLASH"}
    return _fused(request, with_mask(blocks, _looked_at(blocks.mask_mod)), options)


def _fused(request: Request, blocks: BlockMask, options: dict[str, Any] | None) -> Attended:
    query, key, value, scale = request.query, request.key, request.value, request.scale
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    narrow = head_dim < _SMALLEST_HEAD_DIM or value_dim < _SMALLEST_HEAD_DIM
    if narrow:  # the zeros that widen it change no score
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (_widened(tensor) for tensor in (query, key, value))
    out, lse = fused_attention(
        query, key, value, blocks,
        score_mod=request.score_mod, scale=scale, wants_lse=request.wants_lse, kernel_options=options,
    )  # fmt: skip
    return Attended(out[..., :value_dim] if narrow else out, lse)


def _widened(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, max(0, _SMALLEST_HEAD_DIM - tensor.shape[-1])))


@mask_value
class EveryKey(Mask):
    """`everything`, said by a comparison. torch drops the tables of a mask that is the constant True (pytorch#188322)."""

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx >= 0

    def __repr__(self) -> str:
        return "everything"


_every_key = EveryKey()


def _looked_at(mask_mod: MaskMod) -> MaskMod:
    """The mask in a form that FLASH cannot take for the constant True: its BlockMask may hide tiles all the same."""
    if mask_mod is noop_mask or isinstance(mask_mod, Everything):
        return _every_key
    return mask_mod if isinstance(mask_mod, Mask) else as_mask(mask_mod) & _every_key
