"""Whether all ranks ask for the same plan: what differs is named before anything is planned."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

Facts = Mapping[str, Any]
"""What a rank asks for, by name; under ``error`` why it asks for nothing."""


def agree(facts: Facts, mesh: DeviceMesh) -> None:
    """Compare what all ranks of a mesh ask for. Collective; where the group has a CPU backend, no device is waited for.

    Raises:
        ValueError: the ranks differ, in the words of what differs; or another rank refused its arguments. A rank that did so
            itself raises its own error.
    """
    everyones = all_facts(facts, mesh)
    if facts["error"] is not None:
        return
    for rank, others in enumerate(everyones):
        if others["error"] is not None:
            raise ValueError(f"rank {rank} of the mesh cannot plan: {others['error']}")
    for name, value in everyones[0].items():
        differs = [rank for rank, others in enumerate(everyones) if others[name] != value]
        if differs:
            rank = differs[0]
            raise ValueError(
                f"the ranks of a mesh plan the same; {name} differs: rank 0 has {value}, rank {rank} has {everyones[rank][name]}"
            )


def all_facts(facts: Facts, mesh: DeviceMesh) -> list[Facts]:
    """What all ranks of a mesh ask for, in the order of the mesh."""
    found: list[Any] = [facts]
    for dim in reversed(range(mesh.ndim)):
        of_dim: list[Any] = [None] * mesh.size(dim)
        dist.all_gather_object(of_dim, found, group=mesh.get_group(dim))
        found = [one for part in of_dim for one in part]
    return found
