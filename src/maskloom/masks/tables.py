"""How masks read what may be given once for all batch rows, or for each row."""

from torch import Tensor


def of_row(value: int | Tensor, b: Tensor) -> int | Tensor:
    """A number for all batch rows, an int or a tensor without dimensions, or the row's own of (B,)."""
    return value[b] if isinstance(value, Tensor) and value.ndim else value


def at(table: Tensor, b: Tensor, idx: Tensor) -> Tensor:
    """The entry of a position in a table (L,), or in the row's own of (B, L)."""
    return table[idx] if table.ndim == 1 else table[b, idx]
