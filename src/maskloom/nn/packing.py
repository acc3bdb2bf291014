"""The real tokens of padded inputs in one row, where the host knows how many there are: padding then costs no projection.

Projections, norms, rotary, gate and the projection back work on tokens alone. On a GPU attention does too, where the mask says the same
of that row (`packed_form`), in which each batch row is a document. Elsewhere attention is over (B, L), of which it skips the tiles of
padding: what a mask, a score_mod or dropout means does not change.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.modules.module import _has_any_global_hook

from maskloom.batches.packed import index_of_lengths, index_of_pads, places_of, sources_of_lengths, sources_of_pads
from maskloom.core.block_masks import says_its_mask, unwritten
from maskloom.core.cache import cached_with
from maskloom.core.host_count import TILE
from maskloom.core.torch_state import can_cache, inside_transform, is_exporting
from maskloom.masks.algebra import Mask
from maskloom.masks.known_padding import counted_padding
from maskloom.masks.padded import CountedPadding
from maskloom.nn.token_rows import Layout, put_back, taken
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

IN_ROW: dict[str, tuple[torch.dtype, ...]] = {"cuda": (torch.bfloat16, torch.float16, torch.float32)}
"""Devices and dtypes of which attention may work on the packed row: kernels that skip what one document hides from another."""


class Tokens(NamedTuple):
    """Where the real tokens of one padded input stand.

    Attributes:
        layout: of their rows, R of them, among B · L positions.
        shape: (B, L).
    """

    layout: Layout
    shape: tuple[int, int]

    def taken(self, x: Tensor) -> Tensor:
        """The tokens of x (B, L, ...) and zeros for padding: (1, R, ...)."""
        return taken(x.flatten(0, 1), self.layout)[None]

    def put_back(self, rows: Tensor, *, fills: bool) -> Tensor:
        """The batch (B, L, ...) of rows (1, R, ...), with that of padding there, of which there is a gradient if it ``fills``."""
        return put_back(rows[0], self.layout, fills=fills).unflatten(0, self.shape)

    def of_table(self, table: Tensor) -> Tensor:
        """The entries of the tokens in a table by position, (L, ...) or (B or 1, 1, L, ...): (R, ...)."""
        (batch, length), places = self.shape, self.layout.places
        if table.ndim == 2:
            return table.index_select(0, places % length)
        return table[:, 0].expand(batch, -1, -1).flatten(0, 1).index_select(0, places)


def heads_in_batch(heads: Tensor, tokens: Tokens, *, fills: bool | Tensor = False) -> Tensor:
    """The heads (B, n, L, d) of packed ones (1, n, R, d).

    Args:
        fills: what stands at padding: a tensor (B, n, L, d); or the row that stands for it, with its gradient, or without where that
            is of zeros, or nobody sees it.
    """
    found = tokens.put_back(heads.transpose(1, 2), fills=fills is True).transpose(1, 2)
    if not isinstance(fills, Tensor):
        return found
    is_padding = (tokens.layout.sources == tokens.layout.padding).view(tokens.shape)
    return torch.where(is_padding[:, None, :, None], fills, found)


def may_fill(layer: nn.Module | None) -> bool:
    """Whether a layer may make something else than 0 of 0: a plain one without a bias does not."""
    if layer is None:
        return False
    return not (is_plain(layer, nn.RMSNorm) or (is_plain(layer, nn.Linear) and layer.bias is None))


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes what this kind does and no more, so that its parameters say all: no adapter, no hook."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if type(layer) is not kind or any(hooks) or "forward" in vars(layer):
        return False
    return torch.compiler.is_dynamo_compiling() or not _has_any_global_hook()


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
"""Gives a mask of the packed row, by where the pieces of that begin and its length; see `packed_form`."""


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
        most = _MOST_REAL_IN_ROW
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
    if in_row is not None and isinstance(mask, BlockMask) and not says_its_mask(mask):
        in_row = None

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
    """How an input is packed of which attention works on the packed row too.

    Each batch row begins with a tile of its own there: no query meets a key of another, and what one holds, NaN say, reaches no other.
    """
    if not _fits(padding, shape, device):
        return None
    assert padding is not None
    batch, length = shape
    table, end, size = padding.table, padding.counted.in_tiles, batch * length
    if not pays(end, batch, length, device, in_row=True):
        return None
    step = max(TILE, size // _MOST_SIZES // TILE * TILE)
    rows = (end // step + 1) * step  # at least one more, which stands for padding
    if table.dtype == torch.bool:
        real = ~table
        lens, columns = real.sum(1), real.cumsum(1) - 1
    else:
        lens, columns = table.long(), torch.arange(length, device=device)
        real = columns < lens[:, None]
    tiles = torch.div(lens + TILE - 1, TILE, rounding_mode="floor") * TILE
    _check_in_graph(lambda: (lens.sum() == _total(padding)) & (tiles.sum() == end))
    starts = tiles.cumsum(0) - tiles
    sources = torch.where(real, columns + starts[:, None], end).flatten()
    numbers = torch.arange(size, dtype=torch.int32, device=device)  # of int64, Inductor calls a scatter of torch's
    targets = torch.full((rows,), size, dtype=torch.int32, device=device).scatter(0, sources, numbers).long()
    targets[end:] = size
    layout = Layout(
        targets.clamp(max=size - 1), sources, targets, places_of(targets == size, rows - _total(padding)), end
    )
    tokens = Tokens(layout, shape)
    pieces = torch.stack((starts, starts + lens), 1).flatten()  # tokens, and what is behind them, which nobody looks at
    if isinstance(mask, BlockMask) and torch.compiler.is_dynamo_compiling():
        last = unwritten(mask, *padding.counted.counted_table, end)
    else:
        last = pieces.new_full((1,), end)
    offsets = torch.cat((pieces, last)).to(torch.int32)
    found = form(mask.mask_mod if isinstance(mask, BlockMask) else mask, offsets, rows)
    return None if found is None else Packing(tokens, tokens, found)


_MOST_SIZES = 256
"""Packed rows of one size of input have so many sizes at most: what was recorded for one batch serves others."""


def _fits(padding: CountedPadding | None, shape: tuple[int, int], device: torch.device) -> bool:
    """Whether counted padding is of such an input."""
    if padding is None or padding.table.shape[0] != shape[0] or padding.counted.longest > shape[1]:
        return False
    table = padding.table
    return table.device == device and not (table.dtype == torch.bool and table.shape[1] != shape[1])


def _total(padding: CountedPadding) -> int:
    total = padding.counted.total
    assert total is not None
    return total


def _tokens(padding: CountedPadding | None, shape: tuple[int, int], device: torch.device) -> Tokens | None:
    """Where tokens stand, if packing pays."""
    if not _fits(padding, shape, device):
        return None
    assert padding is not None
    table, total, (batch, length) = padding.table, _total(padding), shape
    if not pays(total, batch, length, device):
        return None
    if table.dtype == torch.bool:
        _check_in_graph(lambda: table.numel() - table.sum() == total)
        index, sources = index_of_pads(table, total), sources_of_pads(table, total)
    else:
        _check_in_graph(lambda: table.sum() == total)
        index, sources = index_of_lengths(table, length, total), sources_of_lengths(table, length, total)
    return Tokens(Layout(torch.nn.functional.pad(index, (0, 1)), sources, None, None, total), shape)


def _check_in_graph(is_as_counted: Callable[[], Tensor]) -> None:
    """In a compiled graph, which sees no writes: an error of the device if a table no longer holds what was counted."""
    if torch.compiler.is_dynamo_compiling():
        torch._assert_async(
            is_as_counted(), "the lengths or pads of a mask were written to after it was made: make the mask anew"
        )
