"""The real tokens of padded inputs in one row, where the host knows how many there are: padding then costs no projection.

Projections, norms, rotary, gate and the projection back work on tokens alone. On a GPU attention does too, where the mask says the same
of that row (`packed_form`), in which each batch row is a document. Elsewhere attention is over (B, L), of which it skips the tiles of
padding: what a mask, a score_mod or dropout means does not change.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import BlockMask

from maskloom.batches.packed import index_of_lengths, index_of_pads, sources_of_lengths, sources_of_pads
from maskloom.core.block_masks import says_its_mask
from maskloom.core.cache import cached_with
from maskloom.core.torch_state import can_cache, inside_transform, is_exporting
from maskloom.masks.algebra import Mask
from maskloom.masks.known_padding import counted_padding
from maskloom.masks.padded import CountedPadding
from maskloom.nn.token_rows import put_back, taken
from maskloom.program.program import MaskMod

LEAST = {"cpu": 512}
"""The positions of a batch from which on packing pays, by the type of the device."""

_LEAST_ELSEWHERE = 1 << 26
"""Of other devices, the entries of x (B, L, features): below, launching more kernels takes the host longer than they save, in
torch.compile too (benchmarks/results/padding_module.csv)."""

_MOST_REAL = {"cpu": 15 / 16}
_MOST_REAL_ELSEWHERE = 5 / 8  # benchmarks/results/padding_module_rule.csv: at 1/2 the GPU takes less time, at 3/4 more
_MOST_REAL_IN_ROW = 13 / 16
"""The same where attention works on tokens too: of rows that are nearly full it skips as much in the batch."""

_SHORT = 1024
"""Positions of rows that are packed for attention whatever is real: FLASH runs for one long row, and is slow in short ones."""

IN_ROW: dict[str, tuple[torch.dtype, ...]] = {"cuda": (torch.bfloat16, torch.float16, torch.float32)}
"""Devices and dtypes of which attention may work on the packed row: kernels that skip what one document hides from another."""


class Tokens(NamedTuple):
    """Where the real tokens of one padded input stand.

    Attributes:
        places: int64 (R,), theirs among B · L; behind them, at least once, any place.
        sources: int64 (B · L,), the token at each of those; T at padding.
        total: T.
        shape: (B, L).
    """

    places: Tensor
    sources: Tensor
    total: int
    shape: tuple[int, int]

    def taken(self, x: Tensor) -> Tensor:
        """The tokens of x (B, L, ...) and zeros for padding: (1, R, ...)."""
        return taken(x.flatten(0, 1), self.places, self.sources, self.total)[None]

    def put_back(self, rows: Tensor, *, fills: bool) -> Tensor:
        """The batch (B, L, ...) of rows (1, R, ...), with row T at padding, of which there is a gradient if it ``fills``."""
        return put_back(rows[0], self.places, self.sources, self.total, fills=fills).unflatten(0, self.shape)

    def of_table(self, table: Tensor) -> Tensor:
        """The entries of the tokens in a table by position, (L, ...) or (B or 1, 1, L, ...): (R, ...)."""
        batch, length = self.shape
        if table.ndim == 2:
            return table.index_select(0, self.places % length)
        return table[:, 0].expand(batch, -1, -1).flatten(0, 1).index_select(0, self.places)


def heads_in_batch(heads: Tensor, tokens: Tokens, *, fills: bool | Tensor = False) -> Tensor:
    """The heads (B, n, L, d) of packed ones (1, n, R, d).

    Args:
        fills: what stands at padding: a tensor (B, n, L, d); or row T, with its gradient, or without where that is of
            zeros, or nobody sees it.
    """
    rows = heads.transpose(1, 2)
    if not isinstance(fills, Tensor):
        return tokens.put_back(rows, fills=fills).transpose(1, 2)
    padding = fills.transpose(1, 2).flatten(0, 1)
    real = tokens.total
    return padding.index_copy(0, tokens.places[:real], rows[0, :real]).unflatten(0, tokens.shape).transpose(1, 2)


def may_fill(layer: nn.Module) -> bool:
    """Whether a layer may make something else than 0 of 0: a plain one without a bias does not."""
    return not (type(layer) is nn.Linear and layer.bias is None and not layer._forward_hooks)


class Packing(NamedTuple):
    """The tokens of x, and of what keys and values are made of; None where that is not packed.

    Attributes:
        mask: of the packed row, which attention works on; None where it works on the padded batch.
    """

    queries: Tokens | None
    keys: Tokens | None
    mask: Mask | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all inputs are packed: then what lies in padding has come nowhere."""
        return self.queries is not None and self.keys is not None


NOT_PACKED = Packing(None, None)

InRow = Callable[[MaskMod, Tensor, int], Mask | None]
"""Gives a mask of the packed row, by the offsets of batch rows in it and its length; see `packed_form`."""


