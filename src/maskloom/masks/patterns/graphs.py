"""Masks of graphs: they hold only the edges, never a table of all pairs."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from maskloom.core.checks import count, integers
from maskloom.core.words import what_it_is
from maskloom.masks.algebra import Mask, mask_dataclass
from maskloom.masks.lookups import among_first, at
from maskloom.masks.padded import PaddingMask, Position, entries_of, positions_from

__all__ = ["from_edges"]

BLOCK = 128
"""Queries, and keys, of a block. The mask stores which blocks have an edge, so that empty blocks are skipped."""


@mask_dataclass
class FromEdges(PaddingMask):
    """See `from_edges`.

    Attributes:
        keys: int32 (edges,), the keys of each query together, ascending.
        begin, end: int32 (Q,) or (B, Q), where the keys of each query start and end in ``keys``.
        occupied: bool (query blocks, key blocks) or (B, query blocks, key blocks): whether the block has an edge.
        steps: the number of steps of the binary search in the keys of one query.
    """

    keys: Tensor
    begin: Tensor
    end: Tensor
    occupied: Tensor
    steps: int
    searches: ClassVar[bool] = True  # Triton has not enough shared memory for the search
    signed = Mask.signed  # __call__ itself handles negative positions

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self._in_occupied(b, q_idx, kv_idx) & self._is_edge(b, q_idx, kv_idx)

    def _in_occupied(self, b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        rows, columns = self.occupied.shape[-2:]
        row, column = q_idx // BLOCK, kv_idx // BLOCK
        inside = among_first(row, rows) & among_first(column, columns)
        row, column = row.clamp(0, rows - 1), column.clamp(0, columns - 1)
        return inside & (self.occupied[row, column] if self.occupied.ndim == 2 else self.occupied[b, row, column])

    def _is_edge(self, b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """Binary search in the query's keys: ``before`` is the last place that is known to hold a smaller key."""
        query = q_idx.clamp(0, self.begin.shape[-1] - 1)
        begin, end = at(self.begin, b, query), at(self.end, b, query)
        before, last = begin - 1, self.keys.shape[0] - 1
        for step in reversed(range(self.steps)):
            place = before + 2**step
            smaller = (place < end) & (self.keys[place.clamp(0, last)] < kv_idx)
            before = torch.where(smaller, place, before)
        found = self.keys[(before + 1).clamp(0, last)] == kv_idx
        return (before + 1 < end) & found & among_first(q_idx, self.begin.shape[-1])

    def __repr__(self) -> str:
        return f"from_edges(int32{list(self.keys.shape)}, int32{list(self.keys.shape)})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        begins = torch.atleast_2d(self.begin)
        seen = torch.zeros(len(begins), self.occupied.shape[-1] * BLOCK, dtype=torch.bool, device=self.keys.device)
        places = torch.arange(len(self.keys), dtype=torch.int32, device=self.keys.device)
        rows = torch.searchsorted(begins[:, 0].contiguous(), places, right=True) - 1
        return _unseen(seen.index_put((rows, self.keys.long().clamp(min=0)), self.keys >= 0), first, kv_len)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return _unseen(torch.atleast_2d(self.end > self.begin), first, q_len)


def _unseen(seen: Tensor, first: Position, length: int) -> Tensor:
    """Which of ``length`` positions are False in a table (B or 1, L), or beyond its end: bool (B or 1, length)."""
    positions = positions_from(first, length, seen.device)
    return ~(among_first(positions, seen.shape[1]) & entries_of(seen, positions.clamp(0, seen.shape[1] - 1)))


