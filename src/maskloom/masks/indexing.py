"""Steps that masks share in going from positions to answers."""

from torch import Tensor


def within(idx: Tensor, n: int) -> Tensor:
    """Whether an index is one of the first ``n``: bool."""
    return (idx >= 0) & (idx < n)


def at(table: Tensor, b: Tensor, idx: Tensor) -> Tensor:
    """The entry for a position, of a table (L,) that is for all batch rows, or (B, L)."""
    return table[idx] if table.ndim == 1 else table[b, idx]


def entry(table: Tensor, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The entry of a table (rows, columns), (B, rows, columns) or (B, H, rows, columns); B and H of 1 are for all."""
    lead = zip(table.shape[:-2], (b, h), strict=False)
    return table[(*(0 if size == 1 else index for size, index in lead), row, column)]
