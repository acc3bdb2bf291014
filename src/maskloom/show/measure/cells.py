"""The numbers of a picture of attention: one head of one batch row, for the cells that are drawn.

A cell is one pair of a query and a key; of long sequences it is many, and has the mean of the pairs that were computed.
Each query that is computed is computed against every key, so probabilities are over all keys, drawn or not. Of very long
sequences only some queries of each cell are computed, the last one first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core import captures
from maskloom.core.symbols import is_one_of
from maskloom.core.torch_state import without_autocast
from maskloom.masks.dense import needed_sizes
from maskloom.program.dependence import Dependence
from maskloom.program.elements import Elements
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import Index, MaskMod
from maskloom.scores.base import ScoreMod, name_of
from maskloom.scores.lifted import modified
from maskloom.show.measure.shares import cells_of, shares_of
from maskloom.show.measure.source import Cells, Source

COMPUTED = 1 << 24
"""Maximum number of pairs that are computed for one picture."""

_AT_ONCE = 1 << 22  # pairs
_ELEMENTS = 1 << 18  # of a mask
_KEYS = 1 << 16

Rows = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From positions of queries (n,): their values (n, K), and which keys are hidden from them, bool (n, K)."""


@dataclass(frozen=True)
class Values:
    """One head's attention, on the CPU.

    Attributes:
        value: float64 (rows, columns), the mean of the finite pairs that were computed; NaN where there is none.
        hidden: bool (rows, columns), True where no pair is visible, by the mask or by a score of -inf.
        not_finite: bool (rows, columns), True where a visible pair is not finite.
        fully_masked: bool (rows,), True where the queries may attend to no key at all, in these columns or elsewhere.
        per_row: how many queries of each row of cells were computed.
    """

    value: Tensor
    hidden: Tensor
    not_finite: Tensor
    fully_masked: Tensor
    per_row: int


