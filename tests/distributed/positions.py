"""Where the rows of a part lie."""

import torch

from maskloom.distributed.exchange.collectives import Gathering
from maskloom.distributed.part import Part


def everywhere(part: Part, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of a part's queries and keys in a sequence of that length, on the CPU."""
    exchange, (queries, keys) = part.exchange, part.positions
    assert exchange is not None
    kv_len = length if isinstance(exchange, Gathering) else exchange.own + sum(exchange.received)
    return _listed(queries, part.queries), _listed(keys, kv_len)


def _listed(held: torch.Tensor | int | None, length: int) -> torch.Tensor:
    return held.cpu().long() if isinstance(held, torch.Tensor) else torch.arange(length) + (held or 0)
