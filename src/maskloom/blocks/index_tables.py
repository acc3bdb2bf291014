"""Turn tile states into torch's ordered index tables.

A row of a table lists the tiles that attention visits, in ascending order, and then the other tiles, in ascending
order. torch sorts each row with a stable argsort; this module gets the same order with one pass of running counts.
Tables keep their full width, and all have the same shape and strides in each direction: the kernels of torch 2.11 to
2.14 read them all with the strides of one.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.blocks.grid import Grid
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED
from maskloom.core.block_masks import TABLES, rebuilt
from maskloom.core.cache import LRU
from maskloom.core.launches import can_launch
from maskloom.core.pickling import check_can_be_sent
from maskloom.core.torch_state import can_cache, counting_writes, is_exporting, is_tracing, raw_stream
from maskloom.program.program import MaskMod

# Maximum entries ordered at once, so that the work needs little memory beside the tables. On the CPU it then also stays
# in the cache: 20 ms instead of 50 for the four tables of causal at 128k.
_AT_ONCE = {"cpu": 1 << 18}
_AT_ONCE_ELSEWHERE = 1 << 25

# Maximum entries of a table that is sorted instead: below it, the number of operations takes the time. A GPU sorts rows
# of up to 4096 in one launch.
_SORTED = {"cpu": 1 << 11}
_SORTED_ELSEWHERE = 1 << 18


class Ordered(NamedTuple):
    """Counts int32 (B, H, rows) and indices int32 (B, H, rows, columns)."""

    counts: Tensor
    indices: Tensor


def ordered(listed: Tensor) -> Ordered:
    """The table that lists, for each row, the columns that are True.

    Args:
        listed: bool (..., rows, columns).
    """
    if listed.numel() <= _SORTED.get(listed.device.type, _SORTED_ELSEWHERE):
        return _sorted(listed)
    indices = torch.empty(listed.shape, dtype=torch.int32, device=listed.device)
    most = _AT_ONCE.get(listed.device.type, _AT_ONCE_ELSEWHERE)
    if listed.numel() <= most:
        return Ordered(_order(listed, indices), indices)
    rows = max(1, most * listed.shape[-2] // listed.numel())
    counts = [_order(*pair) for pair in zip(listed.split(rows, -2), indices.split(rows, -2), strict=True)]
    return Ordered(torch.cat(counts, -1), indices)


def _sorted(listed: Tensor) -> Ordered:
    """`ordered` by sorting each row, as torch does it."""
    columns = torch.argsort(listed.to(torch.int8), dim=-1, descending=True, stable=True)
    return Ordered(
        listed.sum(-1, dtype=torch.int32).contiguous(), columns.to(torch.int32, memory_format=torch.contiguous_format)
    )


def _order(listed: Tensor, indices: Tensor) -> Tensor:
    """Write some rows of a table into ``indices``, and return their counts."""
    flags = listed.to(torch.int32, memory_format=torch.contiguous_format)
    rank = flags.cumsum(-1, dtype=torch.int32)  # number of listed columns, up to and including this one
    counts = rank[..., -1].clone(memory_format=torch.contiguous_format)
    column = torch.arange(listed.shape[-1], dtype=torch.int32, device=listed.device)
    place = (counts[..., None] + column).sub_(rank)  # the place of an unlisted column
    place.addcmul_(rank.sub_(1).sub_(place), flags)  # a listed column goes to rank - 1; twice as fast as torch.where
    indices.scatter_(-1, place.long(), column.expand(place.shape))
    return counts


def ordered_in_graph(listed: Tensor) -> Ordered:
    """`ordered` while torch compiles. Nothing is sorted: a sort of each row takes longer than counts and a scatter.

    The columns that are scattered are int32: for int64 ones Inductor calls a scatter of torch's, around which it cannot fuse.
    """
    rank = listed.cumsum(-1, dtype=torch.int32)
    counts = rank[..., -1]
    column = torch.arange(listed.shape[-1], dtype=torch.int32, device=listed.device)
    place = torch.where(listed, rank - 1, counts[..., None] + column - rank)
    indices = torch.zeros_like(rank).scatter(-1, place.long(), column.expand(place.shape))
    return Ordered(counts.clone(memory_format=torch.contiguous_format), indices)


def tables_in_graph(
    tiles: Tensor, whole: int, most: Tensor | None, batch: int, heads: int, *, separate_full_blocks: bool
) -> dict[str, Tensor | None]:
    """The tables of a BlockMask by their names, while torch compiles, from how much its tiles show.

    An operator makes all of them, on a GPU in one launch, and graphs do not look into it: where rows have 256 tiles, Inductor (2.11)
    writes no kernel with the scatter of `ordered_in_graph`, and it pads tables that a graph computes (`core.block_masks.laid_out`). An
    exported program holds no operator of maskloom's.

    Args:
        tiles: int32 (B or 1, H or 1, query tiles, key tiles): 0 for tiles that show nothing, ``whole`` for full ones.
        most: the greatest numbers that count, likewise.
    """
    if not is_exporting():
        made: list[Tensor | None] = list(_operator(tiles, whole, most, batch, heads, separate_full_blocks))
    else:
        tiles = tiles if most is None else torch.minimum(tiles, most)
        some, full = tiles > 0, tiles == whole
        listed = (some & ~full, full) if separate_full_blocks else (some,)
        ways = [*listed, *(one.mT for one in listed)]
        made = [part for one in ways for part in _for_all(ordered_in_graph(one), batch, heads)]
    if not separate_full_blocks:
        made = [*made[:2], None, None, *made[2:], None, None]
    return dict(zip(TABLES, made, strict=True))


@torch.library.custom_op("maskloom::tile_tables", mutates_args=())
def _operator(
    tiles: Tensor, whole: int, most: Tensor | None, batch: int, heads: int, separate_full_blocks: bool
) -> list[Tensor]:
    """Counts and indices of each table, in the order of `TABLES`."""
    tiles = tiles if most is None else torch.minimum(tiles, most)
    if can_launch(tiles):
        made = _by_kernel(tiles, batch, heads, separate_full_blocks, whole)
    else:
        states = (tiles > 0).to(torch.int8) + (tiles == whole)
        made = _by_torch(states, batch, heads, separate_full_blocks)
    return [part for table in made if table is not None for part in table]


@_operator.register_fake
def _shapes(
    tiles: Tensor, whole: int, most: Tensor | None, batch: int, heads: int, separate_full_blocks: bool
) -> list[Tensor]:
    lines, across = tiles.shape[2:]
    ways = 2 if separate_full_blocks else 1
    sizes = [*[(lines, across)] * ways, *[(across, lines)] * ways]
    shapes = [shape for size in sizes for shape in ((batch, heads, size[0]), (batch, heads, *size))]
    return [tiles.new_empty(shape, dtype=torch.int32) for shape in shapes]


def to_block_mask(states: Tensor, mask_mod: MaskMod, grid: Grid, *, separate_full_blocks: bool = True) -> BlockMask:
    """torch's BlockMask, with forward and transposed tables, from the states of its tiles.

    Args:
        states: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL, with any strides.
        mask_mod: the mask that the BlockMask holds.
        grid: the grid of the states; the tables get its full B and H.
        separate_full_blocks: False lists full tiles together with the partial ones.
    """
    tables = _by_kernel if can_launch(states) else _by_torch
    kv, full_kv, q, full_q = tables(states, grid.batch, grid.heads, separate_full_blocks)
    return BlockMask(
        seq_lengths=(grid.q_len, grid.kv_len),
        kv_num_blocks=kv.counts,
        kv_indices=kv.indices,
        full_kv_num_blocks=None if full_kv is None else full_kv.counts,
        full_kv_indices=None if full_kv is None else full_kv.indices,
        q_num_blocks=q.counts,
        q_indices=q.indices,
        full_q_num_blocks=None if full_q is None else full_q.counts,
        full_q_indices=None if full_q is None else full_q.indices,
        BLOCK_SIZE=(grid.q_block, grid.kv_block),
        mask_mod=mask_mod,
    )


_Tables = tuple[Ordered, Ordered | None, Ordered, Ordered | None]


def _by_torch(states: Tensor, batch: int, heads: int, separate_full_blocks: bool) -> _Tables:
    """The tables of partial and of full tiles, by query tiles and by key tiles."""
    if not states.is_contiguous():  # the tables would get its order of dims
        states = states.contiguous()
    if not separate_full_blocks:
        listed = states != SKIPPED
        return _for_all(ordered(listed), batch, heads), None, _for_all(ordered(listed.mT), batch, heads), None
    if states.numel() <= _SORTED.get(states.device.type, _SORTED_ELSEWHERE) // 2:
        by_numpy = states.device.type == "cpu" and type(states) is Tensor and not is_tracing()
        found = _sorted_by_numpy(states) if by_numpy else _sorted_together(states)
        if states.shape[:2] != (batch, heads):
            found = [_for_all(table, batch, heads) for table in found]
        kv, full_kv, q, full_q = found
        return kv, full_kv, q, full_q
    partial, full = states == PARTIAL, states == FULL
    kv, full_kv, q, full_q = (
        _for_all(ordered(listed), batch, heads) for listed in (partial, full, partial.mT, full.mT)
    )
    return kv, full_kv, q, full_q


def _sorted_together(states: Tensor) -> list[Ordered]:
    """The same by sorting, in few operations: on small tables the number of operations takes the time."""
    kinds = torch.arange(PARTIAL, FULL + 1, dtype=torch.int8, device=states.device)  # the two, which follow one another
    listed = (states == kinds.view(2, 1, 1, 1, 1)).view(torch.int8)  # (2, B, H, query tiles, key tiles)
    if listed.shape[-1] == listed.shape[-2]:
        return _sorted_each(torch.cat((listed, listed.mT)))
    return _sorted_each(listed) + _sorted_each(listed.mT.contiguous())


def _sorted_by_numpy(states: Tensor) -> list[Ordered]:
    """The same on a CPU: NumPy takes a third of torch's time for an operation on few values."""
    unlisted = states.numpy() != _KINDS
    if unlisted.shape[-1] == unlisted.shape[-2]:
        return _numpy_tables(np.concatenate((unlisted, unlisted.swapaxes(-1, -2))))
    return _numpy_tables(unlisted) + _numpy_tables(unlisted.swapaxes(-1, -2))


