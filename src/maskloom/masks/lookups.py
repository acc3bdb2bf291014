"""Tables by position: how masks read them, shared or by batch row, and how to compute one table from another.

=========  =================  =====================================================
table      shape              meaning
=========  =================  =====================================================
offsets    (..., pieces + 1)  the start of each piece, and the end
ids        (..., L)           the number of the piece of each position
positions  (..., L)           the distance of each position from its piece's start
=========  =================  =====================================================
"""

from typing import Literal

import torch
from torch import Tensor

from maskloom.core.checks import count, readable
from maskloom.core.torch_state import counting_writes
from maskloom.core.vmapped import is_mapped


def of_row(value: int | Tensor, b: Tensor) -> int | Tensor:
    """A number for all batch rows (an int or a tensor without dimensions), or the row's entry of (B,)."""
    return value[b] if isinstance(value, Tensor) and value.ndim else value


def of_head(value: int | Tensor, h: Tensor) -> int | Tensor:
    """A number for all heads (an int or a tensor without dimensions), or the head's entry of (H,)."""
    return value[h] if isinstance(value, Tensor) and value.ndim else value


def at(table: Tensor, b: Tensor, idx: Tensor) -> Tensor:
    """The entry of a position in a table (L,), or in the batch row's part of (B, L)."""
    return table[idx] if table.ndim == 1 else table[b, idx]


def is_empty(table: Tensor) -> bool:
    """Whether a table (rows, columns), (B, rows, columns) or (B, H, rows, columns) is empty, not counting B."""
    return 0 in table.shape[1 if table.ndim > 2 else 0 :]


def without_ones(table: Tensor) -> tuple[Tensor, str]:
    """A table (Q, K), (B, Q, K) or (B, H, Q, K) without B or H of size 1, and a letter for each axis left."""
    letters = "bqk" if table.ndim == 3 else "bhqk"[4 - table.ndim :]
    ones = [axis for axis, size in enumerate(table.shape[:-2]) if size == 1]
    return table.squeeze(ones) if ones else table, "".join([c for axis, c in enumerate(letters) if axis not in ones])


def with_ones(table: Tensor, axes: str) -> Tensor:
    """The inverse of `without_ones`, in a readable shape: (1, H, Q, K) if it is by head but not by row."""
    letters = "bhqk" if "h" in axes else "bqk" if "b" in axes else "qk"
    return table.view([table.shape[axes.index(letter)] if letter in axes else 1 for letter in letters])


def seen_along(table: Tensor, axes: str, side: str) -> Tensor:
    """Along one side ("q" or "k") of a bool table: where any entry is True, per batch row: (B or 1, that side or 1)."""
    others = [axis for axis, letter in enumerate(axes) if letter not in ("b", side)]
    seen = table.any(others) if others else table
    seen = seen if side in axes else seen[..., None]
    return seen if "b" in axes else seen[None]


def among_first(idx: Tensor, n: int | Tensor) -> Tensor:
    """Whether a position is one of the first ``n``: bool."""
    return (idx >= 0) & (idx < n)


def neighbour(table: Tensor, step: Literal[-1, 1]) -> Tensor:
    """The entry before each position (step -1) or after it (step 1); at the end of the table, the position's own entry.

    The size stays the same: from a table that is one shorter torch.export would conclude that no length is 2.
    """
    places = torch.arange(table.shape[-1], device=table.device) + step
    return table[..., places.clamp(0, table.shape[-1] - 1)]


def greatest(table: Tensor, otherwise: str) -> int:
    """The largest entry, or 0; reading it waits for a GPU. ``otherwise`` is the argument that avoids it."""
    if is_mapped(table):
        raise ValueError(f"torch.vmap maps over this table, and nothing can be read from it: give {otherwise}")
    return int(table.max()) if table.numel() else 0


@counting_writes
def ids_from_offsets(offsets: Tensor, length: int | None) -> Tensor:
    """Ids of consecutive pieces, -1 after the last: int32 (..., L).

    Args:
        offsets: integers (pieces + 1,) or (B, pieces + 1).
        length: L; by default the last offset (reading it waits for a GPU).
    """
    filled = offsets[..., -1:]
    most = greatest(filled, "length=") if length is None or readable(offsets) else 0
    if length is None and most < 1:
        raise ValueError(f"a row has at least 1 position; got {most}")
    length = most if length is None else count("length", length, least=1)
    if length < most:
        raise ValueError(f"length is {length}, and {most} positions are filled")
    positions = torch.arange(length, device=offsets.device).expand(*offsets.shape[:-1], -1).contiguous()
    ids = torch.searchsorted(offsets.to(torch.int64), positions, right=True) - 1
    return torch.where(positions < filled, ids, -1).to(torch.int32)


@counting_writes
def ids_from_positions(positions: Tensor) -> Tensor:
    """Ids of pieces in which positions count up by 1: int32 (..., L)."""
    wide = positions.long()  # narrow dtypes would wrap around
    begins = (wide - neighbour(wide, -1) != 1) & (torch.arange(wide.shape[-1], device=wide.device) > 0)
    return begins.cumsum(-1, dtype=torch.int32)


@counting_writes
def positions_from_ids(ids: Tensor) -> Tensor:
    """The distance of each position from the start of its run of equal ids: int32 (L,) or (B, L)."""
    positions = torch.arange(ids.shape[-1], device=ids.device)
    begins = (ids != neighbour(ids, -1)) | (positions == 0)
    return (positions - (positions * begins).cummax(-1).values).to(torch.int32)