def from_edges(
    q_idx: Tensor | Sequence[int] | Sequence[Sequence[int]],
    kv_idx: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    q_len: int | None = None,
    kv_len: int | None = None,
) -> FromEdges:
    """A graph: query ``q_idx[e]`` sees key ``kv_idx[e]`` for each edge e, and nothing else.

    ::

        from_edges([0, 1, 2, 2], [0, 0, 1, 2])   k0 k1 k2
                                             q0   x
                                             q1   x
                                             q2      x  x

    Edges may come in any order, repeats allowed. The mask stores the keys of each query, sorted, 4 bytes per edge, and
    which blocks of 128 x 128 have an edge. A kernel finds a key by binary search among the keys of its query, in
    log2(most keys of a query) steps. If the table of all pairs fits into memory, `from_dense` of it is faster. If
    neighbouring nodes have near numbers (after a breadth-first search, for example), more tiles can be skipped. The
    arguments are copied: later writes into them have no effect.

    In PyTorch Geometric's ``edge_index`` a node gets messages from its source: ``source, target = edge_index``, and
    then ``from_edges(target, source)``. Add ``| window(back=0)`` for nodes that see themselves. Source: graph
    attention, Velickovic et al. 2018 (GAT); Shirzad et al. 2023 (Exphormer).

    Args:
        q_idx: integers (edges,), or (B, edges) for separate edges in each batch row, with -1 on both sides for no edge.
            Or, without kv_idx, a sparse tensor (Q, K) or (B, Q, K) of any layout: its nonzero entries are edges.
        kv_idx: integers of the same shape.
        q_len, kv_len: the lengths; by default the largest number plus 1, or the size of the sparse tensor. Later
            queries see nothing.

    Raises:
        TypeError: not integers, a single tensor that is not sparse. ValueError: shapes that differ, a negative number
            except -1 on both sides, or one beyond a length. The edges are read, which waits for a GPU; torch.compile
            cannot trace this.
    """
    edges = _of_sparse(q_idx) if kv_idx is None else _listed(q_idx, kv_idx)
    queries = _length("q_len", q_len, edges.q_idx, edges.shape[0])
    keys = _length("kv_len", kv_len, edges.kv_idx, edges.shape[1])
    rows = 1 if edges.batch is None else edges.batch
    order = ((edges.row * queries + edges.q_idx) * keys + edges.kv_idx).sort().values
    of_query, found = order // keys, (order % keys).to(torch.int32)
    numbers = torch.arange(rows * queries, device=order.device)
    begin, end = (torch.searchsorted(of_query, numbers, right=right).to(torch.int32) for right in (False, True))
    occupied = torch.zeros(rows, -(-queries // BLOCK), -(-keys // BLOCK), dtype=torch.bool, device=order.device)
    occupied[edges.row, edges.q_idx // BLOCK, edges.kv_idx // BLOCK] = True
    begin, end = begin.view(rows, -1), end.view(rows, -1)
    if edges.batch is None:
        begin, end, occupied = begin[0], end[0], occupied[0]
    held = found if len(found) else found.new_full((1,), -1)
    return FromEdges(held, begin, end, occupied, int((end - begin).max()).bit_length())


class _Edges(NamedTuple):
    """A list of edges: int64 (edges,) each. ``batch``: None if all rows have the same edges; ``shape``: (Q, K) if known."""

    row: Tensor
    q_idx: Tensor
    kv_idx: Tensor
    batch: int | None
    shape: tuple[int | None, int | None]


def _listed(q_idx: Any, kv_idx: Any) -> _Edges:
    queries, keys = integers("q_idx", q_idx).long(), integers("kv_idx", kv_idx).long()
    if queries.shape != keys.shape or queries.ndim not in (1, 2):
        raise ValueError(
            f"q_idx and kv_idx have one shape, (edges,) or (B, edges); got {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    is_edge = (queries >= 0) & (keys >= 0)
    wrong = ~is_edge & ~((queries == -1) & (keys == -1) & (queries.ndim == 2))
    if bool(wrong.any()):
        pair = int(queries[wrong][0]), int(keys[wrong][0])
        raise ValueError(f"edges are pairs of positions, from 0 on (or in rows (-1, -1) for none); got {pair}")
    if queries.ndim == 1:
        return _Edges(torch.zeros_like(queries), queries, keys, None, (None, None))
    return _Edges(is_edge.nonzero()[:, 0], queries[is_edge], keys[is_edge], len(queries), (None, None))


def _of_sparse(matrix: Any) -> _Edges:
    if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
        raise TypeError(f"from_edges takes q_idx and kv_idx, or a sparse tensor alone; got {what_it_is(matrix)} alone")
    if matrix.ndim not in (2, 3) or matrix.dense_dim():
        raise ValueError(f"a sparse tensor of edges has shape (Q, K) or (B, Q, K); got {tuple(matrix.shape)}")
    entries = (matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()).detach().coalesce()
    indices = entries.indices()[:, entries.values() != 0]
    row = indices[0] if matrix.ndim == 3 else torch.zeros_like(indices[0])
    queries, keys = matrix.shape[-2:]
    return _Edges(row, indices[-2], indices[-1], matrix.shape[0] if matrix.ndim == 3 else None, (queries, keys))


def _length(name: str, length: int | None, positions: Tensor, known: int | None) -> int:
    least = int(positions.max()) + 1 if positions.numel() else 1
    checked = max(known or 1, least) if length is None else count(name, length, least=1)
    if checked < least:
        raise ValueError(f"{name} is {checked}, and an edge has position {least - 1}")
    return checked
