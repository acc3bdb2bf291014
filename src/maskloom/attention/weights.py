"""The probabilities of attention themselves, some rows of queries at a time: what kernels never write down."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.checks import check_options, checked_query_and_key, checked_scale
from maskloom.attention.chunks import in_chunks
from maskloom.attention.merge import rows_times, shares_of_both
from maskloom.attention.reference import checked_mask_and_score_mod
from maskloom.attention.written_out import CHUNK, attention_scores, probabilities
from maskloom.core import captures
from maskloom.core.cache import tensors_of
from maskloom.core.checks import is_number
from maskloom.core.torch_state import without_autocast
from maskloom.core.words import brief
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    rows: slice | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """How much of each key's value each query takes: ``softmax(score_mod(scale * query @ key.T) where mask, else -inf)``.

    `attend` never makes this table; here it is made whole, for pictures and for study. Of long sequences take some rows
    of queries::

        weights = loom.attention_weights(query, key, loom.causal, rows=slice(0, 128))    # (B, H, 128, K)
        torch.testing.assert_close(weights @ value, loom.attend(query, key, value, loom.causal)[:, :, :128])

    Differentiable. Half types are computed in float32, and rounded at the end.

    Args:
        query: (B, H, Q, D), floating point. key: (B, Hkv, K, D); H is a multiple of Hkv.
        mask, score_mod, scale: as for `attend`, for all queries, whatever rows are asked for.
        rows: the queries that are wanted, ``slice(start, stop)``; by default all. The others are not computed.
        sinks: (H,), learned sink logits: each row then sums up to less than 1.

    Returns:
        (B, H, Q or rows, K) in the dtype of query (under autocast in its dtype). Hidden pairs are exactly 0, and so is
        the row of a query that sees nothing; other rows sum up to 1.

    Raises:
        TypeError, ValueError: as `attend`; rows that are no slice of these queries, or empty.
    """
    query, key = checked_query_and_key(query, key)
    check_options(query, None, sinks, None)
    start, stop = _bounds(rows, query.shape[2])
    mask, score_mod = checked_mask_and_score_mod(mask, score_mod, query, key)
    scale = checked_scale(scale)

    def some_rows(query: Tensor, key: Tensor, _: Tensor, first: int) -> tuple[Tensor]:
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = attention_scores(
            query.to(wide), key.to(wide), mask, score_mod=score_mod, scale=scale, first=start + first
        )
        with without_autocast(query.device):
            weights, lse = probabilities(scores)
            if sinks is not None:  # the share of the keys beside the sink's
                share = shares_of_both(lse, sinks.to(lse.dtype)[:, None].expand(lse.shape))[0]
                weights = rows_times(weights, share)
        return (weights.to(query.dtype),)

    reads = [] if torch.compiler.is_compiling() else [*tensors_of(mask), *captures.tensors(score_mod)]
    return in_chunks(some_rows, query[:, :, start:stop], key, key, most=CHUNK, reads=reads)[0]


def _bounds(rows: slice | None, q_len: int) -> tuple[int, int]:
    """The first row and the one after the last."""
    if rows is None:
        return 0, q_len
    if not isinstance(rows, slice) or rows.step not in (None, 1):
        raise TypeError(f"rows is slice(start, stop) of the queries; got {brief(rows)}")
    if any(bound is not None and not is_number(bound) for bound in (rows.start, rows.stop)):
        raise TypeError(f"rows is slice(start, stop) of the queries, ints; got {brief(rows)}")
    start, stop, _ = rows.indices(q_len)
    if not start < stop:
        raise ValueError(f"rows is a slice of {q_len} queries, one at least; got {rows}")
    return start, stop
