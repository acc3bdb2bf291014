"""`plan`: how the ranks of a mesh share one sequence, decided from the tiles of its mask."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from maskloom.attention.checks import told_of
from maskloom.attention.clean_padding import Hidden
from maskloom.core import captures
from maskloom.core.checks import as_int, count, integer, is_number
from maskloom.core.words import brief
from maskloom.distributed.agreement import agree
from maskloom.distributed.digest import Digest, digest_of
from maskloom.distributed.exchange.rows import Whole, rows_of
from maskloom.distributed.part import Place, part_of, sent_to
from maskloom.distributed.report import Report
from maskloom.distributed.sequence_plan import Plan
from maskloom.distributed.sharing.layout import layout_of
from maskloom.distributed.sharing.scheme import NAMES, Scheme, Sizes, StrategyName
from maskloom.distributed.sharing.schemes import refused, scheme
from maskloom.distributed.sharing.tiles import Tiles, tiles_of
from maskloom.masks.algebra import Mask, as_mask
from maskloom.masks.declared import longest_row
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.masks.patterns.shift import shifted
from maskloom.program.program import MaskMod

Strategy = StrategyName | Literal["auto"] | Sequence[StrategyName]


def plan(
    mask: MaskMod,
    length: int,
    mesh: DeviceMesh,
    *,
    heads: int | tuple[int, int],
    strategy: Strategy = "auto",
    batch: int | None = None,
    q_offset: int | None = None,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    """Plan attention of one sequence that the ranks of a mesh share. Collective: every rank calls it with the same.

    Args:
        mask: a Mask or a mask_mod of the whole sequence, the same on every rank: the recorded programs and the values of the
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

    Raises:
        TypeError, ValueError: what is no mask, mesh or strategy; lengths or heads that do not fit the mask's tables; query
            heads that the ranks do not divide, with "heads"; ranks that ask for different plans, which are named.
    """
    mesh = _checked_mesh(mesh)
    options = {
        "heads": heads, "strategy": strategy, "batch": batch, "q_offset": q_offset, "head_dim": head_dim, "dtype": dtype
    }  # fmt: skip
    facts, asked = _asked(mask, length, [mesh.size(dim) for dim in range(mesh.ndim)], options)
    agree(facts, mesh)
    if isinstance(asked, Exception):
        raise asked
    return _planned(asked, mesh)


class Asked(NamedTuple):
    """What `plan` was asked, checked; ``mask`` has its tensors on the CPU."""

    mask: Mask
    q_offset: int
    digest: Digest
    tiles: Tiles
    sizes: Sizes
    schemes: tuple[Scheme, ...]
    refused: dict[str, str]
    named: bool


def _checked_mesh(mesh: DeviceMesh) -> DeviceMesh:
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh is a DeviceMesh, as init_device_mesh makes it; got {brief(mesh)}")
    if mesh.ndim not in (1, 2):
        raise ValueError(f'mesh has one dimension, mesh["cp"] say, or two; got {mesh}')
    if mesh.get_coordinate() is None:
        raise ValueError(f"this rank is not in {mesh}")
    return mesh


def _asked(
    mask: Any, length: Any, ranks: list[int], options: dict[str, Any]
) -> tuple[dict[str, Any], "Asked | Exception"]:
    """What this rank asks for, to be compared with others; and it checked, or the error."""
    facts = {name: brief(option) for name, option in {"length": length, **options}.items()}
    names = "the mask's program", "a tensor of the mask", "error"
    try:
        asked = checked(mask, length, ranks, **options)
    except Exception as error:
        return facts | dict(zip(names, (None, None, f"{type(error).__name__}: {error}"), strict=True)), error
    said = [f"{found[:8]} of {brief(asked.mask)}" for found in asked.digest]
    return facts | dict(zip(names, (*said, None), strict=True)), asked


def checked(
    mask: Any,
    length: Any,
    ranks: list[int],
    *,
    heads: Any,
    strategy: Any = "auto",
    batch: Any = None,
    q_offset: Any = None,
    head_dim: Any = 128,
    dtype: torch.dtype = torch.bfloat16,
) -> Asked:
    """The arguments of `plan`, checked, and every scheme that they allow, for a mesh of this shape. Not collective."""
    length = count("length", as_int(length), least=1)
    of_queries, of_keys = _checked_heads(heads)
    names = _checked_strategy(strategy, len(ranks))
    batch = None if batch is None else count("batch", as_int(batch), least=1, of="batch rows")
    if q_offset is None:
        _check_rows_fit(as_mask(mask), length)
    first = 0 if q_offset is None else integer("q_offset", as_int(q_offset), "the position of the first query")
    on_host = captures.moved(as_mask(mask), lambda tensor: tensor.detach().cpu())
    whole = shifted(on_host, q_offset=first)
    tiles = tiles_of(whole, length, math.prod(ranks), batch, of_queries)
    features = count("head_dim", head_dim, least=1, of="features")
    sizes = Sizes(length, of_queries, of_keys, features, dtype.itemsize, tiles.batch or 1)
    reasons = {_said(way): reason for way in names if (reason := refused(way, ranks, sizes)) is not None}
    ways = [way for way in names if _said(way) not in reasons]
    if not ways:
        raise ValueError("; ".join(reasons.values()))
    found = tuple(scheme(way, ranks, tiles, sizes) for way in ways)
    return Asked(on_host, first, digest_of(whole), tiles, sizes, found, reasons, strategy != "auto")


def _check_rows_fit(mask: Mask, length: int) -> None:
    longest = longest_row(mask)
    if longest is not None and longest.length > length:
        raise ValueError(
            f"{told_of(longest)}; length is {length}. For the first positions of longer rows give q_offset=0"
        )


def _said(names: Sequence[str]) -> str:
    return " × ".join(names)


def _checked_heads(heads: Any) -> tuple[int, int]:
    pair = (heads, heads) if is_number(heads) else tuple(heads) if isinstance(heads, (tuple, list)) else ()
    if len(pair) != 2 or not all(is_number(number) and as_int(number) >= 1 for number in pair):
        raise ValueError(f"heads are those of queries and of keys, (32, 8) say, or one number; got {brief(heads)}")
    of_queries, of_keys = map(as_int, pair)
    if of_queries % of_keys:
        raise ValueError(f"the query heads are a multiple of the key heads; got {of_queries} and {of_keys}")
    return of_queries, of_keys


def _checked_strategy(strategy: Any, dims: int) -> list[tuple[StrategyName, ...]]:
    """The ways to consider: names for each dimension of the mesh."""
    if strategy == "auto":
        if dims == 1:
            return [(name,) for name in NAMES]
        return [way for rows in ("gather", "needed") for way in itertools.permutations(("heads", rows))]
    names = (strategy,) if isinstance(strategy, str) else tuple(strategy) if isinstance(strategy, (tuple, list)) else ()
    if len(names) != dims or any(name not in NAMES for name in names):
        raise ValueError(
            f'strategy is "auto", or one of {", ".join(NAMES)} for each of the {dims} dimensions of the mesh; '
            f"got {brief(strategy)}"
        )
    return [names]


def _planned(asked: Asked, mesh: DeviceMesh) -> Plan:
    chosen = min(asked.schemes, key=lambda one: one.seconds(asked.tiles.unit, asked.sizes))
    device, place, unit, sizes = _device_of(mesh), _place(chosen, mesh), asked.tiles.unit, asked.sizes
    layout = layout_of(chosen.assignment, sizes.length, unit, chosen.rows, chosen.parts)
    part = part_of(
        asked.mask, asked.tiles.marks, chosen, layout, place, q_offset=asked.q_offset, unit=unit, device=device
    )
    own = layout.of_rank(place.group, place.part)
    whole = Whole(_gathering_order(place), sent_to(layout.places(), device), sent_to(own, device))
    report = Report(chosen, asked.schemes, asked.refused, asked.named, unit, sizes)
    return Plan(
        part.mask, mesh, sizes.length, chosen.rows, whole.positions, sent_to(own < 0, device),
        chosen, sizes, asked.tiles.batch, _hidden(part.mask, sizes.length, whole.positions), part, whole, report,
    )  # fmt: skip


def _hidden(mask: Mask, length: int, positions: Tensor) -> Hidden | None:
    """Padding of a mask at a rank's rows."""
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
