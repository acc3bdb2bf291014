"""A whole sequence as the rows of ranks, and back."""

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from maskloom.core.words import brief
from maskloom.distributed.exchange.collectives import all_gather


class Whole(NamedTuple):
    """Where the rows of all ranks lie.

    Attributes:
        groups: process groups to gather over, one after another, the first of the ranks that follow one another.
        places: int64 (length,), where each position lies among the rows of all ranks.
        positions: int64 (rows,), the position of each row of this rank; -1 for rows that hold nothing.
    """

    groups: tuple[ProcessGroup, ...]
    places: Tensor
    positions: Tensor


def checked_dim(tensor: Tensor, dim: int, size: int, what: str) -> int:
    """A dimension of a tensor, from 0 on, of ``size`` rows.

    Raises:
        TypeError: not a tensor, or not an int. IndexError: no such dimension. ValueError: another size.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} takes a tensor; got {brief(tensor)}")
    if type(dim) is not int:
        raise TypeError(f"dim is an int; got {brief(dim)}")
    if not -tensor.ndim <= dim < tensor.ndim:
        raise IndexError(f"dim {dim} of a tensor with shape {tuple(tensor.shape)}")
    if tensor.shape[dim] != size:
        raise ValueError(f"{what} takes {size} rows in dim {dim}; got shape {tuple(tensor.shape)}")
    return dim % tensor.ndim


def rows_of(tensor: Tensor, dim: int, fill: float, positions: Tensor) -> Tensor:
    """The rows of a whole at some positions, and ``fill`` for position -1, along ``dim``."""
    found = tensor.index_select(dim, positions.clamp(min=0))
    empty = (positions < 0).view([-1 if axis == dim else 1 for axis in range(tensor.ndim)])
    return found.masked_fill(empty, fill)


def whole_of(tensor: Tensor, dim: int, whole: Whole, grads: Literal["same", "sum"]) -> Tensor:
    """The whole of everybody's rows along ``dim``."""
    return _Whole.apply(tensor, dim, whole, grads)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, whole: Whole, grads: str) -> Tensor:
        ctx.dim, ctx.whole, ctx.grads = dim, whole, grads
        rows = tensor.movedim(dim, 0).contiguous()
        for group in whole.groups:
            everyones = rows.new_empty(group.size() * len(rows), *rows.shape[1:])
            all_gather(everyones, rows, group=group)
            rows = everyones
        return rows.index_select(0, whole.places).movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads == "sum":
            grad = grad.clone(memory_format=torch.contiguous_format)
            for group in ctx.whole.groups:
                dist.all_reduce(grad, group=group)
        return rows_of(grad, ctx.dim, 0, ctx.whole.positions), None, None, None
