"""Where the rows of a part lie."""

import torch

from maskloom.distributed.part import Part
from maskloom.distributed.sharing.layout import Runs


def everywhere(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of a part's queries and keys, on the CPU."""
    queries, keys = part.positions
    return _listed(queries, part.queries), _listed(keys, part.keys)


def _listed(held: torch.Tensor | Runs | None, length: int) -> torch.Tensor:
    if isinstance(held, Runs):
        return held.positions(length)
    return torch.arange(length) if held is None else held.cpu().long()
