"""Rules of reading tables by indices."""

from typing import Any

import torch
from torch import Tensor

from maskloom.program.program import Op
from maskloom.show.explorer.instructions import NotInThePageError
from maskloom.show.explorer.lowering import Entry, Lowering, Slots, Table

_BOOL, _INT64 = torch.bool, torch.int64
MOST_CHOICES = 256
"""Maximum number of values, computed for each pair, that are chosen from by an index."""


def indexed(low: Lowering, step: Op) -> list[Entry]:
    """``table[i, j, ...]``: a table keeps the indices, and is read where a number is needed."""
    table, given = step.args
    shape = low.program.meta(table).shape
    indices = [*given, *[None] * (len(shape) - len(given))]
    read = [dim for dim, index in enumerate(indices) if index is not None]
    parts = [low.slots(indices[dim]) for dim in read]
    if any(part.dtype in (_BOOL, torch.uint8) for part in parts):
        raise NotInThePageError("it reads a table by bools or by uint8")
    places = torch.broadcast_tensors(*(part.slots for part in parts))
    entry = low.entry(table)
    if places[0].ndim == 0 and isinstance(entry, Table):
        return [_further(entry, read, [int(place) for place in places])]
    return [_read_each(low, table, read, list(places))]


def _further(entry: Table, read: list[int], slots: list[int]) -> Table:
    """The table with more of its dimensions read by indices."""
    lead = len(entry.indices)
    rest = [dim for dim in range(entry.table.ndim - lead) if dim not in read]
    order = [*range(lead), *(lead + dim for dim in read), *(lead + dim for dim in rest)]
    return Table(entry.table.permute(order), (*entry.indices, *slots))


def _read_each(low: Lowering, table: Any, read: list[int], places: list[Tensor]) -> Slots:
    """A read for each entry of the indices, placed as advanced indexing does."""
    found = [
        _read_one(low, table, read, list(slots)) for slots in zip(*(p.flatten().tolist() for p in places), strict=True)
    ]
    shape, rank = places[0].shape, places[0].ndim
    slots = torch.stack([one.slots for one in found]).reshape((*shape, *found[0].slots.shape))
    before = read[0] if read == list(range(read[0], read[-1] + 1)) else 0
    slots = slots.movedim(tuple(range(rank, rank + before)), tuple(range(before))) if before and rank else slots
    return Slots(slots, found[0].dtype)


def _read_one(low: Lowering, table: Any, read: list[int], slots: list[int]) -> Slots:
    entry = low.entry(table)
    if isinstance(entry, Table):
        return low.read(_further(entry, read, slots))
    rest = [dim for dim in range(entry.slots.ndim) if dim not in read]
    return _chosen(low, Slots(entry.slots.permute(*read, *rest), entry.dtype), slots)


def _chosen(low: Lowering, value: Slots, slots: list[int]) -> Slots:
    """Entries of a value that is computed for each pair, by indices along its first dimensions."""
    if not slots:
        return value
    if len(value.slots) > MOST_CHOICES:
        raise NotInThePageError(f"it reads {len(value.slots)} values that it computes for one pair")
    index = Slots(torch.tensor(slots[0]), _INT64)
    inner = [_chosen(low, Slots(one, value.dtype), slots[1:]) for one in value.slots]
    return low.each("choose", value.dtype, index, *inner, result=value.dtype)
