"""Rows of real tokens taken out of a padded batch, and put back: each is the other's gradient.

Behind the T rows of tokens comes one more that stands for padding. What a layer makes of it is what it makes of padding. No row
is added to another by atomics, as torch's own gradient of index_select does: each token has its own place.
"""

from typing import Any

import torch
from torch import Tensor


def taken(batch: Tensor, index: Tensor) -> Tensor:
    """The tokens of a batch, and one row of zeros, (T + 1, ...).

    Args:
        batch: (B · L, ...).
        index: int64 (T + 1,), the place of each token; the last is any place.
    """
    return _Taken.apply(batch, index, False)


def put_back(rows: Tensor, index: Tensor, size: int, *, fills: bool) -> Tensor:
    """The batch (B · L, ...) of rows (T + 1, ...): tokens at their places, elsewhere the last row, or zeros unless it ``fills``."""
    return _PutBack.apply(rows, index, size, fills)


class _Taken(torch.autograd.Function):
    """`taken`; with ``sums`` the last row is the sum of all others of the batch."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, index: Tensor, sums: bool) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size, ctx.sums = batch.shape[0], sums
        return _rows(batch, index, sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        back = _PutBack.apply if torch.is_grad_enabled() else _batch
        return back(gradient, index, ctx.size, ctx.sums), None, None


class _PutBack(torch.autograd.Function):
    """`put_back`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int, fills: bool) -> Tensor:
        ctx.save_for_backward(index)
        ctx.fills = fills
        return _batch(rows, index, size, fills)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        back = _Taken.apply if torch.is_grad_enabled() else _rows
        return back(gradient, index, ctx.fills), None, None, None


def _rows(batch: Tensor, index: Tensor, sums: bool) -> Tensor:
    rows = batch.index_select(0, index)
    rows[-1] = _sum_elsewhere(batch, index) if sums else 0
    return rows


def _batch(rows: Tensor, index: Tensor, size: int, fills: bool) -> Tensor:
    batch = rows[-1].expand(size, *rows.shape[1:]).clone() if fills else rows.new_zeros(size, *rows.shape[1:])
    if torch.compiler.is_dynamo_compiling():  # a graph of torch 2.11 loses the gradient of what is written in place
        return batch.index_copy(0, index[:-1], rows[:-1])
    return batch.index_copy_(0, index[:-1], rows[:-1])


def _sum_elsewhere(batch: Tensor, index: Tensor) -> Tensor:
    """The sum of the rows that are no tokens."""
    elsewhere = batch.new_ones(batch.shape[0]).index_fill_(0, index[:-1], 0)
    return (elsewhere @ batch.flatten(1)).view(batch.shape[1:])
