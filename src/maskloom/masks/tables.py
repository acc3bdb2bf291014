"""Tables of positions: how masks read them, for all batch rows or for each row, and how they are made from one another.

=========  =================  =====================================================
table      shape              meaning
=========  =================  =====================================================
offsets    (..., pieces + 1)  where each piece begins, and the end
ids        (..., L)           the number of the piece that each position lies in
positions  (..., L)           how far each position is behind its piece's first
=========  =================  =====================================================
"""

from typing import Literal, cast

import torch
from torch import Tensor

from maskloom.masks.checks import count, readable


def of_row(value: int | Tensor, b: Tensor) -> int | Tensor:
    """A number for all batch rows, an int or a tensor without dimensions, or the row's own of (B,)."""
    return value[b] if isinstance(value, Tensor) and value.ndim else value


def of_head(value: int | Tensor, h: Tensor) -> int | Tensor:
    """A number for all heads, an int or a tensor without dimensions, or the head's own of (H,)."""
    return value[h] if isinstance(value, Tensor) and value.ndim else value


def at(table: Tensor, b: Tensor, idx: Tensor) -> Tensor:
    """The entry of a position in a table (L,), or in the row's own of (B, L)."""
    return table[idx] if table.ndim == 1 else table[b, idx]


def is_empty(table: Tensor) -> bool:
    """Whether a table (rows, columns), (B, rows, columns) or (B, H, rows, columns) says nothing though there are batch rows."""
    return 0 in table.shape[1 if table.ndim > 2 else 0 :]


Leading = Literal["", "b", "h", "bh"]
"""The indices that come before row and column where a table is read."""


def without_ones(table: Tensor) -> tuple[Tensor, Leading]:
    """A table (rows, columns), (B, rows, columns) or (B, H, rows, columns) without a B or H of 1, which is for all, and what is left."""
    ones = tuple(axis for axis, size in enumerate(table.shape[:-2]) if size == 1)
    left = "".join(letter for axis, letter in enumerate("bh"[: table.ndim - 2]) if axis not in ones)
    return table.squeeze(ones) if ones else table, cast(Leading, left)


def with_ones(table: Tensor, leading: Leading) -> Tensor:
    """A table from `without_ones` in a shape that says what it is for: (1, H, rows, columns) where it is by head alone."""
    return table[None] if leading == "h" else table


def entry(table: Tensor, leading: Leading, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The entry of a table from `without_ones`."""
    if leading == "bh":
        return table[b, h, row, column]
    if leading == "b":
        return table[b, row, column]
    return table[h, row, column] if leading == "h" else table[row, column]


def among_first(idx: Tensor, n: int | Tensor) -> Tensor:
    """Whether a position is one of the first ``n``: bool."""
    return (idx >= 0) & (idx < n)


def ids_from_offsets(offsets: Tensor, length: int | None) -> Tensor:
    """Ids of pieces that lie one behind the other, -1 behind the last: int32 (..., L).

    Args:
        offsets: integers (pieces + 1,) or (B, pieces + 1).
        length: L; by default the last offset (reading it waits for a GPU).
    """
    filled = offsets[..., -1:]
    most = int(filled.max()) if filled.numel() and (length is None or readable(offsets)) else 0
    if length is None and most < 1:
        raise ValueError(f"a row has at least 1 position; got {most}")
    length = most if length is None else count("length", length, least=1)
    if length < most:
        raise ValueError(f"length is {length}, and {most} positions are filled")
    positions = torch.arange(length, device=offsets.device).expand(*offsets.shape[:-1], -1).contiguous()
    ids = torch.searchsorted(offsets.to(torch.int64), positions, right=True) - 1
    return torch.where(positions < filled, ids, -1).to(torch.int32)


def ids_from_positions(positions: Tensor) -> Tensor:
    """Ids of pieces inside which positions count up by 1: int32 (..., L)."""
    begins = positions.long().diff() != 1  # narrow types would wrap around
    return torch.nn.functional.pad(begins, (1, 0)).cumsum(-1, dtype=torch.int32)


def positions_from_ids(ids: Tensor) -> Tensor:
    """How far each position is from the first of the run of equal ids that it lies in: int32 (L,) or (B, L)."""
    begins = torch.nn.functional.pad(ids.diff() != 0, (1, 0), value=True)
    positions = torch.arange(ids.shape[-1], device=ids.device)
    return (positions - (positions * begins).cummax(-1).values).to(torch.int32)