def is_large(shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether an input (B, L, features) is so large that packing may pay."""
    batch, length, features = shape
    if device.type in LEAST:
        return batch * length >= LEAST[device.type]
    return batch * length * features >= _LEAST_ELSEWHERE


def pays(total: int, batch: int, length: int, device: torch.device, *, in_row: bool = False) -> bool:
    """Whether packing so many tokens of a batch that is large saves more than it costs; ``in_row`` with attention."""
    most = _MOST_REAL.get(device.type, _MOST_REAL_ELSEWHERE)
    if in_row:
        most = 1.0 if length <= _SHORT else _MOST_REAL_IN_ROW
    return 0 < total <= most * batch * length


def packing_of(
    x: Tensor, context: Tensor | None, mask: BlockMask | MaskMod | Tensor | None, *, in_row: InRow | None = None
) -> Packing:
    """How inputs (B, L, ...) and (B, K, ...) are packed under a mask; `NOT_PACKED` where that is not known, or does not pay.

    Kept with the mask, so that all layers share it. No device is waited for.

    Args:
        in_row: `packed_form`, where attention may work on the packed row.
    """
    if mask is None or isinstance(mask, Tensor) or not _may_pack():
        return NOT_PACKED
    q_shape, device = (x.shape[0], x.shape[1]), x.device
    kv_shape = q_shape if context is None else (context.shape[0], context.shape[1])
    large = is_large(tuple(x.shape), device), context is not None and is_large(tuple(context.shape), device)
    if not any(large):
        return NOT_PACKED  # before the counts are read: a graph would be tied to them

    def find() -> Packing:
        counts = counted_padding(mask.mask_mod if isinstance(mask, BlockMask) else mask)
        if context is not None:
            queries = _tokens(counts.queries, q_shape, device) if large[0] else None
            return Packing(queries, _tokens(counts.keys, kv_shape, device) if large[1] else None)
        if counts.queries is not counts.keys:
            return NOT_PACKED
        found = None if in_row is None else _in_row(mask, in_row, counts.queries, q_shape, device)
        if found is not None:
            return found
        tokens = _tokens(counts.queries, q_shape, device)
        return Packing(tokens, tokens)

    return cached_with(
        mask, ("packing", q_shape, kv_shape, context is None, large, device, in_row), find, functions_too=True
    )


def _may_pack() -> bool:
    """Whether a count that the host took stays right: not in a graph that is run again with other values."""
    if torch.compiler.is_dynamo_compiling():
        return not (is_exporting() or inside_transform())
    return can_cache() and forward_ad._current_level < 0


def _in_row(
    mask: BlockMask | MaskMod, form: InRow, padding: CountedPadding | None, shape: tuple[int, int], device: torch.device
) -> Packing | None:
    """How an input is packed of which attention works on the packed row too."""
    if isinstance(mask, BlockMask):
        if not says_its_mask(mask):
            return None
        mask = mask.mask_mod
    batch, length = shape
    step = max(_STEP, batch * length // _MOST_SIZES // _STEP * _STEP)
    tokens = _tokens(padding, shape, device, step)
    if padding is None or tokens is None:
        return None
    table = padding.table
    lens = table.logical_not().sum(1) if table.dtype == torch.bool else table.long()
    offsets = torch.nn.functional.pad(lens.cumsum(0), (1, 0)).to(torch.int32)
    found = form(mask, offsets, tokens.places.shape[0])
    return None if found is None else Packing(tokens, tokens, found)


_STEP = 128
_MOST_SIZES = 256
"""Packed rows have a multiple of so many positions, and of one input at most so many sizes: what was recorded for one batch serves others."""


def _tokens(
    padding: CountedPadding | None, shape: tuple[int, int], device: torch.device, step: int | None = None
) -> Tokens | None:
    """Where tokens stand, if packing pays. ``step``: of a row that attention works on, a divisor of its number of positions."""
    if padding is None or padding.table.shape[0] != shape[0] or padding.counted.longest > shape[1]:
        return None
    table, total, (batch, length) = padding.table, padding.counted.total, shape
    assert total is not None
    if table.device != device or not pays(total, batch, length, device, in_row=step is not None):
        return None
    if table.dtype == torch.bool:
        if table.shape[1] != length:
            return None
        _check_in_graph(lambda: table.numel() - table.sum(), total)
        index, sources = index_of_pads(table, total), sources_of_pads(table, total)
    else:
        _check_in_graph(table.sum, total)
        index, sources = index_of_lengths(table, length, total), sources_of_lengths(table, length, total)
    more = 1 if step is None else step - total % step
    return Tokens(torch.nn.functional.pad(index, (0, more)), sources, total, shape)


def _check_in_graph(now: Callable[[], Any], total: int) -> None:
    """In a compiled graph, which sees no writes: an error of the device if a table no longer has ``total`` real positions."""
    if torch.compiler.is_dynamo_compiling():
        torch._assert_async(
            now() == total, "the lengths or pads of a mask were written to after it was made: make the mask anew"
        )
