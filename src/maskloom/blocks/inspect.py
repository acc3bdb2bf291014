"""Numbers about a BlockMask: its cost, what it skips, and how its tiles were decided.

These functions read tables, so they wait for the device. They raise a TypeError for anything but a BlockMask.
"""

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.classify import classify
from maskloom.blocks.fully_masked import fully_masked_queries
from maskloom.blocks.grid import Grid, Wanted, checked_sizes, grid_of
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, Decided, tile_states
from maskloom.core import captures
from maskloom.core.block_masks import checked_block_mask
from maskloom.core.checks import count
from maskloom.core.words import repr_html
from maskloom.masks.algebra import as_mask
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.program.mask_program import program_of
from maskloom.program.program import MaskMod


def density(block_mask: BlockMask) -> float:
    """The share of (query, key) pairs that lie in tiles that attention visits, in percent.

    Pairs beyond the end of the sequences do not count: it is 100 if every tile is visited, and 0 if none is. It is the
    mean over the batch rows and heads of the tables.
    """
    q_sizes, kv_sizes = _tile_sizes(checked_block_mask(block_mask))
    visited = (tile_states(block_mask) != SKIPPED).double()
    pairs = visited @ kv_sizes.double() @ q_sizes.double()
    return float(100 * pairs.mean() / (q_sizes.sum() * kv_sizes.sum())) if pairs.numel() else 0.0


def tiles_per_row(block_mask: BlockMask) -> Tensor:
    """The number of tiles that attention visits for each query tile: int64 (B or 1, H or 1, query tiles)."""
    return (tile_states(checked_block_mask(block_mask)) != SKIPPED).sum(-1)


def fully_masked_rows(block_mask: BlockMask) -> Tensor:
    """Which query tiles attend to no key: bool (B or 1, H or 1, query tiles); `fully_masked_queries` is by query."""
    return tiles_per_row(block_mask) == 0


def balance(block_mask: BlockMask, workers: int) -> float:
    """How evenly ``workers`` share the visited tiles, if each takes the next query tile when free, in percent.

    100 if all finish together; 50 if the last needs twice the mean. A mask without a visited tile has 100.

    This is a model of a kernel, not a measurement: a tile is one unit of work, partial or full, and query tiles come in
    the order of the tables: by batch row, head and position. Tables that all rows or heads share count once.

    Args:
        workers: the number of workers, such as the multiprocessors of a GPU.

    Raises:
        TypeError: not an int. ValueError: fewer than 1 worker.
    """
    workers = count("workers", workers, least=1, of="workers")
    loads = [0] * workers
    for tiles in tiles_per_row(block_mask).flatten().tolist():
        heapq.heapreplace(loads, loads[0] + tiles)
    return 100.0 * sum(loads) / workers / max(loads) if max(loads) else 100.0


@dataclass(frozen=True)
class Summary:
    """Numbers about a BlockMask; ``print`` it.

    Attributes:
        shape: (B, H, Q, KV) of the tables, in positions.
        block_size: (Q, KV) of a tile.
        skipped, partial, full: the number of tiles of each state.
        density: in percent, see `density`.
        fewest, most: the smallest and largest number of tiles visited for a query tile.
        fully_masked: the number of query tiles that attend to no key.
        fully_masked_queries: the number of queries that attend to no key, in those tiles and in others.
    """

    shape: tuple[int, ...]
    block_size: tuple[int, int]
    skipped: int
    partial: int
    full: int
    density: float
    fewest: int
    most: int
    fully_masked: int
    fully_masked_queries: int

    def _repr_html_(self) -> str:
        return repr_html(self)

    def __str__(self) -> str:
        batch, heads, q_len, kv_len = self.shape
        tiles = self.skipped + self.partial + self.full
        return "\n".join(
            [
                f"block mask: B={batch} H={heads} Q={q_len} KV={kv_len}, tiles of {self.block_size[0]} × {self.block_size[1]}",
                f"  {tiles} tiles: {self.full} full, {self.partial} partial, {self.skipped} skipped",
                f"  {self.density:.1f} % of the pairs are visited",
                f"  {self.fewest} to {self.most} tiles for a query tile",
                f"  {self.fully_masked} query tiles see nothing, {self.fully_masked_queries} queries in all",
            ]
        )


def summary(block_mask: BlockMask) -> Summary:
    """Numbers about a BlockMask, for ``print``."""
    states = tile_states(checked_block_mask(block_mask))
    rows = tiles_per_row(block_mask)
    skipped, partial, full = (int((states == state).sum()) for state in (SKIPPED, PARTIAL, FULL))
    return Summary(
        shape=(*states.shape[:2], *block_mask.seq_lengths),
        block_size=block_mask.BLOCK_SIZE,
        skipped=skipped,
        partial=partial,
        full=full,
        density=density(block_mask),
        fewest=int(rows.min()) if rows.numel() else 0,
        most=int(rows.max()) if rows.numel() else 0,
        fully_masked=int((rows == 0).sum()),
        fully_masked_queries=int(fully_masked_queries(block_mask).sum()),
    )


@dataclass(frozen=True)
class TileExplanation:
    """How the tiles of a mask are decided; ``print`` it.

    Attributes:
        grid: the tiles.
        decided: how many of the distinct tiles each method decided.
    """

    grid: Grid
    decided: Decided

    def share(self, way: str) -> float:
        """The share of tiles that a method (intervals, witnesses or evaluation) decided, in percent."""
        return 100.0 * getattr(self.decided, way) / max(1, self.decided.total)

    def _repr_html_(self) -> str:
        return repr_html(self)

    def __str__(self) -> str:
        lines = [f"{self.decided.total} tiles of {self.grid.q_block} × {self.grid.kv_block}, decided by"]
        for way in ("intervals", "witnesses", "evaluation"):
            lines.append(f"  {way:<11}{getattr(self.decided, way):>9}{self.share(way):7.1f} %")
        if self.decided.unsupported_ops:
            lines.append(f"  no interval rule for: {', '.join(self.decided.unsupported_ops)}")
        return "\n".join(lines)


def explain_block_mask(
    mask: MaskMod | Tensor,
    q_len: int,
    kv_len: int,
    *,
    batch: int | None = None,
    heads: int | None = None,
    device: torch.device | str | None = None,
    block_size: int | tuple[int, int] = 128,
) -> TileExplanation:
    """How `block_mask` decides the tiles of a mask, and which operations of the mask have no interval rule.

    Takes the same arguments as `block_mask`, and raises the same errors.
    """
    if isinstance(mask, Tensor):
        mask = mask_of_table(mask, Sizes(batch, heads, q_len, kv_len))
    as_mask(mask)  # raises if it is not a mask
    wanted = Wanted(q_len, kv_len, batch, heads, checked_sizes(q_len, kv_len, block_size))
    source = program_of(mask, captures.device_for(mask, device))
    grid = grid_of(source.dependence, wanted)
    decided = Decided()
    classify(source, grid, count=decided)
    return TileExplanation(grid, decided)


def _tile_sizes(block_mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The number of positions in each query tile and in each key tile: the last tile may be cut."""
    device = block_mask.kv_indices.device
    q_sizes, kv_sizes = (
        (length - torch.arange(0, length, block, device=device)).clamp(max=block)
        for length, block in zip(block_mask.seq_lengths, block_mask.BLOCK_SIZE, strict=True)
    )
    return q_sizes, kv_sizes
