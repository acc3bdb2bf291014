"""Rows of real tokens taken out of a padded batch, and put back: each is the other's gradient.

Behind the T rows of tokens comes one more that stands for padding. What a layer makes of it is what it makes of padding. No row
is added to another by atomics, as torch's own gradient of index_select does: each token has its own place.
"""

from typing import Any

import torch
from torch import Tensor

from maskloom.batches.rows import scattered


def taken(batch: Tensor, places: Tensor, sources: Tensor) -> Tensor:
    """The tokens of a batch, and one row of zeros, (T + 1, ...).

    Args:
        batch: (B · L, ...).
        places: int64 (T + 1,), the place of each token; the last is any place.
        sources: int64 (B · L,), the token at each place; T at padding.
    """
    return _Taken.apply(batch, places, sources, False)


def put_back(rows: Tensor, places: Tensor, sources: Tensor, *, fills: bool) -> Tensor:
    """The batch (B · L, ...) of rows (T + 1, ...): tokens at their places, elsewhere the last row.

    Args:
        fills: whether the last row has a gradient. Without, it is that of zeros, or nobody sees it.
    """
    return _PutBack.apply(rows, places, sources, fills)


class _Taken(torch.autograd.Function):
    """`taken`; with ``sums`` the last row is the sum of all others of the batch."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, places: Tensor, sources: Tensor, sums: bool) -> Tensor:
        ctx.save_for_backward(places, sources)
        ctx.sums = sums
        return _rows(batch, places, sources, sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.sums:
            back = _PutBack.apply(gradient, *ctx.saved_tensors, True)
        else:
            back = _Scattered.apply(gradient, *ctx.saved_tensors)
        return back, None, None, None


class _PutBack(torch.autograd.Function):
    """`put_back`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, sources: Tensor, fills: bool) -> Tensor:
        ctx.save_for_backward(places, sources)
        ctx.fills = fills
        return rows.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Taken.apply(gradient, *ctx.saved_tensors, ctx.fills), None, None, None


class _Scattered(torch.autograd.Function):
    """The batch of rows (T + 1, ...): tokens at their places, elsewhere zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, sources: Tensor) -> Tensor:
        ctx.save_for_backward(places, sources)
        if torch.compiler.is_dynamo_compiling():  # which makes one kernel of this, and of what reads it
            padding = (sources == len(rows) - 1).view(-1, *[1] * (rows.ndim - 1))
            return rows.index_select(0, sources).masked_fill(padding, 0)
        return scattered(rows[:-1], places[:-1], sources.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Taken.apply(gradient, *ctx.saved_tensors, False), None, None


def _rows(batch: Tensor, places: Tensor, sources: Tensor, sums: bool) -> Tensor:
    rows = batch.index_select(0, places)
    rows[-1] = _sum_elsewhere(batch, sources, len(rows) - 1) if sums else 0
    return rows


def _sum_elsewhere(batch: Tensor, sources: Tensor, tokens: int) -> Tensor:
    """The sum of the rows that are no tokens."""
    elsewhere = (sources == tokens).to(batch.dtype)
    return (elsewhere @ batch.flatten(1)).view(batch.shape[1:])
