"""Masks that show each query one range of keys, of which single ones, or those of other ids, may be hidden: what their classes alone say.

It is plain arithmetic of tensors, which torch can trace: no program is recorded, and no value is read.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.masks.algebra import And, Everything
from maskloom.masks.lookups import at
from maskloom.masks.patterns.packed.cross_documents import CrossDocuments, PackedCrossDocuments
from maskloom.masks.patterns.packed.segments import (
    CountedDocuments,
    Documents,
    FromDocumentStart,
    FromRunStart,
    PackedDocuments,
)
from maskloom.masks.patterns.padding import KeyPadding, Lengths, Padding, QueryLengths, Real
from maskloom.masks.patterns.relative import Anticausal, Causal, Window


class Places(NamedTuple):
    """Indices of the elements of a mask: b (B, 1), q_idx (1, Q) and kv_idx (1, K)."""

    b: Tensor
    q_idx: Tensor
    kv_idx: Tensor


class Shown(NamedTuple):
    """What each query sees: the keys from ``first`` to before ``end`` that are among ``keys`` and have its ``ids``.

    Attributes:
        first, end: numbers, or integers that broadcast to (B, Q). No key where ``end`` is not above ``first``.
        keys: bool, broadcasts to (B, K); None for all.
        ids: of queries, integers (B or 1, Q), and of keys, (B or 1, K), in pairs: a query sees the keys that have its id. A negative one
            sees nothing, and nothing sees it.
    """

    first: Tensor | int
    end: Tensor | int
    keys: Tensor | None = None
    ids: tuple[tuple[Tensor, Tensor], ...] = ()


def shown_keys(mask: Any, places: Places) -> Shown | None:
    """What the queries of a mask see, in those terms; None if its class does not say so."""
    if isinstance(mask, And):
        parts = [shown_keys(part, places) for part in mask.parts]
        return None if any(part is None for part in parts) else reduce(_both, parts)  # type: ignore[arg-type]
    find = _BY_CLASS.get(type(mask))
    if find is None:
        return None
    found = find(mask, places)
    return found._replace(first=_wide(found.first), end=_wide(found.end))


def _both(one: Shown, other: Shown) -> Shown:
    keys = one.keys if other.keys is None else other.keys if one.keys is None else one.keys & other.keys
    return Shown(_most(one.first, other.first), -_most(-one.end, -other.end), keys, one.ids + other.ids)


def _wide(places: Tensor | int) -> Tensor | int:
    """In a dtype in which they can be negated, and compared with any number of keys. Lengths may be uint8 or int8."""
    narrow = isinstance(places, Tensor) and places.dtype not in (torch.int64, torch.int32)
    return places.long() if narrow else places  # type: ignore[union-attr]


def _most(one: Tensor | int, other: Tensor | int) -> Tensor | int:
    """The larger; 0 is none of the numbers, and no key lies before it."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.maximum(one, other)
    if isinstance(other, Tensor):
        one, other = other, one
    return one.clamp(min=other) if isinstance(one, Tensor) else max(one, other)


def _lengths(mask: Lengths, places: Places) -> Shown:
    b, q_idx, _ = places
    return Shown(0, torch.where(q_idx < mask.q_lens[b], mask.kv_lens[b], 0))


def _query_lengths(mask: QueryLengths, places: Places) -> Shown:
    b, q_idx, kv_idx = places
    return Shown(0, torch.where(q_idx < mask.lens[b], kv_idx.shape[1], 0))


def _of_tables(queries: Tensor, keys: Tensor, places: Places) -> Shown:
    """Of flags for each query and key, (B, L): which are real."""
    b, q_idx, kv_idx = places
    return Shown(0, torch.where(queries[b, q_idx], kv_idx.shape[1], 0), keys[b, kv_idx])


def _packed(mask: PackedDocuments, places: Places) -> Shown:
    if mask.ids.ndim > 1:
        return _in_runs(mask, places)
    ids = mask.ids[places.q_idx]
    offsets, document = mask.offsets, ids.clamp(min=0)
    return Shown(offsets[document], torch.where(ids < 0, 0, offsets[document + 1]))


def _in_runs(mask: PackedDocuments | CountedDocuments, places: Places) -> Shown:
    """Documents whose positions follow one another, and whose ids rise: from the first such id to the last.

    They are searched for, in all places at once: a running maximum of a row is one program's work in the kernels that torch makes.
    """
    ids = torch.atleast_2d(mask.ids)
    rising = torch.where(ids < 0, torch.iinfo(ids.dtype).max, ids)  # padding is at the end
    rows = _rows_of(mask.ids, places)
    own = at(rising, rows, places.q_idx).contiguous()
    first, end = (torch.searchsorted(rising, own, right=right) for right in (False, True))
    return Shown(first, torch.where(at(ids, rows, places.q_idx) < 0, 0, end))


def _rows_of(table: Tensor, places: Places) -> Tensor:
    """The batch rows of a table that has them, (B, 1); the first of all others, (1, 1)."""
    return places.b if table.ndim > 1 else torch.zeros_like(places.b[:1])


def _by_ids(mask: Documents, places: Places) -> Shown:
    return _of_ids(mask.ids, mask.ids, places)


def _across(mask: CrossDocuments | PackedCrossDocuments, places: Places) -> Shown:
    return _of_ids(mask.ids, mask.kv_ids, places)


def _of_ids(ids: Tensor, kv_ids: Tensor, places: Places) -> Shown:
    queries = at(torch.atleast_2d(ids), _rows_of(ids, places), places.q_idx)
    keys = at(torch.atleast_2d(kv_ids), _rows_of(kv_ids, places), places.kv_idx)
    return Shown(0, places.kv_idx.shape[1], None, ((queries, keys),))


_BY_CLASS: dict[type, Callable[[Any, Places], Shown]] = {
    Everything: lambda mask, places: Shown(0, places.kv_idx.shape[1]),
    Causal: lambda mask, places: Shown(0, places.q_idx + 1),
    Anticausal: lambda mask, places: Shown(places.q_idx, places.kv_idx.shape[1]),
    Window: lambda mask, places: Shown(places.q_idx - mask.back, places.q_idx + mask.ahead + 1),
    Lengths: _lengths,
    QueryLengths: _query_lengths,
    Padding: lambda mask, places: _of_tables(~mask.q_pads, ~mask.kv_pads, places),
    Real: lambda mask, places: _of_tables(mask.q_real, mask.kv_real, places),
    KeyPadding: lambda mask, places: Shown(0, places.kv_idx.shape[1], ~mask.pads[places.b, places.kv_idx]),
    PackedDocuments: _packed,
    CountedDocuments: _in_runs,
    Documents: _by_ids,
    CrossDocuments: _across,
    PackedCrossDocuments: _across,
    FromRunStart: lambda mask, places: Shown(
        at(mask.start, _rows_of(mask.start, places), places.q_idx), places.kv_idx.shape[1]
    ),
    FromDocumentStart: lambda mask, places: Shown(mask.start[places.q_idx], places.kv_idx.shape[1]),
}
