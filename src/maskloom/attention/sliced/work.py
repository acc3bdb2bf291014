"""What is the same for every query, key and value of a kind: the bands, the mask, the score_mod."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.chunks import Unwritten
from maskloom.attention.request import Request
from maskloom.attention.resolve import as_block_mask
from maskloom.attention.sliced.bands import Band, Sizes, bands_of, query_heads, some
from maskloom.attention.tables import kept_table, table_sizes_of, visibility
from maskloom.blocks.dense import rows_of
from maskloom.core import captures
from maskloom.core.cache import cached_with, tensors_of
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod, ScoreReading
from maskloom.scores.lifted import Starts
from maskloom.scores.reading import learned_by_ours

_MOST_ROWS = 2**26  # elements of a mask that is no table, for the queries of a band


@dataclass(frozen=True, eq=False)
class Work:
    """Attention of a request, but for query, key and value.

    Attributes:
        mask: a table, bool (B or 1, H or 1, Q, K); where that would be too large the mask itself; None hides nothing.
        mask_sizes: B and H of the mask's table.
        reading: what is known of score_mod.
        unwritten: the tensors that mask and score_mod read, as they were.
    """

    sizes: Sizes
    bands: tuple[Band, ...]
    mask: Tensor | BlockMask | MaskMod | None
    mask_sizes: tuple[int, int]
    score_mod: ScoreMod | None
    reading: ScoreReading
    scale: float
    unwritten: Unwritten
    device: torch.device

    @property
    def holds_mask(self) -> bool:
        """Whether it holds the request's mask itself."""
        return not (self.mask is None or isinstance(self.mask, Tensor))

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes if isinstance(self.mask, Tensor) else 0

    def without_score(self) -> "Work":
        """The same, but for the tensors of score_mod, of which it keeps what is known."""
        return replace(self, score_mod=None, reading=self.reading._replace(learned=()), unwritten=Unwritten([]))

    def with_score(self, score_mod: ScoreMod) -> "Work":
        """Work `without_score`, with one of maskloom's own of the same structure."""
        reading = self.reading._replace(learned=learned_by_ours(score_mod))
        return replace(self, score_mod=score_mod, reading=reading, unwritten=Unwritten(captures.tensors(score_mod)))

    def starts(self, band: Band) -> Starts:
        """The first batch row, query head, query and key of a band."""
        return band.batch.start, band.heads.start * self.sizes.group, band.queries.start, band.keys.start

    def with_hidden(self) -> Iterator[tuple[Band, Tensor | None]]:
        """Each band, and what is hidden among its keys ``hidden``: bool, broadcastable to (B, H, Q, K) of these."""
        queries, rows = None, None
        for band in self.bands:
            if band.hidden is None:
                yield band, None
                continue
            if queries != band.queries:
                queries, rows = band.queries, self._rows(band.queries)
            assert rows is not None
            part = some(rows, band.batch, query_heads(band.heads, self.sizes.group))
            yield band, ~part[..., band.keys.start + band.hidden.start : band.keys.start + band.hidden.stop]

    def _rows(self, queries: slice) -> Tensor:
        assert self.mask is not None
        batch, heads = self.mask_sizes
        return rows_of(
            self.mask, queries.start, queries.stop - queries.start,
            batch=batch, heads=heads, kv_len=self.sizes.kv_len, device=self.device,
        )  # fmt: skip


def work_of(request: Request) -> Work:
    """The work of a request. Where its mask has a table, that is kept with the mask; the work does not hold the mask."""
    query, key, mask = request.query, request.key, request.mask
    if visibility(mask) == "everything":
        mask = None
    batch, heads, q_len, kv_len = request.sizes
    sizes = Sizes(batch, key.shape[1], heads // key.shape[1], q_len, kv_len)
    table = None if mask is None else kept_table(query, key, mask)
    mask_sizes = (1, 1) if mask is None else table_sizes_of(query, key, mask)
    reads = [] if table is not None or mask is None else tensors_of(mask)
    return Work(
        sizes,
        _bands(request, sizes, table, mask_sizes) if mask is not None else bands_of(sizes, None),
        mask if table is None else table,
        mask_sizes,
        request.score_mod,
        request.reading or ScoreReading(False, ()),
        1 / math.sqrt(query.shape[-1]) if request.scale is None else request.scale,
        Unwritten([*reads, *captures.tensors(request.score_mod)]),
        query.device,
    )


def _bands(request: Request, sizes: Sizes, table: Tensor | None, mask_sizes: tuple[int, int]) -> tuple[Band, ...]:
    def make() -> tuple[Band, ...]:
        if table is not None:
            return bands_of(sizes, table)
        most = max(1, _MOST_ROWS // max(1, math.prod(mask_sizes) * sizes.kv_len))
        return bands_of(sizes, as_block_mask(request.query, request.key, request.mask), queries=most)

    return cached_with(request.mask, ("bands", sizes, request.device), make)
