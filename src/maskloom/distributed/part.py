"""One rank's part of a plan: what it gets from others, and its masks."""

import dataclasses
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core import captures
from maskloom.core.torch_state import counting_writes
from maskloom.distributed.coordinates import Coordinates, Run, TwoRuns, placed_mask
from maskloom.distributed.exchange.collectives import Gathering, by_heads, by_rows, fetched, gathered
from maskloom.distributed.exchange.fetching import Fetching, fetching_of
from maskloom.distributed.sharing.layout import Layout, Runs, positions_of, runs_of
from maskloom.distributed.sharing.scheme import Scheme
from maskloom.masks.algebra import Mask, nothing
from maskloom.masks.dense import needed_sizes
from maskloom.masks.patterns.relative import Window
from maskloom.masks.simplify import simplify

Positions = Tensor | Runs | None


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


class Overlap(NamedTuple):
    """Attention in two parts: to a group's own keys, and to those of others, which come in meanwhile.

    Attributes:
        near, far: the masks of the two.
        places: int64, where the keys of others lie among the rows of all groups.
    """

    near: "Part"
    far: "Part"
    places: Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """What one rank does.

    Attributes:
        place: where it is.
        rows: of each rank.
        queries: real ones of its group, the first of its rows.
        exchange: how keys and values of other groups come in; None of one group.
        positions: q_positions and kv_positions of `Coordinates`.
        overlap: how to attend while keys come in; None where they come in first.
    """

    mask: Mask
    marks: frozenset[str]
    place: Place
    parts: int
    rows: int
    queries: int
    exchange: Gathering | Fetching | None
    positions: tuple[Positions, Positions]
    device: torch.device
    overlap: Overlap | None = None
    _masks: dict[tuple[int, int | None, int | None], Masks] = field(default_factory=dict)
    _blocks: dict[Hashable, BlockMask] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """The keys that it attends to."""
        if isinstance(self.exchange, Fetching):
            return self.exchange.keys
        return self.queries if self.exchange is None else self.exchange.length

    def masks(self, batch: int, b_offset: int | None, h_offset: int | None) -> Masks:
        """The masks of so many batch rows, and of heads, from these on; made once, so that what attention builds is kept with them."""
        found = self._masks.get((batch, b_offset, h_offset))
        if found is None:
            found = self._masks[batch, b_offset, h_offset] = self._made(batch, b_offset, h_offset)
        return found

    @counting_writes
    def _made(self, batch: int, b_offset: int | None, h_offset: int | None) -> Masks:
        queries, keys = self.positions
        at = Coordinates(self._in_rows(queries, batch), self._in_rows(keys, batch), b_offset, h_offset)
        if not self.queries:
            return Masks(nothing, nothing, at)
        needed = at._replace(
            b_offset=b_offset if "b" in self.marks else None, h_offset=h_offset if "h" in self.marks else None
        )
        window = self._moved_window()
        return Masks(placed_mask(self.mask, needed) if window is None else window, placed_mask(self.mask, at), at)

    def _moved_window(self) -> Mask | None:
        """A window as its indices have it: it depends on distances alone, so nothing need be added in a kernel. None for others."""
        queries, keys = self.positions
        if not (isinstance(self.mask, Window) and isinstance(queries, Runs) and isinstance(keys, Runs)):
            return None
        if not (queries.is_one and keys.is_one):
            return None
        further = queries.first - keys.first
        return Window(self.mask.back - further, self.mask.ahead + further)

    def _in_rows(self, positions: Positions, batch: int) -> Tensor | Run | TwoRuns | None:
        """Positions as a mask has them.

        Those of a mask with tensors always have the form of two runs: with other tensors, of the next documents say, they may be two,
        and the kernel is compiled for the form. Others are the same each time.
        """
        if not isinstance(positions, Runs):
            return positions
        first, split, second = (
            torch.full((batch,), number, dtype=torch.int32, device=self.device) for number in positions
        )
        if positions.is_one and not captures.tensors(self.mask):
            return Run(first)
        return TwoRuns(first, split, second)

    def ready(self, mask: Mask, query: Tensor, key: Tensor) -> Mask | BlockMask:
        """The mask as `attend` gets it: of what holds a function, which it would build at every call, the block mask, built once."""
        if not captures.may_change(mask):
            return mask
        from maskloom.blocks.build import block_mask  # the chain of imports would be too long

        (batch, heads, q_len, _), kv_len, device = query.shape, key.shape[2], query.device
        sizes = id(mask), batch, heads, q_len, kv_len  # the masks are kept here
        found = self._blocks.get(sizes)
        if found is None:
            rows, columns = needed_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=device)
            found = block_mask(mask, q_len, kv_len, batch=rows, heads=columns, device=device)
            self._blocks[sizes] = found
        return found

    def heads_of(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """This part's heads of the rows of its group: queries that are real, one at least, keys and values of all rows."""
        if self.place.by_heads is not None:
            key, value = (_for_parts(tensor, query.shape[1], key.shape[1], self.parts) for tensor in (key, value))
            query, key, value = by_heads([query, key, value], self.place.by_heads)
        return query[:, :, : max(1, self.queries)], key, value

    def alike(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors without values, like those that this part attends with: of the shapes that `heads_of` and `keys_for` give."""
        share = query.shape[1] // self.parts
        kv_share = share // _shared_by(query.shape[1], key.shape[1], self.parts) if self.parts > 1 else key.shape[1]
        sizes = (share, max(1, self.queries)), (kv_share, self.keys), (kv_share, self.keys)
        query, key, value = (
            tensor.detach()
            .new_zeros(())
            .requires_grad_(tensor.requires_grad)
            .expand(len(tensor), *size, tensor.shape[3])
            for tensor, size in zip((query, key, value), sizes, strict=True)
        )
        return query, key, value

    def keys_for(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that its queries may need, (B, H, K, D), from those of its group's rows."""
        if self.exchange is None or self.place.by_rows is None:
            return key[:, :, : self.queries], value[:, :, : self.queries]
        if isinstance(self.exchange, Gathering):
            key, value = gathered([key, value], self.exchange, self.place.by_rows)
        else:
            key, value = fetched([key, value], self.exchange, self.place.by_rows)
        return key, value

    def back(self, out: Tensor, fill: float = 0.0) -> Tensor:
        """What came of this rank's queries, (B, H, Q, E), as rows of all heads: (B, heads, rows, E)."""
        empty = self.rows * self.parts - self.queries
        if empty:
            out = torch.nn.functional.pad(out[:, :, : self.queries], (0, 0, 0, empty), value=fill)
        return out if self.place.by_heads is None else by_rows([out], self.place.by_heads)[0]


def _for_parts(tensor: Tensor, heads: int, kv_heads: int, parts: int) -> Tensor:
    """Keys or values with as many heads for each part of the query heads: some are repeated where they are shared."""
    serves, step = heads // kv_heads, _shared_by(heads, kv_heads, parts)
    own = [head // serves for head in range(0, heads, step)]
    if own == list(range(kv_heads)):
        return tensor
    return torch.cat([tensor[:, head : head + 1] for head in own], 1)  # an index from the host would wait for a GPU


def _shared_by(heads: int, kv_heads: int, parts: int) -> int:
    """How many query heads have one key head, in every part."""
    return math.gcd(heads // kv_heads, heads // parts)


def part_of(
    mask: Mask,
    marks: frozenset[str],
    scheme: Scheme,
    layout: Layout,
    place: Place,
    *,
    q_offset: int,
    unit: int,
    device: torch.device,
    overlap: bool = False,
) -> Part:
    """What the rank at a place does.

    Args:
        mask: of the whole, with tensors on the CPU.
        marks: the indices that it depends on.
        layout: that of the scheme.
        q_offset: the position of the first query in the mask.
        unit: positions in a tile.
        overlap: whether to attend while keys come in, where they are gathered.
    """
    own = layout.positions[place.group]
    in_steps = bool(
        captures.tensors(mask)
    )  # of the next batch, the mask's values and so the keys that are needed may be others
    exchange, keys = _exchange(scheme, layout, place.group, unit, device, in_steps)
    on_device = simplify(captures.moved(mask, lambda tensor: sent_to(tensor.clone(), device)))
    positions = _positions_of_queries(scheme, own, place.group, q_offset, unit, device), keys
    part = Part(on_device, marks, place, scheme.parts, scheme.rows, len(own), exchange, positions, device)
    return dataclasses.replace(part, overlap=_overlap(part, layout, device), _masks={}, _blocks={}) if overlap else part


def _positions_of_queries(
    scheme: Scheme, own: Tensor, group: int, q_offset: int, unit: int, device: torch.device
) -> Positions:
    """The positions of a group's rows; runs only where they always are: a mask's kernel would change with its values."""
    if scheme.groups == 1 and not q_offset:
        return None
    if scheme.foreign is not None and scheme.assignment is not None:
        runs = runs_of(torch.tensor(scheme.assignment.tiles[group], dtype=torch.int64), unit)
        if runs is not None:
            return runs.moved(q_offset)
    return _placed(own, device) + q_offset


def _overlap(part: Part, layout: Layout, device: torch.device) -> Overlap | None:
    """Attention in two parts, where keys are gathered and every group has some."""
    if not isinstance(part.exchange, Gathering) or not all(map(len, layout.positions)):
        return None
    own = layout.positions[part.place.group]
    others = torch.cat([held for group, held in enumerate(layout.positions) if group != part.place.group]).sort().values
    near, far = (
        dataclasses.replace(part, positions=(part.positions[0], _placed(keys, device)), _masks={}, _blocks={})
        for keys in (own, others)
    )
    return Overlap(near, far, sent_to(layout.places()[others], device))


def _exchange(
    scheme: Scheme, layout: Layout, group: int, unit: int, device: torch.device, in_steps: bool
) -> tuple[Gathering | Fetching | None, Positions]:
    """How a group gets keys of others, and the positions of all its keys, None where these are in order."""
    if scheme.groups == 1:
        return None, None
    if scheme.foreign is not None:
        assert scheme.assignment is not None
        tiles = scheme.assignment.tiles
        exchange, keys = fetching_of(tiles, scheme.foreign, group, unit, layout.length, device, in_steps=in_steps)
        return exchange, runs_of(keys, unit) or _placed(positions_of(keys, unit, layout.length), device)
    places = layout.places()
    in_order = bool((places == torch.arange(len(places))).all())
    return Gathering(None if in_order else sent_to(places, device), len(places)), None


def _placed(positions: Tensor, device: torch.device) -> Tensor:
    found = positions if len(positions) else positions.new_zeros(1)
    return sent_to(found.to(torch.int32), device)


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, which is not waited for."""
    return tensor.to(device, non_blocking=True)
