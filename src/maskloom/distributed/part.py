"""One rank's part of a plan: what it gets from others, and its masks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from maskloom.core import captures
from maskloom.distributed.collectives import Fetching, Gathering, by_heads, by_rows, fetched, gathered
from maskloom.distributed.coordinates import Coordinates, placed_mask
from maskloom.distributed.schemes import Scheme
from maskloom.masks.algebra import Mask, nothing
from maskloom.masks.simplify import simplify


class Place(NamedTuple):
    """Where a rank is in a scheme.

    Attributes:
        group, part: of its rows, and of the heads in its group.
        by_heads, by_rows: process groups of the ranks of its group, and of those with its part; None of one rank.
    """

    group: int
    part: int
    by_heads: ProcessGroup | None
    by_rows: ProcessGroup | None


class Masks(NamedTuple):
    """The masks of some heads and batch rows.

    Attributes:
        plain: the mask of the rank's queries and keys.
        placing: the same, which says where they lie: for dropout, which goes by that.
        at: where they lie.
    """

    plain: Mask
    placing: Mask
    at: Coordinates


@dataclass(frozen=True, eq=False)
class Part:
    """What one rank does.

    Attributes:
        place: where it is.
        rows: of each rank.
        queries: real ones of its group, the first of its rows.
        exchange: how keys and values of other groups come in; None of one group.
        positions: q_positions and kv_positions of `Coordinates`.
    """

    mask: Mask
    marks: frozenset[str]
    place: Place
    parts: int
    rows: int
    queries: int
    exchange: Gathering | Fetching | None
    positions: tuple[Tensor | None, Tensor | None]
    _masks: dict[tuple[int | None, int | None], Masks] = field(default_factory=dict)

    def masks(self, b_offset: int | None, h_offset: int | None) -> Masks:
        """The masks of heads and batch rows from these on; made once, so that what attention builds is kept with them."""
        found = self._masks.get((b_offset, h_offset))
        if found is None:
            found = self._masks[b_offset, h_offset] = self._made(b_offset, h_offset)
        return found

    def _made(self, b_offset: int | None, h_offset: int | None) -> Masks:
        at = Coordinates(*self.positions, b_offset, h_offset)
        if not self.queries:
            return Masks(nothing, nothing, at)
        needed = at._replace(
            b_offset=b_offset if "b" in self.marks else None, h_offset=h_offset if "h" in self.marks else None
        )
        return Masks(placed_mask(self.mask, needed), placed_mask(self.mask, at), at)

    def brought(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries that this rank attends with, and the keys and values that they may need: (B, H, Q or K, D)."""
        if self.place.by_heads is not None:
            key, value = (_for_parts(tensor, query.shape[1], key.shape[1], self.parts) for tensor in (key, value))
            query, key, value = by_heads([query, key, value], self.place.by_heads)
        query = query[:, :, : max(1, self.queries)]
        if isinstance(self.exchange, Gathering):
            key, value = _over(gathered, self)([key, value])
        elif self.exchange is not None:
            key, value = _over(fetched, self)([key, value])
        else:
            key, value = key[:, :, : self.queries], value[:, :, : self.queries]
        return query, key, value

    def back(self, out: Tensor, fill: float = 0.0) -> Tensor:
        """What came of this rank's queries, (B, H, Q, E), as rows of all heads: (B, heads, rows, E)."""
        rows = self.rows * self.parts
        out = torch.nn.functional.pad(out[:, :, : self.queries], (0, 0, 0, rows - self.queries), value=fill)
        return out if self.place.by_heads is None else by_rows([out], self.place.by_heads)[0]


def _over(exchange: Callable[..., tuple[Tensor, ...]], part: Part) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    return lambda tensors: exchange(tensors, part.exchange, part.place.by_rows)


def _for_parts(tensor: Tensor, heads: int, kv_heads: int, parts: int) -> Tensor:
    """Keys or values with as many heads for each part of the query heads: some are repeated where they are shared."""
    serves, share = heads // kv_heads, heads // parts
    step = math.gcd(serves, share)  # query heads that have one key head in every part
    own = [head // serves for head in range(0, heads, step)]
    if own == list(range(kv_heads)):
        return tensor
    return torch.cat([tensor[:, head : head + 1] for head in own], 1)  # an index from the host would wait for a GPU


def part_of(
    mask: Mask, marks: frozenset[str], q_offset: int, scheme: Scheme, place: Place, device: torch.device
) -> Part:
    """What the rank at a place does.

    Args:
        mask: of the whole, with tensors on the CPU.
        marks: the indices that it depends on.
        q_offset: the position of the first query in the mask.
    """
    exchange, (q_positions, kv_positions) = _exchange(scheme, place.group, device)
    if q_offset:
        q_positions = _placed(torch.arange(scheme.layout.length), device) if q_positions is None else q_positions
        q_positions = q_positions + q_offset
    on_device = simplify(captures.moved(mask, lambda tensor: sent_to(tensor.clone(), device)))
    queries = len(scheme.layout.positions[place.group])
    positions = q_positions, kv_positions
    return Part(on_device, marks, place, scheme.parts, scheme.layout.rows, queries, exchange, positions)


def _exchange(
    scheme: Scheme, group: int, device: torch.device
) -> tuple[Gathering | Fetching | None, tuple[Tensor | None, Tensor | None]]:
    """How a group gets keys of others, and the positions of its queries and keys: int32 on the device."""
    if scheme.groups == 1:
        return None, (None, None)
    if scheme.fetched is None:
        places = scheme.layout.places()
        in_order = bool((places == torch.arange(len(places))).all())
        how = Gathering(None if in_order else sent_to(places, device), len(places))
        return how, (_placed(scheme.layout.positions[group], device), None)
    return _fetching(scheme.layout.positions, scheme.fetched, group, device)


def _fetching(
    held: tuple[Tensor, ...], fetched: tuple[Tensor, ...], group: int, device: torch.device
) -> tuple[Fetching, tuple[Tensor, Tensor]]:
    own, wanted = held[group], fetched[group]
    sent = tuple(sent_to(torch.searchsorted(own, other[torch.isin(other, own)]), device) for other in fetched)
    received = tuple(int(torch.isin(wanted, other).sum()) for other in held)
    before = sum(received[:group])
    kept = own if len(own) else own.new_zeros(1)  # one row at least: attention takes no empty tensors
    keys = torch.cat([wanted[:before], kept, wanted[before:]])
    how = Fetching(sent, received, len(kept), group, any(map(len, fetched)))
    return how, (_placed(own, device), _placed(keys, device))


def _placed(positions: Tensor, device: torch.device) -> Tensor:
    found = positions if len(positions) else positions.new_zeros(1)
    return sent_to(found.to(torch.int32), device)


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, which is not waited for."""
    return tensor.to(device, non_blocking=True)
