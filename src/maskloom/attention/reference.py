"""The specification of attention: dense, slow, of any floating dtype, and differentiable everywhere.

Every backend is tested against this in float64. What it says is in `attention_scores` and `probabilities`, for all queries
at once; `reference` runs that on some rows of queries at a time, so that it trains at any length.
"""

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.checks import (
    check_mask_fits,
    check_options,
    check_score_mod_fits,
    checked_scale,
    checked_tensors,
    placed_beside,
)
from maskloom.attention.merge import with_sinks
from maskloom.attention.written_out import attention_in_chunks
from maskloom.masks.in_place import Sizes, as_mask_of
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod


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
        mask: a BlockMask (meaning what `maskloom.blocks.dense.dense_of` says), a Mask, a mask_mod, or a table as `attend` takes
            it, bool (Q, K), (B, Q, K) or (B, H, Q, K), True = may attend. None: all may.
        score_mod: changes scaled scores before the mask is applied; its result is brought to their dtype. Gradients reach
            the tensors that it holds.
        scale: by default ``1 / sqrt(D)``.
        sinks: (H,), floating point: a score for each head that takes part in the softmax and whose weight goes nowhere
            (gpt-oss). See `maskloom.attention.merge.with_sinks`.

    Raises:
        TypeError, ValueError: as `attend`, which checks its arguments in the same way, but that a mask may declare rows longer than
            these.

    Returns:
        The output (B, H, Q, E) in the dtype of query, and the log-sum-exp (natural logarithm) of each query's scores
        (B, H, Q), in float32 where that is a half type. A query that sees nothing has output 0, log-sum-exp -inf (or the
        sink), and gradients 0.
    """
    query, key, value = checked_tensors(query, key, value)
    check_options(query, None, sinks, None)
    mask, score_mod = checked_mask_and_score_mod(mask, score_mod, query, key)
    scale = checked_scale(scale)
    out, lse = attention_in_chunks(query, key, value, mask, score_mod=score_mod, scale=scale)
    return (out, lse) if sinks is None else with_sinks(out, lse, sinks)


def checked_mask_and_score_mod(
    mask: BlockMask | MaskMod | Tensor | None, score_mod: ScoreMod | None, query: Tensor, key: Tensor
) -> tuple[BlockMask | MaskMod | None, ScoreMod | None]:
    """The mask, a table as one, and the score mod as it is beside it; a TypeError or ValueError if they do not fit these tensors."""
    (batch, heads, q_len, _), kv_len = query.shape, key.shape[2]
    if isinstance(mask, Tensor):
        mask = as_mask_of(mask, Sizes(batch, heads, q_len, kv_len))
    if score_mod is not None:
        score_mod = placed_beside(mask, score_mod)
    check_mask_fits(mask, batch, heads, q_len, kv_len, query.device)
    check_score_mod_fits(score_mod, heads, query.device)
    return mask, score_mod