def attention_cells(queries: range, keys: range, kv_len: int) -> Cells:
    """The cells of a picture: as of a mask, but with at least one computed query in each row of cells."""
    cells = cells_of(queries, keys)
    most = max(1, COMPUTED // kv_len)
    q_block = max(cells.q_block, 1 << (-(-len(queries) // most) - 1).bit_length())
    return cells_of(queries, keys, (q_block, cells.kv_block))


@torch.no_grad()
def values_in(cells: Cells, rows: Rows, kv_len: int, source: Source | None) -> Values:
    """The values of all cells, some queries at a time.

    Args:
        source: the mask; None if nothing is hidden by one.
    """
    positions, per_row = _computed(cells, kv_len)
    shape = cells.shape[2:]
    total, finite, wrong = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    sees = torch.zeros(shape[0], dtype=torch.bool)
    for part in positions.split(max(1, _AT_ONCE // kv_len)):
        values, hidden = rows(part)
        values, seen = values.masked_fill(hidden, 0), ~hidden
        where = (part - int(cells.q_offset)) // cells.q_block
        is_finite = values.isfinite()
        if not is_finite.all():
            wrong.index_add_(0, where, _summed(~is_finite, cells))
            values, seen = values.masked_fill(~is_finite, 0), seen & is_finite
        total.index_add_(0, where, _summed(values, cells))
        finite.index_add_(0, where, _summed(seen, cells))
        sees[where[(~hidden).any(-1).cpu()]] = True
    nothing = (finite + wrong) == 0
    if per_row < cells.q_block and source is not None:  # a query that was not computed may see something
        empty = shares_of(source, cells).share == 0
        return Values(total / finite, nothing & empty, wrong > 0, ~sees & (nothing & empty).all(-1), per_row)
    if per_row < cells.q_block:
        nothing = torch.zeros_like(nothing)
    return Values(total / finite, nothing, wrong > 0, ~sees, per_row)


def _computed(cells: Cells, kv_len: int) -> tuple[Tensor, int]:
    """The positions of the queries that are computed, in order, and how many there are in each row of cells."""
    count = min(cells.q_block, max(1, COMPUTED // (kv_len * cells.shape[2])))
    steps = cells.q_block - 1 - torch.arange(count) * cells.q_block // count
    found = (torch.arange(cells.shape[2])[:, None] * cells.q_block + steps.flip(0)).clamp(max=cells.q_len - 1)
    return found.unique() + cells.q_offset, count


def _summed(values: Tensor, cells: Cells) -> Tensor:
    """Sums over the keys of each cell: float64 (n, columns), on the CPU."""
    first, whole = int(cells.kv_offset), cells.kv_len // cells.kv_block
    shown, rest = values[:, first : first + cells.kv_len].split(
        [whole * cells.kv_block, cells.kv_len % cells.kv_block], 1
    )
    sums = shown.unflatten(1, (whole, cells.kv_block)).sum(-1, dtype=torch.float64)
    if rest.shape[1]:  # the last cell, which the end cuts
        sums = torch.cat([sums, rest.sum(-1, keepdim=True, dtype=torch.float64)], 1)
    return sums.cpu()


# -- rows of attention -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """One query head of one batch row, with the mask and score_mod that it has.

    Attributes:
        query: (Q, D). key: (K, D).
        source: the mask, or None.
    """

    query: Tensor
    key: Tensor
    row: int
    head: int
    source: Source | None
    score_mod: ScoreMod | None
    scale: float | None
    probabilities: bool

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rows`. Half precision is computed in float32."""
        scores = self._scores(positions)
        hides = None if self.source is None else ~visible(self, positions).to(scores.device)
        if self.score_mod is not None:
            scores = scores if hides is None else scores.masked_fill(hides, 1.0)
            scores = modified(scores[None, None], self._modified(positions))[0, 0]
        if hides is not None:
            scores = scores.masked_fill(hides, -math.inf)
        hidden = scores == -math.inf
        return scores.softmax(-1) if self.probabilities else scores, hidden

    def _scores(self, positions: Tensor) -> Tensor:
        """(n, K), before score_mod and mask."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        scale = 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale
        query = self.query[positions.to(self.query.device)].to(dtype) * scale
        parts = self.key.split(_KEYS)  # not all keys at once in a wider dtype
        with without_autocast(query.device):
            return torch.cat([query @ part.to(dtype).T for part in parts], -1)

    def _modified(self, positions: Tensor) -> ScoreMod:
        """The score_mod at these queries, for indices that start at 0."""
        score_mod = self.score_mod
        assert score_mod is not None

        def here(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            queries = positions.to(q_idx.device)
            return score_mod(score, b + self.row, h + self.head, queries[q_idx], kv_idx)

        here.__name__ = name_of(score_mod)  # in errors
        return here


@dataclass(frozen=True)
class Weights:
    """Given weights (Q, K) of one head, in place of queries and keys."""

    weights: Tensor
    row: int
    head: int
    source: Source | None

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rows`."""
        values = self.weights[positions.to(self.weights.device)].float()
        if self.source is None:
            return values, torch.zeros_like(values, dtype=torch.bool)
        return values, ~visible(self, positions).to(values.device)


def visible(head: Head | Weights, positions: Tensor) -> Tensor:
    """Which keys these queries may attend to: bool (n, K), on the CPU."""
    source = head.source
    assert source is not None
    b, h = torch.tensor([head.row]), torch.tensor([head.head])
    parts = torch.arange(source.kv_len).split(max(1, _ELEMENTS // len(positions)))
    return torch.cat([source.answers(Elements(b, h, positions[None], part[None]))[0] for part in parts], -1)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_tensors(query: Tensor, key: Tensor) -> None:
    """Raise a TypeError or ValueError unless query and key are (B, H, Q, D) and (B, Hkv, K, D) that fit each other."""
    for name, tensor in (("query", query), ("key", key)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a tensor (batch, heads, length, head dim); got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape (batch, heads, length, head dim); got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is floating point; got {tensor.dtype}")
        _check_readable(name, tensor)
    shapes = f"query {tuple(query.shape)} and key {tuple(key.shape)}"
    if 0 in query.shape or 0 in key.shape:
        raise ValueError(f"there is nothing to draw of an empty tensor; got {shapes}")
    if query.device != key.device:
        raise ValueError(f"query and key are on one device; got {query.device} and {key.device}")
    for dim, item in ((0, "batch size"), (3, "head dim")):
        if query.shape[dim] != key.shape[dim]:
            raise ValueError(f"query and key have the same {item}; got {shapes}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"the query heads are a multiple of the key heads; got {query.shape[1]} and {key.shape[1]}")


def checked_weights(name: str, weights: object) -> Tensor:
    """Weights of attention with all four dimensions, (B, H, Q, K), from (Q, K), (H, Q, K) or (B, H, Q, K)."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"{name} is a floating point tensor (B, H, Q, K), (H, Q, K) or (Q, K); got {got}")
    _check_readable(name, weights)
    if weights.ndim not in (2, 3, 4) or 0 in weights.shape:
        raise ValueError(f"{name} has shape (B, H, Q, K), (H, Q, K) or (Q, K); got {tuple(weights.shape)}")
    return weights.detach()[(None,) * (4 - weights.ndim)]


def _check_readable(name: str, tensor: Tensor) -> None:
    """Raise a TypeError for a tensor without values, or whose values are not at places of their own."""
    if tensor.is_meta or tensor.layout != torch.strided:
        got = "a tensor on the device meta" if tensor.is_meta else tensor.layout
        raise TypeError(f"{name} is a dense tensor with values; got {got}")


def check_mask(mask: BlockMask | MaskMod, sizes: tuple[int, int, int, int]) -> None:
    """Raise a ValueError unless a mask fits (B, H, Q, K)."""
    batch, heads, q_len, kv_len = sizes
    mask_mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    device = captures.device_of(mask_mod) or torch.device("cpu")
    if isinstance(mask, BlockMask):
        _check_block_mask(mask, sizes)
    _check_tables(dependence_on(mask_mod, device), batch, heads)
    needed_sizes(mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)  # raises if its tables do not fit


def _check_tables(dependence: Dependence, batch: int, heads: int) -> None:
    """Raise a ValueError if the mask reads a table for another number of batch rows or heads."""
    needs: tuple[tuple[Index, int, str], ...] = (("b", batch, "batch rows"), ("h", heads, "heads"))
    for index, need, items in needs:
        others = sorted({*dependence.sizes[index]} - {need})
        if others and (need > 1 or index in dependence.marks):
            raise ValueError(f"the mask reads a table for {others[0]} {items}, and the attention has {need}")


def _check_block_mask(block_mask: BlockMask, sizes: tuple[int, int, int, int]) -> None:
    lengths = tuple(block_mask.seq_lengths)
    if lengths != sizes[2:]:
        raise ValueError(f"the block mask is for lengths (Q, K) = {lengths}; the attention has {sizes[2:]}")
    for have, need, item in zip(block_mask.kv_indices.shape[:2], sizes[:2], ("batch rows", "heads"), strict=True):
        if not is_one_of(have, 1, need):
            raise ValueError(
                f"the block mask has {have} {item}, and the attention has {need}; it needs {need}, or 1 for all"
            )
