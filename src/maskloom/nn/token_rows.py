"""Rows of real tokens taken out of a padded batch, and put back: each is the other's gradient.

Beside the rows of T tokens there is one that stands for padding, and perhaps others like it that nobody reads. What a layer makes of it is
what it makes of padding. No row is added to another by atomics, as torch's own gradient of index_select does: each token has its own place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.batches.rows import scattered


class Layout(NamedTuple):
    """Where rows (R, ...) stand among the positions of a batch (B · L, ...).

    Attributes:
        places: int64 (R,), the position of each token, and any other of the other rows.
        sources: int64 (B · L,), the row of each position.
        targets: as ``places``, with B · L for rows that are no tokens. None: those are the rows from ``padding`` on.
        others: int64 (R - T,), the rows that are no tokens; None likewise.
        padding: the row that stands for padding.
    """

    places: Tensor
    sources: Tensor
    targets: Tensor | None
    others: Tensor | None
    padding: int


def taken(batch: Tensor, layout: Layout) -> Tensor:
    """The rows (R, ...) of the tokens of a batch (B · L, ...), and zeros."""
    return _Taken.apply(batch, *layout, False)


def put_back(rows: Tensor, layout: Layout, *, fills: bool) -> Tensor:
    """The batch (B · L, ...) of rows (R, ...): tokens at their positions, elsewhere the row that stands for padding.

    Args:
        fills: whether that row has a gradient. Without, it is of zeros, or nobody sees it.
    """
    return _PutBack.apply(rows, *layout, fills)


class _Taken(torch.autograd.Function):
    """`taken`; with ``sums`` the row that stands for padding is the sum of all positions that are no tokens."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, *given: Any) -> Tensor:
        layout = _saved(ctx, given)
        rows = batch.index_select(0, layout.places)
        if layout.others is None:
            rows[layout.padding :] = 0
        else:
            # traced by dynamo of torch 2.11, what an in-place method returns or changes has a gradient of 0
            fill = rows.index_fill if torch.compiler.is_dynamo_compiling() else rows.index_fill_
            rows = fill(0, layout.others, 0)
        if given[-1]:
            rows[layout.padding] = _sum_elsewhere(batch, layout)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        back = _PutBack if ctx.flag else _Scattered
        return back.apply(gradient, *_loaded(ctx), True), *_NO_GRADIENTS


class _PutBack(torch.autograd.Function):
    """`put_back`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *given: Any) -> Tensor:
        return rows.index_select(0, _saved(ctx, given).sources)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return _Taken.apply(gradient, *_loaded(ctx), ctx.flag), *_NO_GRADIENTS


class _Scattered(torch.autograd.Function):
    """The batch of rows (R, ...): tokens at their positions, elsewhere zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *given: Any) -> Tensor:
        layout = _saved(ctx, given)
        size, tokens = layout.sources.shape[0], layout.padding
        if torch.compiler.is_dynamo_compiling():  # which makes one kernel of this, and of what reads it
            padding = (layout.sources == tokens).view(-1, *[1] * (rows.ndim - 1))
            return rows.index_select(0, layout.sources).masked_fill(padding, 0)
        if layout.targets is None:
            return scattered(rows[:tokens], layout.places[:tokens], size)
        return scattered(rows, layout.targets, size + 1)[:size]  # what is no token goes to the end, which is cut off

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return _Taken.apply(gradient, *_loaded(ctx), False), *_NO_GRADIENTS


_NO_GRADIENTS = (None,) * (len(Layout._fields) + 1)


def _saved(ctx: Any, given: tuple[Any, ...]) -> Layout:
    """The layout that a function got, kept for its backward with the flag behind it."""
    layout = Layout(*given[:-1])
    ctx.save_for_backward(*layout[:-1])
    ctx.padding, ctx.flag = layout.padding, given[-1]
    return layout


def _loaded(ctx: Any) -> tuple[Any, ...]:
    return *ctx.saved_tensors, ctx.padding


def _sum_elsewhere(batch: Tensor, layout: Layout) -> Tensor:
    """The sum of the positions that are no tokens."""
    elsewhere = (layout.sources == layout.padding).to(batch.dtype)
    return (elsewhere @ batch.flatten(1)).view(batch.shape[1:])