_KINDS = np.array([PARTIAL, FULL], np.int8).reshape(2, 1, 1, 1, 1)


def _numpy_tables(unlisted: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Ordered]:
    """The table of each of (tables, B, H, rows, columns), each with memory of its own."""
    columns = unlisted.argsort(-1, "stable")
    counts = unlisted.shape[-1] - np.add.reduce(unlisted, -1, np.int32)
    return [
        Ordered(torch.from_numpy(count.copy()), torch.from_numpy(column.astype(np.int32)))
        for count, column in zip(counts, columns, strict=True)
    ]


def _sorted_each(listed: Tensor) -> list[Ordered]:
    """The table of each of (tables, B, H, rows, columns): no views, whose base torch.compile would guard too."""
    columns = torch.argsort(listed, dim=-1, descending=True, stable=True).to(torch.int32)
    counts = listed.sum(-1, dtype=torch.int32)
    apart: Any = torch.unbind_copy  # torch's stubs say that it returns nothing
    return [Ordered(*table) for table in zip(apart(counts), apart(columns), strict=True)]


def _by_kernel(states: Tensor, batch: int, heads: int, separate_full_blocks: bool, full: int = FULL) -> _Tables:
    # imported here: not every torch comes with Triton
    from maskloom.blocks.index_tables_triton import order

    tables = order(states, batch, heads, separate_full_blocks=separate_full_blocks, full=full)
    if separate_full_blocks:
        kv, full_kv, q, full_q = (Ordered(*table) for table in tables)
        return kv, full_kv, q, full_q
    kv, q = (Ordered(*table) for table in tables)
    return kv, None, q, None


