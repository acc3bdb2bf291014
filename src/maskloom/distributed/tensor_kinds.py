"""Whether all ranks give `Plan.attend` tensors of one kind: what differs is named before anything is exchanged.

To compare is a collective of its own, so it is done once, and all ranks must agree on which call does it. What a rank gives cannot
say that: one rank would see something new where another does not. Nor can the plan, which is kept on a rank where its mask
is a Mask, and made anew where it is a function. What was asked for can: `agree` has compared it.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from maskloom.core.weak_table import IdentityTable
from maskloom.distributed.agreement import Said, agree

G = TypeVar("G")


class Comparison:
    """Whether ranks have compared what they give to plans that were asked for alike."""

    def __init__(self) -> None:
        self.is_done = False


_comparisons: IdentityTable[dict[Hashable, Comparison]] = IdentityTable()
"""By the first group of a mesh, which lives as long on every rank: until it is destroyed."""


def comparison_of(mesh: DeviceMesh, *asked: Hashable) -> Comparison:
    """The one comparison for a mesh and what all of its ranks have asked for; of one rank it is done."""
    groups: list[ProcessGroup] = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    of_mesh = _comparisons.get(groups[0])
    if of_mesh is None:
        of_mesh = {}
        _comparisons.put(groups[0], of_mesh)
    found = of_mesh.setdefault((*(group.group_name for group in groups), *asked), Comparison())
    found.is_done |= mesh.size() == 1
    return found


def compared(
    comparison: Comparison, mesh: DeviceMesh, check: Callable[[], G], facts_of: Callable[[G], dict[str, Said]]
) -> G:
    """What ``check`` returns, after it was compared among the ranks of a mesh, if that is to be done. Collective then.

    Args:
        check: checks what this rank gives, and raises an error if it is wrong.
        facts_of: what of it is compared.

    Raises:
        ValueError: the ranks give other kinds, or another rank's arguments are wrong. A rank whose own are wrong raises its own
            error.
    """
    if comparison.is_done:
        return check()
    words = "plan.attend gets tensors of one kind on all ranks", "attend"
    try:
        given = check()
    except Exception as error:
        agree({"error": f"{type(error).__name__}: {error}"}, mesh, *words)
        raise
    agree({**facts_of(given), "error": None}, mesh, *words)
    comparison.is_done = True
    return given


def kind_of(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Said]:
    """What must be the same on all ranks of query (B, H, rows, D), key (B, Hkv, rows, D) and value (B, Hkv, rows, E)."""
    found = {
        "the dtype": query.dtype,
        "the batch size": query.shape[0],
        "the number of query heads": query.shape[1],
        "the number of key heads": key.shape[1],
        "the head dim of query and key": query.shape[3],
        "the head dim of value": value.shape[3],
    }
    return {name: Said(one, str(one)) for name, one in found.items()}
