"""What FlexAttention's two kernels share: head dims that they do not have are widened with zeros."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import Prepared
from maskloom.attention.backends.compiled import fused_attention, prepared_attention
from maskloom.attention.derivatives import with_first_only
from maskloom.attention.request import Attended, Request
from maskloom.core.block_masks import rebuilt

_SMALLEST_HEAD_DIM = 16
_TUNED_HEAD_DIM = 256  # for float32 past 128 the only one whose default blocks fit: torch 2.11, H100


def fused(request: Request, blocks: BlockMask, options: dict[str, Any] | None) -> Attended:
    """Attention by FlexAttention, compiled, over these blocks."""
    query, key, value = (
        _widened(tensor, size) for tensor, size in zip(_qkv(request), _kernel_sizes(request), strict=True)
    )
    out, lse = fused_attention(
        query, key, value, blocks,
        score_mod=request.score_mod, scale=_scale(request), wants_lse=request.wants_lse, kernel_options=options,
    )  # fmt: skip
    if out.requires_grad:  # of a graph, grad_fn cannot be asked
        out = with_first_only(out, _name(options))
    size = request.value.shape[-1]
    return Attended(out[..., :size] if out.shape[-1] > size else out, lse)


def prepared(request: Request, blocks: BlockMask, options: dict[str, Any] | None) -> Prepared:
    """`fused`, for all requests like this one; blocks may be kept with their mask."""
    sizes, value_dim, name = _kernel_sizes(request), request.value.shape[-1], _name(options)
    as_is = sizes == tuple(tensor.shape[-1] for tensor in _qkv(request))
    query, key, value = (_widened(tensor, size) for tensor, size in zip(_qkv(request), sizes, strict=True))
    how: dict[str, Any] = {"score_mod": request.score_mod, "scale": _scale(request), "wants_lse": request.wants_lse}
    attention = prepared_attention(query, key, value, rebuilt(blocks), **how, options=options or {})

    def run(query: Tensor, key: Tensor, value: Tensor) -> Attended:
        if not as_is:
            query, key, value = map(_widened, (query, key, value), sizes)
        out, lse = attention(query, key, value)
        if out.requires_grad:
            out = with_first_only(out, name)
        return Attended(out if as_is else out[..., :value_dim], lse)

    return Prepared(run)


def _qkv(request: Request) -> tuple[Tensor, Tensor, Tensor]:
    return request.query, request.key, request.value


def _name(options: dict[str, Any] | None) -> str:
    return "flash" if (options or {}).get("BACKEND") == "FLASH" else "triton"


def _scale(request: Request) -> float | None:
    """The scale that the kernel gets: its default would follow from the widened head dim."""
    size = request.query.shape[-1]
    return size**-0.5 if request.scale is None and _kernel_sizes(request)[0] > size else request.scale


def _kernel_sizes(request: Request) -> tuple[int, int, int]:
    """The head dims of query, key and value that the kernel gets; zeros change no score."""
    dtype = request.query.dtype
    wide, value = _kernel_size(request.query.shape[-1], dtype), _kernel_size(request.value.shape[-1], dtype)
    return wide, wide, value


def _kernel_size(head_dim: int, dtype: torch.dtype) -> int:
    """The head dim that the kernel gets."""
    if dtype == torch.float32 and 128 < head_dim < _TUNED_HEAD_DIM:
        return _TUNED_HEAD_DIM
    return max(head_dim, _SMALLEST_HEAD_DIM)


def _widened(tensor: Tensor, size: int) -> Tensor:
    return F.pad(tensor, (0, size - tensor.shape[-1])) if size > tensor.shape[-1] else tensor
