"""What FlexAttention's two kernels share: head dims that they do not have are widened with zeros."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import Prepared
from maskloom.attention.backends.compiled import PreparedAttention, fused_attention, prepared_attention
from maskloom.attention.derivatives import with_first_only
from maskloom.attention.request import Attended, Request
from maskloom.core.block_masks import rebuilt
from maskloom.scores.base import ScoreMod

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
        if lse is not None and torch.compiler.is_dynamo_compiling():
            out, lse = _BothHaveGradients.apply(out, lse)
        out = with_first_only(out, _name(options))
    size = request.value.shape[-1]
    return Attended(out[..., :size] if out.shape[-1] > size else out, lse)


class _BothHaveGradients(torch.autograd.Function):
    """Identity; a missing gradient becomes zeros: Inductor (torch 2.11) has no backward for a log-sum-exp without its output."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        return out.view_as(out), lse.view_as(lse)

    @staticmethod
    def backward(ctx: Any, of_out: Tensor, of_lse: Tensor) -> tuple[Tensor, Tensor]:
        return of_out, of_lse


class _Run(NamedTuple):
    """What a plan runs: the compiled function, with what goes in beside query, key and value.

    Attributes:
        sizes: the head dims of query, key and value that the kernel gets; None where it gets them as they are.
        change: made of each of the three first; None for nothing.
    """

    attention: PreparedAttention
    sizes: tuple[int, int, int] | None
    value_dim: int
    name: str
    change: Callable[[Tensor], Tensor] | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None) -> Attended:
        if self.change is not None:
            query, key, value = map(self.change, (query, key, value))
        if self.sizes is not None:
            query, key, value = map(_widened, (query, key, value), self.sizes)
        out, lse = self.attention(query, key, value, score_mod)
        if out.requires_grad:
            out = with_first_only(out, self.name)
        return Attended(out if self.sizes is None else out[..., : self.value_dim], lse)

    def prepared(self) -> Prepared:
        return Prepared(self.__call__, blocks=self.attention.blocks, with_blocks=self._with_blocks)

    def _with_blocks(self, blocks: BlockMask) -> Prepared:
        attention = self.attention.with_blocks(blocks)
        return _Run(attention, self.sizes, self.value_dim, self.name, self.change).prepared()


def prepared(
    request: Request,
    blocks: BlockMask,
    options: dict[str, Any] | None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Prepared:
    """`fused`, for all requests like this one; blocks may be kept with their mask. ``change``: of each tensor, before."""
    sizes, name = _kernel_sizes(request), _name(options)
    as_is = sizes == tuple(tensor.shape[-1] for tensor in _qkv(request))
    query, key, value = (_widened(tensor, size) for tensor, size in zip(_qkv(request), sizes, strict=True))
    how: dict[str, Any] = {"score_mod": request.score_mod, "scale": _scale(request), "wants_lse": request.wants_lse}
    attention = prepared_attention(query, key, value, blocks, **how, options=options or {}).with_blocks(rebuilt(blocks))
    return _Run(attention, None if as_is else sizes, request.value.shape[-1], name, change).prepared()


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
