"""Whether all ranks ask for the same: what differs is named before anything is done."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


class Said(NamedTuple):
    """What a rank asks for of one kind: what is compared, and how an error says it."""

    compared: Any
    words: str


Facts = Mapping[str, Any]
"""What a rank asks for, by name, as `Said`; under ``error`` why it asks for nothing. Other entries are not compared."""


def agree(facts: Facts, mesh: DeviceMesh, law: str, verb: str) -> list[Facts]:
    """Compare what all ranks of a mesh ask for. Collective; where the group has a CPU backend, no device is waited for.

    Args:
        law, verb: in the words of errors, what is the same on all ranks, and what a rank cannot do that refuses its arguments.

    Returns:
        The facts of all ranks, in the order of the mesh.

    Raises:
        ValueError: the ranks differ, in the words of what differs; or another rank refused its arguments. A rank that did so
            itself raises its own error.
    """
    everyones = all_facts(facts, mesh)
    if facts["error"] is not None:
        return everyones
    for rank, others in enumerate(everyones):
        if others["error"] is not None:
            raise ValueError(f"rank {rank} of the mesh cannot {verb}: {others['error']}")
    for name, said in everyones[0].items():
        if not isinstance(said, Said):
            continue
        differs = [rank for rank, others in enumerate(everyones) if others[name].compared != said.compared]
        if differs:
            rank = differs[0]
            raise ValueError(
                f"{law}; {name} differs: rank 0 has {said.words}, rank {rank} has {everyones[rank][name].words}"
            )
    return everyones


def all_facts(facts: Facts, mesh: DeviceMesh) -> list[Facts]:
    """What all ranks of a mesh ask for, in the order of the mesh."""
    found: list[Any] = [facts]
    for dim in reversed(range(mesh.ndim)):
        of_dim: list[Any] = [None] * mesh.size(dim)
        dist.all_gather_object(of_dim, found, group=mesh.get_group(dim))
        found = [one for part in of_dim for one in part]
    return found
