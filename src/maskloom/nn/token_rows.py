"""Rows of real tokens taken out of a padded batch, and put back: each is the other's gradient.

Behind the T rows of tokens comes one that stands for padding, and others like it that nobody reads. What a layer makes of it is what
it makes of padding. No row is added to another by atomics, as torch's own gradient of index_select does: each token has its own place.
"""

from typing import Any

import torch
from torch import Tensor

from maskloom.batches.rows import scattered


def taken(batch: Tensor, places: Tensor, sources: Tensor, tokens: int) -> Tensor:
    """The tokens of a batch, and rows of zeros, (R, ...).

    Args:
        batch: (B · L, ...).
        places: int64 (R,), the place of each token, and R - T times, at least once, any place.
        sources: int64 (B · L,), the token at each place; T at padding.
        tokens: T.
    """
    return _Taken.apply(batch, places, sources, tokens, False)


def put_back(rows: Tensor, places: Tensor, sources: Tensor, tokens: int, *, fills: bool) -> Tensor:
    """The batch (B · L, ...) of rows (R, ...): tokens at their places, elsewhere row T.

    Args:
        fills: whether row T has a gradient. Without, it is that of zeros, or nobody sees it.
    """
    return _PutBack.apply(rows, places, sources, tokens, fills)


class _Taken(torch.autograd.Function):
    """`taken`; with ``sums`` row T is the sum of all others of the batch."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, places: Tensor, sources: Tensor, tokens: int, sums: bool) -> Tensor:
        ctx.save_for_backward(places, sources)
        ctx.tokens, ctx.sums = tokens, sums
        rows = batch.index_select(0, places)
        rows[tokens:] = 0
        if sums:
            rows[tokens] = _sum_elsewhere(batch, sources, tokens)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.sums:
            back = _PutBack.apply(gradient, *ctx.saved_tensors, ctx.tokens, True)
        else:
            back = _Scattered.apply(gradient, *ctx.saved_tensors, ctx.tokens)
        return back, None, None, None, None


class _PutBack(torch.autograd.Function):
    """`put_back`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, sources: Tensor, tokens: int, fills: bool) -> Tensor:
        ctx.save_for_backward(places, sources)
        ctx.tokens, ctx.fills = tokens, fills
        return rows.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _Taken.apply(gradient, *ctx.saved_tensors, ctx.tokens, ctx.fills), None, None, None, None


class _Scattered(torch.autograd.Function):
    """The batch of rows (R, ...): tokens at their places, elsewhere zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, sources: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(places, sources)
        ctx.tokens = tokens
        if torch.compiler.is_dynamo_compiling():  # which makes one kernel of this, and of what reads it
            padding = (sources == tokens).view(-1, *[1] * (rows.ndim - 1))
            return rows.index_select(0, sources).masked_fill(padding, 0)
        return scattered(rows[:tokens], places[:tokens], sources.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Taken.apply(gradient, *ctx.saved_tensors, ctx.tokens, False), None, None, None


def _sum_elsewhere(batch: Tensor, sources: Tensor, tokens: int) -> Tensor:
    """The sum of the rows that are no tokens."""
    elsewhere = (sources == tokens).to(batch.dtype)
    return (elsewhere @ batch.flatten(1)).view(batch.shape[1:])
