"""FlexAttention's two kernels: Triton's, and FlashAttention 4, which torch calls FLASH."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.compiled import fused_attention
from maskloom.attention.derivatives import with_first_only
from maskloom.attention.flash_mask import for_flash
from maskloom.attention.given import as_block_mask
from maskloom.attention.request import Attended, Request
from maskloom.blocks.tables import rebuilt
from maskloom.masks import captured
from maskloom.scores.base import ScoreMod

_SMALLEST_HEAD_DIM = 16
_TILE = 128  # where it divides both lengths, torch takes it that tiles fit them
_TUNED_HEAD_DIM = 256  # for float32 past 128 the only one whose default blocks fit: torch 2.11, H100


def triton(request: Request) -> Attended:
    """Attention by the Triton kernel."""
    options = dict(request.kernel_options or {})
    if _reads_tables(request.score_mod):
        # the kernel buffers a tile of what score_mod reads for each stage: three, its default, are more than there is
        options.setdefault("num_stages", 2)
    blocks = as_block_mask(request.query, request.key, request.mask, mended=True)
    fit = _tiles_fit(request, blocks)
    if fit is not None:
        options.setdefault("IS_DIVISIBLE", fit)
    return _fused(request, blocks, options)


def _tiles_fit(request: Request, blocks: BlockMask) -> bool | None:
    """Whether tiles fit both lengths, so that the kernel need not look where they end; None where torch finds it out rightly.

    torch finds it out for lengths that are constants of the graph, not for dynamic ones, and by multiples of 128 alone:
    a larger block may end behind them, where the kernel would read keys that are not there.
    """
    larger = any(_TILE % size for size in blocks.BLOCK_SIZE)
    if torch.compiler.is_dynamo_compiling() or isinstance(
        request.key.shape[2], torch.SymInt
    ):  # they are not known then
        return False if larger else None
    lengths = request.sizes[2:]
    fit = all(length % _TILE == 0 == length % size for length, size in zip(lengths, blocks.BLOCK_SIZE, strict=True))
    return True if fit else False if larger else None


def _reads_tables(score_mod: ScoreMod | None) -> bool:
    """Whether it reads a tensor of two dimensions or more. While torch compiles, that is not known: False."""
    if score_mod is None or torch.compiler.is_compiling():
        return False
    return any(tensor.ndim > 1 for tensor in captured.tensors(score_mod))


def flash(request: Request) -> Attended:
    """Attention by FlashAttention 4, with the sparse tables always in use."""
    request = request._replace(
        query=_unexpanded(request.query), key=_unexpanded(request.key), value=_unexpanded(request.value)
    )
    blocks = as_block_mask(request.query, request.key, request.mask)
    options = {**(request.kernel_options or {}), "BACKEND": "FLASH"}
    mask_mod = for_flash(blocks.mask_mod, request.query.shape[0], request.query.device)
    return _fused(request, blocks if mask_mod is blocks.mask_mod else rebuilt(blocks, mask_mod=mask_mod), options)


def _fused(request: Request, blocks: BlockMask, options: dict[str, Any] | None) -> Attended:
    query, key, value, scale = request.query, request.key, request.value, request.scale
    sizes = query.shape[-1], value.shape[-1]
    wider = [_kernel_size(size, query.dtype) for size in sizes]
    if scale is None and wider[0] > sizes[0]:
        scale = sizes[0] ** -0.5
    query, key = (_widened(tensor, wider[0]) for tensor in (query, key))  # zeros change no score
    value = _widened(value, wider[1])
    out, lse = fused_attention(
        query, key, value, blocks,
        score_mod=request.score_mod, scale=scale, wants_lse=request.wants_lse, kernel_options=options,
    )  # fmt: skip
    if out.requires_grad:  # of a graph, grad_fn cannot be asked
        out = with_first_only(out, "triton" if (options or {}).get("BACKEND") != "FLASH" else "flash")
    return Attended(out[..., : sizes[1]] if wider[1] > sizes[1] else out, lse)


def _unexpanded(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own for every element: flash-attn (4.0.0b4) would take the kernel that it compiles for a
    stride of 0 for all later tensors, too."""
    return tensor.clone(memory_format=torch.contiguous_format) if 0 in tensor.stride() else tensor


def _kernel_size(head_dim: int, dtype: torch.dtype) -> int:
    """The head dim that the kernel gets."""
    if dtype == torch.float32 and 128 < head_dim < _TUNED_HEAD_DIM:
        return _TUNED_HEAD_DIM
    return max(head_dim, _SMALLEST_HEAD_DIM)


def _widened(tensor: Tensor, size: int) -> Tensor:
    return F.pad(tensor, (0, size - tensor.shape[-1])) if size > tensor.shape[-1] else tensor
