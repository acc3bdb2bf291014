"""Attention cut into bands: some queries of some batch rows and heads, and the keys that these see.

A band begins at the first key that one of its queries sees, and ends at the last. What the mask hides outside is never
computed: above the diagonal of `causal`, say, and before a window.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.tile_states import FULL, SKIPPED, tile_states
from maskloom.core.symbols import ceil_div

MOST = 2**20
"""Scores of one band, at most, if one query of one key-value head has no more: 4 MiB in float32."""

_FEW = 64  # queries of a band at least: with fewer, products of matrices are slow
_MANY = 2**17  # scores of one head up to which a band gets more queries: with more, little is skipped


class Sizes(NamedTuple):
    """B, Hkv, H / Hkv, Q and K."""

    batch: int
    key_heads: int
    group: int
    q_len: int
    kv_len: int


class Band(NamedTuple):
    """A part of all scores.

    Attributes:
        heads: of keys and values.
        hidden: the first and the last of ``keys``, counted from their first, that some query does not see; None if
            all see all.
    """

    batch: slice
    heads: slice
    queries: slice
    keys: slice
    hidden: slice | None


Seen = tuple[Tensor, Tensor]
"""For each key, whether a query of a band sees it, and whether it is hidden from one: bool (K,)."""


def bands_of(sizes: Sizes, mask: Tensor | BlockMask | None, *, queries: int | None = None) -> tuple[Band, ...]:
    """The bands that have something to see.

    Args:
        mask: a table, bool (B or 1, H or 1, Q, K); or a BlockMask, of which the tiles count; None hides nothing.
        queries: of one band, at most.
    """
    cuts = _cuts(sizes, sizes.q_len if queries is None else queries)
    if mask is None:
        return tuple(Band(*cut, slice(0, sizes.kv_len), None) for cut in cuts)
    sight = _sight_of_tiles(mask) if isinstance(mask, BlockMask) else _sight_of_table(mask)
    found = (_band(cut, *sight(cut[0], query_heads(cut[1], sizes.group), cut[2])) for cut in cuts)
    return tuple(band for band in found if band is not None)


def _cuts(sizes: Sizes, most_queries: int) -> Iterator[tuple[slice, slice, slice]]:
    """Batch rows, key-value heads and queries of each band; those of the same queries follow each other."""
    rows, heads, queries = _counts(sizes)
    queries = min(queries, most_queries)
    for first_query in range(0, sizes.q_len, queries):
        for first_row in range(0, sizes.batch, rows):
            for first_head in range(0, sizes.key_heads, heads):
                yield (
                    slice(first_row, min(first_row + rows, sizes.batch)),
                    slice(first_head, min(first_head + heads, sizes.key_heads)),
                    slice(first_query, min(first_query + queries, sizes.q_len)),
                )


def _counts(sizes: Sizes) -> tuple[int, int, int]:
    """How many batch rows, key-value heads and queries a band has."""
    of_head = sizes.group * sizes.kv_len
    queries = min(sizes.q_len, _FEW, max(1, MOST // of_head))
    heads = min(sizes.key_heads, max(1, MOST // (of_head * queries)))
    rows = min(sizes.batch, max(1, MOST // (of_head * queries * heads))) if heads == sizes.key_heads else 1
    more = min(MOST // (of_head * heads * rows), max(2 * _FEW, _MANY // sizes.kv_len))
    return rows, heads, max(queries, min(sizes.q_len, more))


def query_heads(heads: slice, group: int) -> slice:
    """The query heads that some key-value heads serve."""
    return slice(heads.start * group, heads.stop * group)


def _band(cut: tuple[slice, slice, slice], seen: Tensor, hidden: Tensor) -> Band | None:
    keys = _ends(seen)
    return None if keys is None else Band(*cut, keys, _ends(hidden[keys]))


def _ends(flags: Tensor) -> slice | None:
    """From the first to the last that is True; None if none is."""
    places = flags.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else None


def _sight_of_table(table: Tensor) -> Callable[[slice, slice, slice], Seen]:
    def sight(rows: slice, heads: slice, queries: slice) -> Seen:
        part = some(table, rows, heads)[:, :, queries]
        return part.flatten(0, 2).any(0), ~part.flatten(0, 2).all(0)

    return sight


def _sight_of_tiles(blocks: BlockMask) -> Callable[[slice, slice, slice], Seen]:
    states = tile_states(blocks)
    (_, kv_len), (q_block, kv_block) = blocks.seq_lengths, blocks.BLOCK_SIZE

    def sight(rows: slice, heads: slice, queries: slice) -> Seen:
        tiles = slice(queries.start // q_block, ceil_div(queries.stop, q_block))
        part = some(states, rows, heads)[:, :, tiles].flatten(0, 2)
        seen, hidden = (part != SKIPPED).any(0), (part != FULL).any(0)
        return tuple(of_tiles.repeat_interleave(kv_block)[:kv_len] for of_tiles in (seen, hidden))  # type: ignore[return-value]

    return sight


def some(table: Tensor, rows: slice, heads: slice) -> Tensor:
    """Some batch rows and query heads of a table (B or 1, H or 1, ...)."""
    return table[rows if table.shape[0] > 1 else slice(None), heads if table.shape[1] > 1 else slice(None)]
