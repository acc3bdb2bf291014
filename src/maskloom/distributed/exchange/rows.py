"""A whole sequence as the rows of ranks, and back."""

import math
from numbers import Number
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


def checked_fill(fill: Any, dtype: torch.dtype) -> Any:
    """What rows of a dtype are filled with.

    Raises:
        TypeError: not a number. ValueError: a number that the dtype does not have.
    """
    if not isinstance(fill, Number) and not (isinstance(fill, Tensor) and fill.ndim == 0):
        raise TypeError(f"fill is a number; got {brief(fill)}")
    number: Any = fill.item() if isinstance(fill, Tensor) else fill
    if not _has(dtype, number):
        raise ValueError(f"fill is a number of the tensor's dtype, {dtype}; got {brief(fill)}")
    return number


def _has(dtype: torch.dtype, number: Any) -> bool:
    """Whether a dtype has a number: integers exactly, others within its range."""
    if dtype == torch.bool:
        return number in (0, 1)
    if not (dtype.is_floating_point or dtype.is_complex):
        limits = torch.iinfo(dtype)
        return not isinstance(number, complex) and limits.min <= number <= limits.max and number == int(number)
    if isinstance(number, complex) and not dtype.is_complex:
        return False
    return number != number or abs(number) == math.inf or abs(number) <= torch.finfo(dtype).max


_FILLED = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128,
}  # fmt: skip
"""Dtypes that torch indexes and fills; others are moved as integers of their size."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def rows_of(tensor: Tensor, dim: int, fill: float, positions: Tensor) -> Tensor:
    """The rows of a whole at some positions, and ``fill`` for position -1, along ``dim``."""
    if tensor.dtype not in _FILLED:
        word = _WORDS[tensor.dtype.itemsize]
        value = int(torch.full((), fill, dtype=tensor.dtype).view(word))
        return rows_of(tensor.view(word), dim, value, positions).view(tensor.dtype)
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
        given = tensor.movedim(dim, 0).unsqueeze(-1).contiguous()
        rows = given.resolve_conj().resolve_neg().view(torch.uint8)  # gloo lacks some dtypes
        for group in whole.groups:
            everyones = rows.new_empty(group.size() * len(rows), *rows.shape[1:])
            all_gather(everyones, rows, group=group)
            rows = everyones
        return rows.index_select(0, whole.places).view(tensor.dtype)[..., 0].movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads == "sum":
            grad = grad.clone(memory_format=torch.contiguous_format)
            for group in ctx.whole.groups:
                dist.all_reduce(grad, group=group)
        return rows_of(grad, ctx.dim, 0, ctx.whole.positions), None, None, None
