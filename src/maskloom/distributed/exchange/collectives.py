"""The collectives of context parallel, with gradients that go back the same ways.

Each function moves all tensors of one call in one collective. On a GPU none waits for the device: they are put on the current
stream.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from maskloom.distributed.exchange.fetching import Fetching
from maskloom.distributed.exchange.packing import (
    check_once,
    fill,
    packed,
    packed_by_heads,
    row_width,
    rows_at,
    shapes_of,
    unpacked,
    unpacked_by_heads,
)

# the second name of each is that of torch before 2.13
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def by_heads(tensors: list[Tensor], group: ProcessGroup) -> tuple[Tensor, ...]:
    """All heads of a part of the rows become a part of the heads of all rows.

    Args:
        tensors: (B, H, L, D), heads that the ranks divide.

    Returns:
        (B, H / ranks, ranks * L, D) for each, rows in the order of the ranks.
    """
    return _ByHeads.apply(group, *tensors)


def by_rows(tensors: list[Tensor], group: ProcessGroup) -> tuple[Tensor, ...]:
    """The inverse of `by_heads`."""
    return _ByRows.apply(group, *tensors)


class Gathering(NamedTuple):
    """How rows of all ranks are gathered.

    Attributes:
        places: int64 (L,), where each position lies among the rows of all ranks; None where all follow one another.
        length: L.
    """

    places: Tensor | None
    length: int


def gathered(tensors: list[Tensor], how: Gathering, group: ProcessGroup) -> tuple[Tensor, ...]:
    """The rows of all ranks, (B, H, L, D) by position, from each rank's (B, H, rows, D)."""
    return _Gathered.apply(how, group, *tensors)


def fetched(tensors: list[Tensor], how: Fetching, group: ProcessGroup) -> tuple[Tensor, ...]:
    """This rank's rows and those that it gets, by position, (B, H, K, D), from each rank's (B, H, rows, D)."""
    return _Fetched.apply(how, group, *tensors)


class _ByHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return _to_heads(tensors, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        return None, *_to_rows(grads, ctx.group)


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return _to_rows(tensors, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        return None, *_to_heads(grads, ctx.group)


def _to_heads(tensors: tuple[Tensor, ...], group: ProcessGroup) -> tuple[Tensor, ...]:
    parts = group.size()
    rows = packed_by_heads(tensors, parts)
    return unpacked(_swapped(rows, group), shapes_of(tensors, parts))


def _to_rows(tensors: tuple[Tensor, ...], group: ProcessGroup) -> tuple[Tensor, ...]:
    rows = packed(tensors)
    return unpacked_by_heads(_swapped(rows, group), shapes_of(tensors), group.size())


def _swapped(rows: Tensor, group: ProcessGroup) -> Tensor:
    """Equal parts of the rows exchanged with all ranks."""
    received = torch.empty_like(rows)
    dist.all_to_all_single(received, rows, group=group)
    return received


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Gathering, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.how, ctx.group, ctx.shapes = how, group, shapes_of(tensors)
        rows = packed(tensors)
        ctx.rows = len(rows)
        everyones = rows.new_empty(group.size() * len(rows), *rows.shape[1:])
        all_gather(everyones, rows, group=group)
        found = everyones[: how.length] if how.places is None else everyones.index_select(0, how.places)
        return unpacked(found, ctx.shapes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        how: Gathering = ctx.how
        found = packed(grads)
        everyones = found.new_zeros(ctx.group.size() * ctx.rows, *found.shape[1:])
        if how.places is None:
            everyones[: how.length] = found
        else:
            everyones.index_copy_(0, how.places, found)
        rows = found.new_empty(ctx.rows, *found.shape[1:])
        reduce_scatter(rows, everyones, group=ctx.group)
        return None, None, *unpacked(rows, ctx.shapes)


class _Fetched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Fetching, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.how, ctx.group, ctx.rows = how, group, tensors[0].shape[2]
        sent = torch.cat([rows_at(tensors, places) for places in how.sent])
        others = _exchanged(sent, how.counts, list(how.received), group, how.moves)
        rows = others.new_empty(how.keys, *others.shape[1:])
        for piece, keys in how.places:
            if piece.source == "own":
                fill(rows[keys], [tensor[:, :, piece.rows] for tensor in tensors])
            else:
                rows[keys] = others[piece.rows] if piece.source == "others" else 0
        return unpacked(rows, shapes_of(tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        how: Fetching = ctx.how
        shapes = shapes_of(grads)
        others = grads[0].new_empty(sum(how.received), len(grads[0]), row_width(shapes))
        own = [grad.new_zeros(*grad.shape[:2], ctx.rows, grad.shape[3]) for grad in grads]
        for piece, keys in how.places:
            if piece.source == "own":
                for rows, grad in zip(own, grads, strict=True):
                    rows[:, :, piece.rows] = grad[:, :, keys]
            elif piece.source == "others":
                fill(others[piece.rows], [grad[:, :, keys] for grad in grads])
        back = _exchanged(others, list(how.received), how.counts, ctx.group, how.moves).split(how.counts)
        for places, rows in zip(how.sent, back, strict=True):
            if len(places):  # each row once, so that sums have one order
                for grad, part in zip(own, unpacked(rows, shapes), strict=True):
                    grad.index_add_(2, places, part)
        return None, None, *own


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup, moves: bool) -> Tensor:
    """Rows in the order of their ranks, those that the others sent."""
    found = rows.new_empty(sum(received), *rows.shape[1:])
    if moves:
        dist.all_to_all_single(found, rows, received, sent, group=group)
    return found
