"""Attention of an empty batch, B = 0: nothing to compute, and gradients of 0 for all that may learn."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.request import Attended, Request
from maskloom.attention.written_out import attention_in_chunks
from maskloom.core import captures
from maskloom.masks.dense import table_sizes
from maskloom.scores.base import ScoreMod


def of_no_rows(request: Request) -> Attended:
    """An output without rows, which a backward passes through to query, key, value and the tensors of score_mod.

    A process of several may get no row of a batch, and must all the same have a gradient for each parameter.
    """
    _check_rows(request)
    out, lse = attention_in_chunks(request.query, request.key, request.value, None, score_mod=None, scale=request.scale)
    for tensor in _learned(request.score_mod):
        out = out + 0 * tensor.sum()
    return Attended(out, lse)


def _check_rows(request: Request) -> None:
    """Raise a ValueError if the mask reads a table that has rows."""
    if (
        request.mask is not None
        and not isinstance(request.mask, BlockMask)
        and not torch.compiler.is_dynamo_compiling()
    ):
        batch, heads, q_len, kv_len = request.sizes
        table_sizes(request.mask, q_len, kv_len, batch=batch, heads=heads, device=request.device)


def _learned(score_mod: ScoreMod | None) -> list[Tensor]:
    if score_mod is None or torch.compiler.is_dynamo_compiling():
        return []
    return [tensor for tensor in captures.tensors(score_mod) if tensor.requires_grad]
