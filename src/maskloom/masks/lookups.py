"""Tables that masks read: shared by all batch rows, or by row, or by head; and their axes."""

from torch import Tensor


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
