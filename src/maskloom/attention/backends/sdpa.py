"""torch's scaled_dot_product_attention, given as little of the mask as it needs.

| the mask is                        | what goes in                                                                        |
|------------------------------------|-------------------------------------------------------------------------------------|
| everything                         | nothing                                                                             |
| exactly `causal`                   | ``is_causal=True``, which skips what lies above the diagonal                        |
| another, `KEPT_BYTES` as a table   | the table, built once and kept with the mask                                        |
| another, larger                    | tables of some rows of queries at a time, made again in the backward, never kept    |
| any, on the CPU, beside a score_mod that only adds | a float table of what that adds, -inf where the mask hides; never kept |
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import SHORT, Backend, Prepared, nondeterministic
from maskloom.attention.backends.compiled import shares_heads
from maskloom.attention.bias import bias_of, refused_bias
from maskloom.attention.chunks import in_chunks
from maskloom.attention.derivatives import with_first_only
from maskloom.attention.dropout.passes import kept_rows
from maskloom.attention.request import Attended, Dropout, Request
from maskloom.attention.tables import Visibility, kept_table, table_sizes_of, visibility
from maskloom.attention.zeros import zeros_both_ways
from maskloom.blocks.dense import rows_of
from maskloom.core import captures
from maskloom.core.cache import cached_with, tensors_of
from maskloom.core.torch_state import inside_vmap
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod

CHUNK = 2**26
"""Scores (B × H × queries × K) in one chunk, at most, where the table is larger than that."""

_DROPPED_CHUNK = 2**22
"""The same where dropout makes the table, of numbers of 8 bytes, at each call."""


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask | MaskMod | None = None, *, scale: float | None = None
) -> Tensor:
    """torch's scaled_dot_product_attention with a mask.

    Args:
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E). H is a multiple of Hkv.
        mask: a BlockMask (meaning what `maskloom.blocks.dense.dense_of` says), a Mask, a mask_mod, or None for
            everything.
        scale: by default ``1 / sqrt(D)``.

    Returns:
        (B, H, Q, E). A query that sees nothing has output 0 and gradients 0.

    Raises:
        ValueError: the mask reads tables for another number of batch rows, heads or positions.
    """
    whole = _for_all_rows(query, key, mask, scale)
    if whole is not None:
        return whole(query, key, value)
    assert mask is not None
    batch, heads = table_sizes_of(query, key, mask)

    def some_rows(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor]:
        count, kv_len, device = query.shape[-2], key.shape[-2], query.device
        rows = rows_of(mask, first, count, batch=batch, heads=heads, kv_len=kv_len, device=device)
        return (_attention(query, key, value, rows, _fully_masked(rows) if _fills(query) else None, scale=scale),)

    return in_chunks(some_rows, query, key, value, most=CHUNK, reads=tensors_of(mask))[0]


def _for_all_rows(
    query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None, scale: float | None
) -> "functools.partial[Tensor] | None":
    """Attention of all queries at once; None where the table would be too large."""
    sight = visibility(mask)
    takes_causal = scale is None or scale > 0  # with others torch's is_causal gives NaN
    if mask is None or sight == "everything" or (sight == "causal" and takes_causal):
        return functools.partial(_attention, scale=scale, is_causal=sight == "causal")
    table = kept_table(query, key, mask)
    if table is None:
        return None
    where = ("fully masked", *query.shape[:3], key.shape[-2], query.device)
    fully_masked = cached_with(mask, where, lambda: _fully_masked(table)) if _fills(query) else None
    return functools.partial(_attention, table=table, fully_masked=fully_masked, scale=scale)


def _fills(query: Tensor) -> bool:
    """Whether hidden queries must be filled: cuDNN gives them the mean of the values."""
    return query.device.type != "cpu"


def _fully_masked(table: Tensor) -> Tensor:
    """The queries that see nothing: bool (B or 1, H or 1, Q, 1)."""
    return ~table.any(-1, keepdim=True)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None = None,
    fully_masked: Tensor | None = None,
    *,
    scale: float | None,
    is_causal: bool = False,
) -> Tensor:
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=table, is_causal=is_causal, scale=scale, enable_gqa=shares_heads(query, key)
    )
    out = with_first_only(out, "sdpa")
    return out if fully_masked is None else zeros_both_ways(out, fully_masked)


def _with_dropout(request: Request, dropout: Dropout) -> Tensor:
    """Attention in which each key stands twice, so that the softmax is over all pairs and the sum over those that are kept."""
    mask, kv_len = request.mask, request.key.shape[-2]
    batch, heads = (1, 1) if mask is None else table_sizes_of(request.query, request.key, mask)

    def some_rows(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor]:
        kept, count, device = kept_rows(dropout, query, kv_len, first), query.shape[-2], query.device
        table = torch.cat([kept, ~kept], -1)
        if mask is not None:
            rows = rows_of(mask, first, count, batch=batch, heads=heads, kv_len=kv_len, device=device)
            table = table & torch.cat([rows, rows], -1)
        fully_masked = _fully_masked(table) if _fills(query) else None
        return (_attention(query, key, value, table, fully_masked, scale=request.scale),)

    key = torch.cat([request.key, request.key], 2)
    value = torch.cat([request.value, torch.zeros_like(request.value)], 2)
    reads = [] if torch.compiler.is_compiling() else [*tensors_of(mask), *captures.tensors(dropout.score_mod)]
    return in_chunks(some_rows, request.query, key, value, most=_DROPPED_CHUNK, reads=reads)[0] * dropout.factor


def _prepared_with_bias(request: Request) -> Prepared:
    bias, scale = bias_of(request), request.scale

    def run(query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None) -> Attended:
        assert score_mod is not None
        return Attended(_attention(query, key, value, bias.made(score_mod, query), scale=scale), None)

    return Prepared(run, 0 if bias.table is None else bias.table.nbytes)


_SKIPPED: dict[Visibility, str] = {
    "everything": "nothing, since the mask hides nothing",
    "causal": "what lies above the diagonal",
    "some": "nothing, since the mask goes in as a table",
}


class Sdpa(Backend):
    """torch's own attention, given as little of the mask as it needs."""

    name = "sdpa"
    what = "torch's scaled_dot_product_attention: is_causal, or the mask as a table, with what a score mod adds"
    where = "the CPU; GPUs where it needs no table"
    why = "FlexAttention has no backward on the CPU; torch's own attention has"
    takes_tables = True
    drops = "one pass over each key twice: with its value where the pair is kept, with 0 where it is dropped"

    def refuse(self, request: Request) -> str | None:
        if request.score_mod is not None and request.device.type != "cpu":
            return "it has no score_mod"
        if request.wants_lse:
            return "it gives no log-sum-exp, and so no sinks"
        if request.score_mod is not None:
            return refused_bias(request) if request.dropout is None else "beside dropout it has no score_mod"
        if request.device.type == "cpu":
            return None
        if inside_vmap():
            return "torch.vmap cannot batch its kernels on a GPU (torch 2.11: an internal assertion); reference can be batched"
        return nondeterministic(request)

    def refuse_in_graph(self, request: Request) -> str | None:
        return None if request.score_mod is None else "while torch traces it is not known what score_mod adds"

    def run(self, request: Request) -> Attended:
        if request.dropout is not None:
            return Attended(_with_dropout(request, request.dropout), None)
        if request.score_mod is not None:
            return _prepared_with_bias(request).run(request.query, request.key, request.value, request.score_mod)
        return Attended(sdpa(request.query, request.key, request.value, request.mask, scale=request.scale), None)

    def prepare(self, request: Request) -> Prepared | None:
        if request.score_mod is not None:
            return _prepared_with_bias(request)
        whole = _for_all_rows(request.query, request.key, request.mask, request.scale)
        if whole is None:
            return None
        table = whole.keywords.get("table")
        return Prepared(
            lambda query, key, value, score_mod: Attended(whole(query, key, value), None),
            0 if table is None else table.nbytes,
        )

    def with_table(self, query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float | None) -> Attended:
        fully_masked = _fully_masked(table) if _fills(query) else None
        return Attended(_attention(query, key, value, table, fully_masked, scale=scale), None)

    def reason(self, request: Request) -> str:
        if request.score_mod is not None:
            return "score_mod only adds to the scores: with the mask it is a float table for torch's own attention"
        return self.why if request.device.type == "cpu" else "the mask needs no table: torch's own attention is fastest"

    def passed_over(self) -> str:
        return (
            f'"auto" takes it on a GPU for half types and more than {SHORT} queries, where the mask is `causal` or '
            "`everything`, without dropout"
        )

    def skips(self, request: Request) -> str:
        if request.dropout is not None:
            return "nothing, since the pairs that are kept go in as a table"
        if request.score_mod is not None:
            return "nothing, since mask and score_mod go in as a table"
        return _SKIPPED[visibility(request.mask)]
