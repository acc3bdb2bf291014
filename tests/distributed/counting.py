"""Counts the bytes that a rank receives from others in the collectives of a plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor

from maskloom.distributed.exchange import collectives, early


class Received:
    """Bytes that came from other ranks, and the number of collectives."""

    def __init__(self) -> None:
        self.bytes = self.calls = 0

    def add(self, rows: int, tensor: Tensor) -> None:
        """Count rows of a tensor that was received."""
        self.calls += 1
        self.bytes += rows * tensor[:1].nbytes if len(tensor) else 0


@contextmanager
def counted() -> Iterator[Received]:
    """Count what plans move in this block."""
    found = Received()
    swap, gather = dist.all_to_all_single, collectives.all_gather

    def swapping(out: Tensor, given: Tensor, received: Any = None, sent: Any = None, *, group: Any) -> Any:
        own = len(out) // group.size() if received is None else received[group.rank()]
        found.add(len(out) - own, out)
        return swap(out, given, received, sent, group=group)

    def gathering(out: Tensor, given: Tensor, **options: Any) -> Any:
        found.add(len(out) - len(given), out)
        return gather(out, given, **options)

    with (
        patch.object(dist, "all_to_all_single", swapping),
        patch.object(collectives, "all_gather", gathering),
        patch.object(early, "all_gather", gathering),
    ):
        yield found
