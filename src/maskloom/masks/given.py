"""Masks that are given as tables: of elements, of blocks, or of the blocks that each query selected."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.masks.algebra import Mask, mask_value, shown
from maskloom.masks.checks import integers, per_axis, positive, readable
from maskloom.masks.tables import Leading, among_first, entry, is_empty, with_ones, without_ones


@mask_value
class FromDense(Mask):
    """See `from_dense`."""

    table: Tensor
    leading: Leading

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return entry(self.table, self.leading, b, h, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"from_dense({shown(with_ones(self.table, self.leading))})"


@mask_value
class FromBlocks(Mask):
    """See `from_blocks`."""

    tiles: Tensor
    leading: Leading
    block_size: tuple[int, int]

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        rows, columns = self.tiles.shape[-2:]
        row, column = q_idx // self.block_size[0], kv_idx // self.block_size[1]
        inside = among_first(row, rows) & among_first(column, columns)
        return inside & entry(self.tiles, self.leading, b, h, row.clamp(0, rows - 1), column.clamp(0, columns - 1))

    def __repr__(self) -> str:
        return f"from_blocks({shown(with_ones(self.tiles, self.leading))}, {self.block_size})"


def from_dense(table: Tensor) -> FromDense:
    """A query sees the keys that a table says.

    ::

        from_dense(tensor([[1, 0, 1], [0, 1, 1]]).bool())   k0 k1 k2
                                                        q0   x     x
                                                        q1      x  x

    The table is held as it is, one byte for each pair, and writes into it are followed. Queries and keys are as many as it has, or fewer.

    Args:
        table: bool (Q, K), (B, Q, K) or (B, H, Q, K), True = may attend; B and H of 1 are for all.

    Raises:
        TypeError: not a bool tensor. ValueError: another number of dimensions, or empty.
    """
    return FromDense(*without_ones(_table("table", table, "(Q, K)")))


def from_blocks(tiles: Tensor, block_size: int | Sequence[int]) -> FromBlocks:
    """A query sees whole blocks of keys, as a table of blocks says.

    ::

        from_blocks(tensor([[1, 0], [1, 1]]).bool(), 2)   k0 k1 k2 k3
                                                      q0   x  x
                                                      q1   x  x
                                                      q2   x  x  x  x
                                                      q3   x  x  x  x

    Positions behind the last block see nothing, and nothing sees them. Tiles are held as they are, and writes into them are
    followed. With the block size of the block mask, or
    multiples of it, no tile is partial.

    Args:
        tiles: bool (query blocks, key blocks), (B, query blocks, key blocks) or (B, H, query blocks, key blocks),
            True = may attend; B and H of 1 are for all.
        block_size: positions of a block, at least 1; (queries, keys) if they differ.

    Raises:
        TypeError: not a bool tensor, not ints. ValueError: another number of dimensions, empty, a block size below 1.
    """
    q_size, kv_size = per_axis("block_size", block_size, 2)
    return FromBlocks(*without_ones(_table("tiles", tiles, "(query blocks, key blocks)")), (q_size, kv_size))


def top_k_blocks(
    indices: Tensor | Sequence[Sequence[int]], block_size: int | Sequence[int], *, key_blocks: int | None = None
) -> FromBlocks:
    """A query sees the blocks of keys that it, or its block of queries, has selected.

    ::

        top_k_blocks([[0, -1], [0, 2]], (1, 2))   k0 k1 k2 k3 k4 k5
                                              q0   x  x
                                              q1   x  x        x  x

    ``causal & top_k_blocks(...)`` hides what lies ahead within a selected block. The result is `from_blocks` of a
    table, bool (..., query blocks, key blocks), which is made on the indices' device: a later write into the indices changes
    nothing.

    Source: Yuan et al. 2025 (Native Sparse Attention), section 3.3; Lu et al. 2025 (Mixture of Block Attention).

    Args:
        indices: integers (query blocks, k), (B, query blocks, k) or (B, H, query blocks, k): the numbers of the
            selected blocks of keys, in any order, also more than once; -1 is none. B and H of 1 are for all.
        block_size: positions of a block; (queries, keys) if they differ. Where each query selects for itself:
            (1, keys).
        key_blocks: number of blocks of keys. By default the greatest index and 1, which is read from the tensor (on a
            GPU that waits for it).

    Raises:
        TypeError: not integers. ValueError: another number of dimensions, an index below -1 or beyond ``key_blocks``
            (looked at on the CPU only).
    """
    chosen = integers("indices", indices).long()
    if not 2 <= chosen.ndim <= 4 or is_empty(chosen):
        raise ValueError(f"indices has shape (query blocks, k), with B or B, H in front; got {tuple(chosen.shape)}")
    if key_blocks is None:
        columns = max(int(chosen.max()) + 1, 1) if chosen.numel() else 1
    else:
        columns = positive("key_blocks", key_blocks)
    if readable(chosen) and not bool(((chosen >= -1) & (chosen < columns)).all()):
        raise ValueError(
            f"indices are numbers of key blocks, -1 (none) to {columns - 1}; "
            f"got values from {int(chosen.min())} to {int(chosen.max())}"
        )
    table = torch.zeros(*chosen.shape[:-1], columns + 1, dtype=torch.bool, device=chosen.device)
    table = table.scatter(-1, torch.where(chosen < 0, columns, chosen), True)  # none selects a column that is dropped
    return from_blocks(table[..., :columns].contiguous(), block_size)


def _table(name: str, value: Tensor, sides: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is a bool tensor, True = may attend; got {what}")
    if not 2 <= value.ndim <= 4 or is_empty(value):
        raise ValueError(f"{name} has shape {sides}, with B or B, H in front; got {tuple(value.shape)}")
    return value
