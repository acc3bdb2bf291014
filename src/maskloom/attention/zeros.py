"""Zeros at some positions of a tensor, of its gradient, or of both: chosen, never multiplied, so that NaN goes too."""

from typing import Any

import torch
from torch import Tensor

from maskloom.batches.wide import EIGHT, fits
from maskloom.core.launches import can_launch
from maskloom.core.torch_state import is_transformed


def zeros_both_ways(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zeros at some positions, in the tensor and in its gradient."""
    return zeros_backward(zeros_forward(tensor, rows), rows)


def zeros_forward(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zeros at some positions, where the gradient that comes back is known to be 0. rows: bool, broadcasts to the tensor."""
    return _zeroed(tensor, rows) if is_transformed() else _ZerosForward.apply(tensor, rows)


def zeros_in_each(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    """`zeros_forward` of the three, by one step of autograd; queries, keys: bool, as ``rows``."""
    if torch.compiler.is_dynamo_compiling() or is_transformed():
        return zeros_forward(query, queries), zeros_forward(key, keys), zeros_forward(value, keys)
    return _ZerosInEach.apply(query, key, value, queries, keys)


def zeros_backward(tensor: Tensor, rows: Tensor) -> Tensor:
    """The tensor itself, whose gradient becomes 0 at some positions."""
    return torch.where(rows, tensor.detach(), tensor) if is_transformed() else _ZerosBackward.apply(tensor, rows)


class _ZerosForward(torch.autograd.Function):
    """Zeros at ``rows``, of which the gradient is known to be 0 there."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _zeroed(tensor, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return gradient, None
        return _ZerosBackward.apply(gradient, *ctx.saved_tensors), None


class _ZerosInEach(torch.autograd.Function):
    """`_ZerosForward` of query, key and value."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor) -> Any:
        ctx.save_for_backward(queries, keys)
        return _zeroed(query, queries), _zeroed(key, keys), _zeroed(value, keys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            queries, keys = ctx.saved_tensors
            gradients = tuple(map(_ZerosBackward.apply, gradients, (queries, keys, keys)))
        return *gradients, None, None


class _ZerosBackward(torch.autograd.Function):
    """The tensor itself, not copied, of which the gradient becomes 0 at ``rows``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return tensor.detach()  # in-place operations are noticed in it, and allowed, as in the tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return (_ZerosForward.apply(gradient, rows) if torch.is_grad_enabled() else _zeroed(gradient, rows)), None


def _zeroed(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zeros at ``rows``, chosen eight bytes at a time where the elements allow it: a GPU then needs no longer than for a copy.
    Where Triton is loaded, its kernel does not read what becomes 0.
    """
    copied = _copied_by_kernel(tensor, rows)
    if copied is not None:
        return copied
    if rows.shape[-1] != 1 or not fits(tensor, EIGHT):  # rows that tell neighbours apart, as those of a log-sum-exp do
        return torch.where(rows, 0.0, tensor)
    return torch.where(rows, 0, tensor.view(EIGHT)).view(tensor.dtype)


def _copied_by_kernel(tensor: Tensor, rows: Tensor) -> Tensor | None:
    if not can_launch(tensor) or torch.compiler.is_compiling() or tensor.is_neg():
        return None
    from maskloom.attention.kernels.zeros_kernel import zeroed_copy

    return zeroed_copy(tensor, rows)
