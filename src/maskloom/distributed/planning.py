"""`plan`: how the ranks of a mesh share one sequence, decided from the tiles of its mask."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from maskloom.attention.clean_padding import Hidden
from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.core.torch_state import counting_writes
from maskloom.core.words import brief
from maskloom.distributed.agreement import Said, agree
from maskloom.distributed.asking import Asked, checked, weighed
from maskloom.distributed.exchange.rows import Whole, rows_of
from maskloom.distributed.part import Place, part_of, sent_to
from maskloom.distributed.report import Report
from maskloom.distributed.sequence_plan import Plan
from maskloom.distributed.sharing.layout import layout_of
from maskloom.distributed.sharing.scheme import Scheme, StrategyName
from maskloom.distributed.tensor_kinds import comparison_of
from maskloom.masks.algebra import Mask
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.masks.patterns.shift import shifted
from maskloom.program.program import MaskMod

Strategy = StrategyName | Literal["auto"] | Sequence[StrategyName]

_plans: LRU[Hashable, Plan] = LRU(8)
"""Plans by what was asked: the digest of the mask, sizes, strategies, the groups of the mesh."""


def plan(
    mask: MaskMod | None,
    length: int,
    mesh: DeviceMesh,
    *,
    heads: int | tuple[int, int],
    strategy: Strategy = "auto",
    batch: int | None = None,
    q_offset: int | None = None,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    overlap: bool | None = None,
) -> Plan:
    """Plan attention of one sequence that the ranks of a mesh share. Collective: every rank calls it with the same.

    The last eight plans are kept: a mask that does the same, with tensors of the same values, gets the same plan. A function is looked at
    at each call.

    Args:
        mask: a Mask or a mask_mod of the whole sequence, or None for everything, the same on every rank: the recorded programs and the values of the
            tensors are compared, not the objects.
        length: positions of the whole sequence, any number.
        mesh: a DeviceMesh with one dimension, ``mesh["cp"]``, or with two.
        heads: of queries, and of keys and values: ``(32, 8)``, or one number for both.
        strategy: "heads" (each rank attends with some heads to the whole sequence), "gather" (each rank gets all keys and
            values for some queries), "needed" (only those that the mask shows its queries), or "auto", the least estimate. Of a mesh with two dimensions one for each, one of them "heads".
        batch: batch rows. By default those of the mask's tables; without any, ``plan.bytes`` is of one row.
        q_offset: the position of the first query in the mask, score_mod and dropout. None is 0, of whole rows: rows that the mask declares
            longer are an error then, which an explicit 0 allows.
        head_dim, dtype: of the tensors, for counts of bytes and for "auto".
        overlap: with "gather", attend to this rank's keys while those of others come in, and merge the two by their log-sum-exp. None:
            where more than two groups gather, so that it pays; where the log-sum-exp has no gradient (FLASH before torch 2.14), keys
            come in first whatever is asked. True is an error where "gather" cannot be taken.

    Raises:
        TypeError, ValueError: what is no mask, mesh or strategy; lengths or heads that do not fit the mask's tables; query
            heads that the ranks do not divide, with "heads"; ranks that ask for different plans, which are named.
    """
    mesh = _checked_mesh(mesh)
    options = {
        "heads": heads, "strategy": strategy, "batch": batch, "q_offset": q_offset, "head_dim": head_dim, "dtype": dtype,
        "overlap": overlap,
    }  # fmt: skip
    facts, asked = _facts(mask, length, [mesh.size(dim) for dim in range(mesh.ndim)], options)
    everyones = agree(facts, mesh, "the ranks of a mesh plan the same", "plan")
    if isinstance(asked, Exception):
        raise asked
    return _kept(asked._replace(is_window=all(others["is_window"] for others in everyones)), mesh)


def _facts(
    mask: Any, length: Any, ranks: list[int], options: dict[str, Any]
) -> tuple[dict[str, Any], Asked | Exception]:
    """What this rank asks for, to be compared with others; and it checked, or the error."""
    facts = {name: Said(brief(option), brief(option)) for name, option in {"length": length, **options}.items()}
    names = "the mask's program", "a tensor of the mask"
    try:
        asked = checked(mask, length, ranks, **options)
    except Exception as error:
        unknown = dict.fromkeys(names, Said(None, "none"))
        return {**facts, **unknown, "is_window": False, "error": f"{type(error).__name__}: {error}"}, error
    digests = [Said(found, f"{found[:8]} of {brief(asked.mask)}") for found in asked.digest]
    heads = {"heads": Said(asked.heads, brief(options["heads"]))}  # 6 is (6, 6)
    return {
        **facts,
        **heads,
        **dict(zip(names, digests, strict=True)),
        "is_window": asked.is_window,
        "error": None,
    }, asked


def _checked_mesh(mesh: DeviceMesh) -> DeviceMesh:
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh is a DeviceMesh, as init_device_mesh makes it; got {brief(mesh)}")
    if mesh.ndim not in (1, 2):
        raise ValueError(f'mesh has one dimension, mesh["cp"] say, or two; got {mesh}')
    if mesh.get_coordinate() is None:
        raise ValueError(f"this rank is not in {mesh}")
    return mesh


def _kept(asked: Asked, mesh: DeviceMesh) -> Plan:
    """The plan: that of an earlier call which asked the same on this mesh, or a new one."""
    made = counting_writes(_planned)  # a plan that is made in inference mode may train later
    if not captures.is_plain(asked.mask):  # what a function does later is not known
        return made(asked, mesh)
    groups = tuple(id(mesh.get_group(dim)) for dim in range(mesh.ndim))  # the plan holds them
    structure = captures.structure(
        asked.mask, numbers=True
    )  # two masks that do the same may say different things of padding
    key = (
        asked.digest,
        structure,
        *asked[3:9],
        asked.named,
        asked.overlap,
        asked.is_window,
        mesh.device_type,
        groups,
        asked.q_offset,
    )
    found = _plans.get(key)
    if found is None:
        found = made(asked, mesh)
        _plans.put(key, found)
    return found


def _planned(asked: Asked, mesh: DeviceMesh) -> Plan:
    comparison = comparison_of(mesh, asked.heads, asked.batch, asked.head_dim, asked.itemsize)
    found = weighed(asked, [mesh.size(dim) for dim in range(mesh.ndim)])
    (tiles, sizes, schemes), chosen = found, found.best
    device, place = _device_of(mesh), _place(chosen, mesh)
    layout = layout_of(chosen.assignment, sizes.length, tiles.unit, chosen.rows, chosen.parts)
    part = part_of(
        asked.mask, tiles.marks, chosen, layout, place, q_offset=asked.q_offset, unit=tiles.unit, device=device,
        overlap=chosen.groups > 2 if asked.overlap is None else asked.overlap,
    )  # fmt: skip
    own = layout.of_rank(place.group, place.part)
    whole = Whole(_gathering_order(place), sent_to(layout.places(), device), sent_to(own, device))
    return Plan(
        part.mask, mesh, sizes.length, chosen.rows, whole.positions, sent_to(own < 0, device),
        chosen, sizes, tiles.batch, _hidden(part.mask, asked.q_offset, sizes.length, whole.positions), part,
        comparison, whole, Report(chosen, schemes, asked.refused, asked.named, tiles.unit, sizes, part.overlap is not None), asked.q_offset,
    )  # fmt: skip


def _hidden(mask: Mask, q_offset: int, length: int, positions: Tensor) -> Hidden | None:
    """Padding of a mask at a rank's rows, whose queries lie from an offset on."""
    mask = shifted(mask, q_offset=q_offset) if q_offset else mask
    keys = known_padding(mask, length)
    if keys is None:
        return None
    queries = known_hidden_queries(mask, length)
    return Hidden(rows_of(keys, 1, True, positions), None if queries is None else rows_of(queries, 1, True, positions))


def _device_of(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.empty(0, device=mesh.device_type).device  # with the number of the current one


def _place(chosen: Scheme, mesh: DeviceMesh) -> Place:
    dims = {("heads" if name == "heads" else "rows"): dim for dim, name in enumerate(chosen.names)}
    at = {kind: mesh.get_local_rank(dim) for kind, dim in dims.items() if mesh.size(dim) > 1}
    groups = {kind: mesh.get_group(dims[kind]) for kind in at}
    return Place(at.get("rows", 0), at.get("heads", 0), groups.get("heads"), groups.get("rows"))


def _gathering_order(place: Place) -> tuple[Any, ...]:
    """The groups over which rows are gathered: first of the parts of a group, then of the groups."""
    return tuple(group for group in (place.by_heads, place.by_rows) if group is not None)
