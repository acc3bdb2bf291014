"""Tensors that FLASH's kernel reads in the user's graph: uses of them that torch counts.

Inductor (torch 2.11 to 2.15) does not count what a mask of FLASH reads among the inputs of its kernel. A tensor of the mask
that the graph uses before, in a block mask or a loss say, is freed after that use, and the kernel's call then fails
("cannot access local variable"). So the output, and in the backward a gradient, read one entry of each such tensor once
more, which changes nothing and is fused into what comes next.
"""

from typing import Any

import torch
from torch import Tensor


def until_forward(out: Tensor, tensors: list[Tensor]) -> Tensor:
    """The output of a kernel that reads these tensors: they live until it has run."""
    return _UntilForward.apply(out, *tensors) if out.requires_grad else _read_too(out, tuple(tensors))


def until_backward(tensor: Tensor, tensors: list[Tensor]) -> Tensor:
    """An input of such a kernel: they live until its backward has run."""
    return _UntilBackward.apply(tensor, *tensors)


class _UntilForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return _read_too(out, tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *[None for _ in ctx.saved_tensors]


class _UntilBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _read_too(gradient, ctx.saved_tensors), *[None for _ in ctx.saved_tensors]


def _read_too(found: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """``found``, bit for bit, by an operation that reads the tensors."""
    for tensor in tensors:
        entry = tensor.reshape(-1)[:1]
        found = torch.where((entry != entry) & (entry == entry), 0.0, found)
    return found