def _for_all(table: Ordered, batch: int, heads: int) -> Ordered:
    """The table of one batch row or head, copied for all that share it, as torch's kernels need it."""
    if table.counts.shape[:2] == (batch, heads):
        return table  # not a view, because torch.compile would also guard its base
    return Ordered(*(part.expand(batch, heads, *part.shape[2:]).contiguous() for part in table))


_of_all_tiles: LRU[Hashable, BlockMask] = LRU(64)
"""Block masks of which all tiles are partial, by their grid: for their tables, which are only read."""


def of_all_tiles(mask: MaskMod, grid: Grid, device: torch.device) -> BlockMask:
    """The BlockMask of a mask on a grid in which each tile is partial. Nobody may write into its tables."""
    check_can_be_sent(mask)
    sizes = grid.shape[:2], grid.q_len, grid.kv_len, grid.q_block, grid.kv_block
    key = sizes, device, raw_stream(device)
    found = _of_all_tiles.get(key) if can_cache() else None
    if found is None:
        found = _made(grid, device)
        if can_cache():
            _of_all_tiles.put(key, found)
    return rebuilt(found, mask_mod=mask)


@counting_writes
def _made(grid: Grid, device: torch.device) -> BlockMask:
    return to_block_mask(torch.full(grid.shape, PARTIAL, dtype=torch.int8, device=device), noop_mask, grid)
