"""Rows taken out of a tensor, and put into one of zeros: each is the other's gradient.

No two of the places are equal. So no row is added to another by atomics, as torch's own gradient of index_select does.
"""

from typing import Any

import torch
from torch import Tensor

from maskloom.batches.wide import SIXTEEN, fits, has_no_memory
from maskloom.core.torch_state import is_transformed

_MOVED_AS = {
    **dict.fromkeys(
        [dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and "float8" in str(dtype)],
        torch.uint8,
    ),
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}
"""Dtypes of which torch moves no rows, and those of the same size of which it does."""


def picked(batch: Tensor, places: Tensor) -> Tensor:
    """The rows (T, ...) of a tensor (N, ...) at places, int64 (T,), which differ."""
    if _has_gradient(batch):
        return _Picked.apply(batch, places)
    bits = _MOVED_AS.get(batch.dtype)
    return batch.index_select(0, places) if bits is None else batch.view(bits).index_select(0, places).view(batch.dtype)


def placed(rows: Tensor, places: Tensor, size: int) -> Tensor:
    """A tensor (size, ...) with rows (T, ...) at places, int64 (T,), which differ, and zeros elsewhere."""
    return _Placed.apply(rows, places, size) if _has_gradient(rows) else scattered(rows, places, size)


def _has_gradient(tensor: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and tensor.requires_grad
        and not (is_transformed() or torch._C._get_tracing_state() is not None)
    )


class _Picked(torch.autograd.Function):
    """`picked`."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = batch.shape[0]
        return batch.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return placed(gradient, places, ctx.size), None


class _Placed(torch.autograd.Function):
    """`placed`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return scattered(rows, places, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return picked(gradient, places), None, None


def scattered(rows: Tensor, places: Tensor, size: int) -> Tensor:
    """`placed`, without a gradient of its own where nothing traces or transforms."""
    bits = _MOVED_AS.get(rows.dtype)
    if bits is not None:
        return scattered(rows.view(bits), places, size).view(rows.dtype)
    batch = rows.new_zeros(size, *rows.shape[1:])
    if torch.compiler.is_compiling() or is_transformed() or has_no_memory(rows):
        # a graph of torch 2.11 loses gradients of writes in place
        return batch.index_copy(0, places, rows)
    if rows.ndim > 1 and fits(rows, SIXTEEN) and fits(batch, SIXTEEN):
        batch.view(SIXTEEN).index_copy_(0, places, rows.view(SIXTEEN))
        return batch
    return batch.index_copy_(0, places, rows)
