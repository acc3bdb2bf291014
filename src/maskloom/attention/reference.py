"""The specification of attention: dense, slow, in any floating dtype, and differentiable everywhere.

Every backend is tested against this in float64.
"""

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.masks.dense import MaskMod, dense
from maskloom.scores.base import ScoreMod


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention written out.

    ``out = softmax(score_mod(scale * query @ key.T) where mask, else -inf) @ value``

    Args:
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E). H is a multiple of Hkv; query head h uses
            key-value head ``h // (H // Hkv)``.
        mask: a Mask, a mask_mod, or a bool table that broadcasts to (B, H, Q, K), True = may attend. None: all may.
        score_mod: changes scaled scores before the mask is applied; its result is brought to their dtype.
        scale: by default ``1 / sqrt(D)``.

    Raises:
        TypeError: the mask is a BlockMask (`maskloom.attend` takes those). ValueError: heads that do not divide.

    Returns:
        The output (B, H, Q, E) and the log-sum-exp (natural logarithm) of each query's scores (B, H, Q), in the dtype
        of query. A query that sees nothing has output 0, log-sum-exp -inf, and gradients 0.
    """
    scores = attention_scores(query, key, mask, score_mod=score_mod, scale=scale)
    weights, lse = probabilities(scores)
    return weights @ _for_each_query_head(value, query), lse


def attention_scores(
    query: Tensor,
    key: Tensor,
    mask: MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
) -> Tensor:
    """Scores before the softmax: (B, H, Q, K), -inf where the mask hides. Arguments as for `reference`."""
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[-2]
    if isinstance(mask, BlockMask):
        raise TypeError(
            "the reference takes a mask or a bool table, not a BlockMask: dense_of(block_mask, B, H) is its table"
        )
    if heads % key.shape[1]:
        raise ValueError(f"the query heads are a multiple of the key heads; got {heads} and {key.shape[1]}")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ _for_each_query_head(key, query).transpose(-2, -1) * scale
    if score_mod is not None:
        scores = _modified(scores, score_mod)
    if mask is None:
        return scores
    if not isinstance(mask, Tensor):
        mask = dense(mask, q_len, kv_len, batch=batch, heads=heads, device=query.device)
    return scores.masked_fill(~mask, -math.inf)


def probabilities(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over keys, 0 in rows that are all -inf, and the rows' log-sum-exp. scores: (..., Q, K)."""
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(hidden, 0.0)  # a softmax over -inf alone has NaN gradients
    weights = scores.softmax(-1).masked_fill(hidden, 0.0)
    lse = scores.logsumexp(-1).masked_fill(hidden.squeeze(-1), -math.inf)
    return weights, lse


def _for_each_query_head(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _modified(scores: Tensor, score_mod: ScoreMod) -> Tensor:
    # imported here: it loads torch's compiler, which `import maskloom` shall not
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    indices = [torch.arange(size, device=scores.device) for size in scores.shape]
    lifted = score_mod
    for index in (3, 2, 1, 0):
        dims = [0] + [0 if index == at else None for at in range(4)]
        lifted = torch.vmap(lifted, in_dims=tuple(dims))
    with TransformGetItemToIndex():  # as torch's create_mask: a tensor read at a scalar tensor's place
        return lifted(scores, *indices).to(scores.dtype)  # a float32 table makes float32 scores of bfloat16 ones
