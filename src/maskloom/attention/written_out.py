"""Attention written out: scores, their softmax, and the sum of the values, some rows of queries at a time."""

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.chunks import in_chunks
from maskloom.attention.dropout.passes import kept_rows
from maskloom.attention.request import Dropout
from maskloom.blocks.dense import rows_of
from maskloom.core import captures
from maskloom.core.cache import tensors_of
from maskloom.core.torch_state import autocast_to, without_autocast
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod
from maskloom.scores.lifted import modified

CHUNK = 2**22
"""Scores (B × H × queries × K) that are there at one time, at most, if one query has no more."""


def attention_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    dtype: torch.dtype | None = None,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference` of arguments that are checked.

    Args:
        dtype: to compute in; by default that of query, float32 at least.
    """
    autocast = autocast_to(query.device)
    if autocast is not None and query.dtype != torch.float64:  # as torch's own attention does
        query, key, value = query.to(autocast), key.to(autocast), value.to(autocast)
    wide = torch.promote_types(query.dtype, torch.float32) if dtype is None else dtype

    def some_rows(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
        scores = attention_scores(query.to(wide), key.to(wide), mask, score_mod=score_mod, scale=scale, first=first)
        weights, lse = probabilities(scores)
        if dropout is not None:
            dropped = ~kept_rows(dropout, query, key.shape[-2], first)
            weights = (weights * dropout.factor).masked_fill(dropped, 0.0)
        with without_autocast(query.device):
            out = weights @ _for_each_query_head(value.to(wide), query)
        return out.to(query.dtype), lse

    reads = [] if torch.compiler.is_compiling() else [*tensors_of(mask), *captures.tensors(score_mod)]
    out, lse = in_chunks(some_rows, query, key, value, most=CHUNK, reads=reads)
    return out, lse


def attention_scores(
    query: Tensor,
    key: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    first: int = 0,
) -> Tensor:
    """Scores before the softmax: (B, H, Q, K), -inf where the mask hides. Arguments as for `reference`.

    Args:
        first: the position of the first query: query may be some of the rows that mask and score_mod speak of.
    """
    batch, heads, q_len, _ = query.shape
    if heads % key.shape[1]:
        raise ValueError(f"the query heads are a multiple of the key heads; got {heads} and {key.shape[1]}")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with without_autocast(query.device):  # which would round the scores; score_mod's own operations are its business
        # scaled before they are summed up, which float16 could not hold
        scores = (query * scale) @ _for_each_query_head(key, query).transpose(-2, -1)
    hides = None
    if mask is not None:
        hides = ~rows_of(mask, first, q_len, batch=batch, heads=heads, kv_len=key.shape[-2], device=query.device)
    if score_mod is not None and batch:  # without a row there is no table to read, and nothing to change
        if hides is not None:  # the gradient stops here too: 0 times a derivative of score_mod, which may be infinite
            scores = scores.masked_fill(hides, 1.0)  # and fewer have a pole at 1 than at 0
        scores = modified(scores, score_mod, first)
    return scores if hides is None else scores.masked_fill(hides, -math.inf)


def probabilities(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over keys, 0 in rows that are all -inf, and the rows' log-sum-exp. scores: (..., Q, K).

    The log-sum-exp of half types is float32: rounded to theirs, it says less about the softmax than its weights do.
    """
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(hidden, 0.0)  # a softmax over -inf alone has NaN gradients
    weights = scores.softmax(-1).masked_fill(hidden, 0.0)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    lse = wide.logsumexp(-1).masked_fill(hidden.squeeze(-1), -math.inf)
    return weights, lse


def _for_each_query_head(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)
