"""The specification of attention: dense, slow, of any floating dtype, and differentiable everywhere.

Every backend is tested against this in float64. What it says is in `attention_scores` and `probabilities`, for all queries
at once; `reference` runs that on some rows of queries at a time, so that it trains at any length.
"""

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.chunks import in_chunks, rows_of
from maskloom.attention.given import as_mask_of
from maskloom.attention.kept import tensors_of
from maskloom.attention.merge import check_sinks, with_sinks
from maskloom.masks import captured
from maskloom.masks.dense import MaskMod
from maskloom.masks.in_place import Sizes
from maskloom.masks.modes import autocast_to, without_autocast
from maskloom.scores.base import ScoreMod
from maskloom.scores.lifted import modified

CHUNK = 2**22
"""Scores (B × H × queries × K) that are there at one time, at most, if one query has no more."""


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention written out.

    ``out = softmax(score_mod(scale * query @ key.T) where mask, else -inf) @ value``

    Half types are computed in float32, and so are the scores that score_mod gets, as kernels do: float16 holds no score
    above 65504.

    Memory: beside tensors of the size of inputs and outputs (in float32 at least; key and value once for each query head),
    forward and backward hold at one time at most 10 tables of `CHUNK` scores in float32 (in float64 if query is), 160 MiB, or of B × H × K
    scores where that is more, and what mask and score_mod make of so many. Larger inputs are cut into rows of queries,
    whose scores are computed again in the backward. (More is kept while torch compiles, under torch.func, and where
    `torch.autograd.grad` asks for the gradients of some inputs only.)

    Args:
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E). H is a multiple of Hkv; query head h uses
            key-value head ``h // (H // Hkv)``.
        mask: a BlockMask (meaning what `maskloom.blocks.tables.dense_of` says), a Mask, a mask_mod, or a table as `attend` takes
            it, bool (Q, K), (B, Q, K) or (B, H, Q, K), True = may attend. None: all may.
        score_mod: changes scaled scores before the mask is applied; its result is brought to their dtype. Gradients reach
            the tensors that it holds.
        scale: by default ``1 / sqrt(D)``.
        sinks: (H,), floating point: a score for each head that takes part in the softmax and whose weight goes nowhere
            (gpt-oss). See `maskloom.attention.merge.with_sinks`.

    Raises:
        TypeError: a table that is neither bool nor additive, sinks that are not floating point, a score_mod that gives no score.
        ValueError: heads that do not divide, a mask for other sizes, not one sink for each head.

    Returns:
        The output (B, H, Q, E) in the dtype of query, and the log-sum-exp (natural logarithm) of each query's scores
        (B, H, Q), in float32 where that is a half type. A query that sees nothing has output 0, log-sum-exp -inf (or the
        sink), and gradients 0.
    """
    mask = _checked_mask(mask, query, key)
    if sinks is not None:
        check_sinks(sinks, query.shape[1])
    out, lse = attention_in_chunks(query, key, value, mask, score_mod=score_mod, scale=scale)
    return (out, lse) if sinks is None else with_sinks(out, lse, sinks)


def attention_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    dtype: torch.dtype | None = None,
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
        with without_autocast(query.device):
            out = weights @ _for_each_query_head(value.to(wide), query)
        return out.to(query.dtype), lse

    reads = [] if torch.compiler.is_compiling() else [*tensors_of(mask), *captured.tensors(score_mod)]
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
    if score_mod is not None:
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


def _checked_mask(mask: BlockMask | MaskMod | Tensor | None, query: Tensor, key: Tensor) -> BlockMask | MaskMod | None:
    """The mask, a table as one; the sizes of a table and of a BlockMask checked."""
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[-2]
    if isinstance(mask, BlockMask) and tuple(mask.seq_lengths) != (q_len, kv_len):
        raise ValueError(
            f"the block mask is for lengths (Q, K) = {tuple(mask.seq_lengths)}; the attention has {(q_len, kv_len)}"
        )
    return as_mask_of(mask, Sizes(batch, heads, q_len, kv_len)) if isinstance(mask, Tensor) else mask


def _for_each_query_head(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)
