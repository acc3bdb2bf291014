"""Masks from tables: of elements, of blocks, or of the blocks that each query selected."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.core.checks import integers, per_axis, positive, readable
from maskloom.masks.algebra import Mask, Tabled, mask_dataclass, shown
from maskloom.masks.dense_tables import bool_table
from maskloom.masks.lookups import among_first, is_empty, seen_along, with_ones, without_ones
from maskloom.masks.padded import PaddingMask, Position, entries_of, pads_at, positions_from
from maskloom.program.vmapped import greatest

__all__ = ["from_dense", "from_blocks", "top_k_blocks"]
OF_TENSORS = ("from_dense", "from_blocks")  # a text cannot hold tensors


@mask_dataclass
class FromDense(Tabled, PaddingMask):
    """See `from_dense`. ``axes`` names the indices that the table is read by: a letter of "bhqk" for each dimension."""

    runs_in_flash = True

    table: Tensor
    axes: str

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        places = {"b": b, "h": h, "q": q_idx, "k": kv_idx}
        return self.table[tuple([places[axis] for axis in self.axes])]

    def __repr__(self) -> str:
        return f"from_dense({shown(with_ones(self.table, self.axes))})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return self._unseen("k", kv_len, first)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return self._unseen("q", q_len, first)

    def _unseen(self, side: str, length: int, first: Position) -> Tensor:
        hidden = ~seen_along(self.table, self.axes, side)
        if side in self.axes:
            return pads_at(hidden, first, length)
        return hidden | (positions_from(first, length, hidden.device) < 0)


@mask_dataclass
class FromBlocks(PaddingMask):
    """See `from_blocks`. ``axes`` as in `FromDense`."""

    tiles: Tensor
    axes: str
    block_size: tuple[int | Tensor, int | Tensor]
    signed = Mask.signed  # __call__ itself handles negative positions

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        rows, columns = self.tiles.shape[-2:]
        row, column = q_idx // self.block_size[0], kv_idx // self.block_size[1]
        inside = among_first(row, rows) & among_first(column, columns)
        places = {"b": b, "h": h, "q": row.clamp(0, rows - 1), "k": column.clamp(0, columns - 1)}
        return inside & self.tiles[tuple([places[axis] for axis in self.axes])]

    def __repr__(self) -> str:
        return f"from_blocks({shown(with_ones(self.tiles, self.axes))}, {self.block_size})"

    def hidden_keys(self, kv_len: int, first: Position = 0) -> Tensor:
        return self._unseen("k", kv_len, first)

    def hidden_queries(self, q_len: int, first: Position = 0) -> Tensor:
        return self._unseen("q", q_len, first)

    def _unseen(self, side: str, length: int, first: Position) -> Tensor:
        seen = seen_along(self.tiles, self.axes, side)
        at = positions_from(first, length, seen.device) // self.block_size["qk".index(side)]
        return ~(among_first(at, seen.shape[1]) & entries_of(seen, at.clamp(0, seen.shape[1] - 1)))


def from_dense(table: Tensor | Sequence[Sequence[bool]]) -> FromDense:
    """A table says which keys each query sees.

    ::

        from_dense(tensor([[1, 0, 1], [0, 1, 1]]).bool())   k0 k1 k2
                                                        q0   x     x
                                                        q1      x  x

    The mask holds a bool table itself, one byte for each pair, and follows writes into it. There may be fewer queries
    and keys than the table has, but not more; before position 0 nothing is seen. For a bool ``attn_mask`` of
    ``nn.MultiheadAttention``, where True hides, write ``from_dense(~table)``; for its shape (B·H, Q, K),
    ``from_dense(table.view(B, H, Q, K))``.

    Args:
        table: (Q, K), (B, Q, K) or (B, H, Q, K); B and H of 1 are for all. Bool, True = may attend. Or a float mask
            that torch adds to scores, which becomes a bool table: 0 = may attend, -inf or the lowest number of its
            dtype (or of a narrower one) = hidden. (A query whose keys are all hidden has output 0 here; with torch's
            lowest number it has the mean of their values.)

    Raises:
        TypeError: another dtype; sparse, nested or quantized; floats with other values, which need a score_mod. Values
            are checked once, here: this waits for a GPU; a compiled or captured graph raises when it runs.
        ValueError: another number of dimensions, or empty.
    """
    return FromDense(*without_ones(_table("table", table, "(Q, K)", additive=True)))


def from_blocks(tiles: Tensor | Sequence[Sequence[bool]], block_size: int | Sequence[int]) -> FromBlocks:
    """A table of blocks says which blocks of keys each block of queries sees.

    ::

        from_blocks(tensor([[1, 0], [1, 1]]).bool(), 2)   k0 k1 k2 k3
                                                      q0   x  x
                                                      q1   x  x
                                                      q2   x  x  x  x
                                                      q3   x  x  x  x

    Positions after the last block see nothing, and nothing sees them. The mask holds the tiles themselves, and follows
    writes into them. If the block size is a multiple of the block mask's block size, no tile is partial.

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

    ``causal & top_k_blocks(...)`` hides later keys inside a selected block. The result is `from_blocks` of a table,
    bool (..., query blocks, key blocks), which is made on the indices' device: later writes into the indices have no
    effect.

    Source: Yuan et al. 2025 (Native Sparse Attention), section 3.3; Lu et al. 2025 (Mixture of Block Attention).

    Args:
        indices: integers (query blocks, k), (B, query blocks, k) or (B, H, query blocks, k): the numbers of the
            selected blocks of keys, in any order, repeats allowed; -1 for none. B and H of 1 are for all.
        block_size: positions of a block; (queries, keys) if they differ. If each query selects for itself: (1, keys).
        key_blocks: number of blocks of keys. By default the largest index plus 1, which is read from the tensor (this
            waits for a GPU).

    Raises:
        TypeError: not integers. ValueError: another number of dimensions, an index below -1 or beyond ``key_blocks``
            (checked on the CPU only).
    """
    chosen = integers("indices", indices).long()
    if not 2 <= chosen.ndim <= 4 or is_empty(chosen):
        raise ValueError(f"indices has shape (query blocks, k), with B or B, H in front; got {tuple(chosen.shape)}")
    columns = max(greatest(chosen, "key_blocks=") + 1, 1) if key_blocks is None else positive("key_blocks", key_blocks)
    if readable(chosen) and not bool(((chosen >= -1) & (chosen < columns)).all()):
        raise ValueError(
            f"indices are numbers of key blocks, -1 (none) to {columns - 1}; "
            f"got values from {int(chosen.min())} to {int(chosen.max())}"
        )
    table = torch.zeros(*chosen.shape[:-1], columns + 1, dtype=torch.bool, device=chosen.device)
    table = table.scatter(-1, torch.where(chosen < 0, columns, chosen), True)  # -1 selects an extra column, dropped
    return from_blocks(table[..., :columns].contiguous(), block_size)


def _table(name: str, value: Tensor | Sequence[object], sides: str, *, additive: bool = False) -> Tensor:
    table = bool_table(name, value, additive=additive)
    if not 2 <= table.ndim <= 4 or is_empty(table):
        raise ValueError(f"{name} has shape {sides}, with B or B, H in front; got {tuple(table.shape)}")
    return table
