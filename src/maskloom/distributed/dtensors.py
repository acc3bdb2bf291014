"""DTensors whose heads or batch rows ranks of another mesh share (tensor parallel, data parallel): this rank's part of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from maskloom.core import captures


class Local(NamedTuple):
    """This rank's part of query, key and value.

    Attributes:
        mesh, placements: as the DTensors have them.
        b_offset, h_offset: the first batch row, and the first query head; None: these are all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mesh: Any
    placements: Any
    b_offset: int | None
    h_offset: int | None


def local_of(query: Any, key: Any, value: Any) -> Local:
    """The parts of DTensors (B, H, rows, D).

    Raises:
        TypeError: one of them is no DTensor. ValueError: they are not shared alike, or by other than heads and batch rows,
            or unevenly.
    """
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not captures.is_dtensor(tensor):
            raise TypeError(f"query, key and value are DTensors all, or none; {name} is a {type(tensor).__name__}")
        if tensor.device_mesh != query.device_mesh or tensor.placements != query.placements:
            raise ValueError(
                f"query, key and value are shared alike; query is {query.placements} on {query.device_mesh}, "
                f"{name} is {tensor.placements} on {tensor.device_mesh}"
            )
        _check_placements(name, tensor)
    b_offset, h_offset = (_first(query, dim) for dim in (0, 1))
    _first(key, 1)  # raises where key heads are not shared evenly
    parts = query.to_local(), key.to_local(), value.to_local()
    return Local(*parts, query.device_mesh, query.placements, b_offset, h_offset)


def local_sinks(sinks: Any, local: Local, heads: int, all_heads: int) -> Any:
    """The sinks (H,) of this rank's heads, from those of all, or of these alone; a DTensor may be shared as the heads are.

    Raises:
        ValueError: there are others, on every rank.
    """
    if sinks is None:
        return None
    found = sinks.to_local() if captures.is_dtensor(sinks) else sinks
    if not isinstance(found, Tensor) or found.ndim != 1:
        return found  # which is refused as attend refuses it
    if len(found) not in (heads, all_heads):
        raise ValueError(
            f"sinks have one number for each of the {all_heads} query heads, or of the {heads} of this rank; got {tuple(sinks.shape)}"
        )
    first = local.h_offset or 0
    return found[first : first + heads] if len(found) != heads else found


def wrapped(tensor: Tensor, local: Local) -> Any:
    """A result of this rank, (B, H, ...), as a DTensor that is shared as the query is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor, local.mesh, local.placements, run_check=False)


def of_local(what: str, x: Any, dim: Any, run: Callable[[Tensor], Tensor]) -> Any:
    """What ``run`` makes of this rank's part of a DTensor, as a DTensor that is shared alike.

    Raises:
        ValueError: positions are shared, or it is part of a sum.
    """
    for placement in x.placements:
        if placement.is_partial() or (placement.is_shard() and type(dim) is int and placement.dim == dim % x.ndim):
            raise ValueError(
                f"{what} takes DTensors that share other dimensions than that of positions, which the plan shares; got {x.placements} "
                f"and dim={dim}. Give x.full_tensor(), or this rank's part of it, x.to_local()"
            )
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(run(x.to_local()), x.device_mesh, x.placements, run_check=False)


def _check_placements(name: str, tensor: Any) -> None:
    for placement in tensor.placements:
        if not (placement.is_replicate() or (placement.is_shard() and placement.dim in (0, 1))):
            raise ValueError(
                f"a plan takes DTensors that share batch rows, Shard(0), or heads, Shard(1), and not positions: these are "
                f"shared by the plan; {name} is {tensor.placements}"
            )


def _first(tensor: Any, dim: int) -> int | None:
    """The first index of this rank's part of a dimension; None where it has all of it.

    Raises:
        ValueError: the ranks do not divide it.
    """
    first, size = None, tensor.shape[dim]
    for axis, placement in enumerate(tensor.placements):
        if not placement.is_shard(dim):
            continue
        ranks = tensor.device_mesh.size(axis)
        if size % ranks:
            what = ("batch rows", "heads")[dim]
            raise ValueError(f"{size} {what} of shape {tuple(tensor.shape)} are not shared evenly by {ranks} ranks")
        size //= ranks
        first = (first or 0) + tensor.device_mesh.get_local_rank(axis) * size
    return first
