"""Tensors of heads as rows of numbers, one row for each position, as collectives send them.

A row holds all batch rows, tensors and heads of its position, so that one collective moves queries, keys and values, and what
arrives is used where it lies: tensors come out as views (B, H, L, D) of the rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.attention.derivatives import is_followed
from maskloom.core.torch_state import is_transformed


class Shape(NamedTuple):
    """Heads and features of one of the tensors in a row."""

    heads: int
    width: int


def shapes_of(tensors: Sequence[Tensor], parts: int = 1) -> tuple[Shape, ...]:
    """The shapes of tensors (B, H, L, D), of which each rank gets one of ``parts`` equal parts of the heads."""
    return tuple(Shape(tensor.shape[1] // parts, tensor.shape[3]) for tensor in tensors)


def row_width(shapes: Sequence[Shape]) -> int:
    """Numbers of one batch row in a row."""
    return sum(heads * width for heads, width in shapes)


def check_once() -> None:
    """Raise a RuntimeError in a backward that is to be differentiated again: collectives have one derivative."""
    if torch.is_grad_enabled():
        raise RuntimeError("attention by a plan has no second derivative; take the first one without create_graph=True")


def refuse_transforms(function: str, *tensors: Any) -> None:
    """Raise a ValueError where a transform of torch.func, or forward-mode differentiation, would have to follow an exchange."""
    if is_transformed() and any(isinstance(one, Tensor) and is_followed(one) for one in tensors):
        raise ValueError(
            f"{function} exchanges tensors with other ranks, which no transform of torch.func (grad, vmap, jvp) and no forward-mode "
            "derivative can follow; take gradients by backward() or torch.autograd.grad"
        )


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (B, H, L, D) of one length as rows (L, B, numbers)."""
    batch, _, length, _ = tensors[0].shape
    rows = tensors[0].new_empty(length, batch, row_width(shapes_of(tensors)))
    fill(rows, tensors)
    return rows


def fill(rows: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write tensors (B, H, L, D) into rows (L, B, numbers)."""
    for view, tensor in zip(unpacked(rows, shapes_of(tensors)), tensors, strict=True):
        view.copy_(tensor)


def unpacked(rows: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Views (B, H, L, D) of rows (L, B, numbers)."""
    parts = rows.split([heads * width for heads, width in shapes], -1)
    return tuple(
        part.unflatten(-1, tuple(shape)).permute(1, 2, 0, 3) for part, shape in zip(parts, shapes, strict=True)
    )


def packed_by_heads(tensors: Sequence[Tensor], parts: int) -> Tensor:
    """Tensors (B, H, L, D) as rows for the ranks that get a part of the heads each: (parts * L, B, numbers)."""
    batch, _, length, _ = tensors[0].shape
    shapes = shapes_of(tensors, parts)
    rows = tensors[0].new_empty(parts, length, batch, row_width(shapes))
    for part, own in enumerate(rows):
        fill(own, [tensor.unflatten(1, (parts, -1))[:, part] for tensor in tensors])
    return rows.flatten(0, 1)


def unpacked_by_heads(rows: Tensor, shapes: Sequence[Shape], parts: int) -> tuple[Tensor, ...]:
    """Tensors (B, parts * H, L, D) from rows (parts * L, B, numbers) of ranks that had ``shapes`` each."""
    views = unpacked(rows, shapes)
    return tuple(view.unflatten(2, (parts, -1)).permute(0, 2, 1, 3, 4).flatten(1, 2) for view in views)


def rows_at(tensors: Sequence[Tensor], places: Tensor) -> Tensor:
    """The rows at some places of tensors (B, H, L, D): (places, B, numbers)."""
    return packed([tensor.index_select(2, places) for tensor in tensors])
