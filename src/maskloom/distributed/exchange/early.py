"""Rows of all ranks gathered while attention to a rank's own rows runs, forward and backward.

``begun`` starts the collective, ``ended`` waits for it; what is computed between the two overlaps it. In the backward `ended` comes first:
it starts to send gradients back, and `begun` waits for those of this rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from maskloom.distributed.exchange.collectives import all_gather, reduce_scatter
from maskloom.distributed.exchange.packing import Shape, check_once, packed, shapes_of, unpacked


class Gather:
    """One collective that runs: what it works on is held until it is waited for."""

    def __init__(self, places: Tensor, group: ProcessGroup) -> None:
        self.places, self.group = places, group
        self.shapes: tuple[Shape, ...] = ()
        self.rows = 0
        self.sent: Tensor | None = None
        self.back: Tensor | None = None
        self.work: Any = None

    def wait(self) -> None:
        """Let the current stream wait, and forget what was sent."""
        self.work.wait()
        self.work = self.sent = None


def begun(tensors: list[Tensor], gather: Gather) -> Tensor:
    """Start to gather tensors (B, H, rows, D): the rows of all ranks, not to be read before `ended`."""
    return _Begun.apply(gather, *tensors)


def ended(everyones: Tensor, gather: Gather) -> tuple[Tensor, ...]:
    """The rows at ``gather.places`` of all ranks', (B, H, places, D)."""
    return _Ended.apply(gather, everyones)


class _Begun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gather: Gather, *tensors: Tensor) -> Tensor:
        ctx.gather, gather.shapes = gather, shapes_of(tensors)
        gather.sent = packed(tensors)
        gather.rows = len(gather.sent)
        everyones = gather.sent.new_empty(gather.group.size() * gather.rows, *gather.sent.shape[1:])
        gather.work = all_gather(everyones, gather.sent, group=gather.group, async_op=True)
        return everyones

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        gather: Gather = ctx.gather
        gather.wait()
        assert gather.back is not None
        found, gather.back = unpacked(gather.back, gather.shapes), None
        return None, *found


class _Ended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gather: Gather, everyones: Tensor) -> tuple[Tensor, ...]:
        ctx.gather = gather
        gather.wait()
        return unpacked(everyones.index_select(0, gather.places), gather.shapes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_once()
        gather: Gather = ctx.gather
        found = packed(grads)
        gather.sent = found.new_zeros(gather.group.size() * gather.rows, *found.shape[1:])
        gather.sent.index_copy_(0, gather.places, found)
        gather.back = found.new_empty(gather.rows, *found.shape[1:])
        gather.work = reduce_scatter(gather.back, gather.sent, group=gather.group, async_op=True)
        return None, gather.sent
