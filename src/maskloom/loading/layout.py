"""Where the tokens of a batch stand: which sequences are in which row, and from which position on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskloom.batches.bins import Over, fitted, pack_lengths, row_slices
from maskloom.batches.forms import Side
from maskloom.core.forks import computed_once


@dataclass(frozen=True, eq=False)
class Layout:
    """Documents in rows; a document is a sequence, or the piece of one that is used.

    Attributes:
        items: the number of each document's sequence in the batch.
        slices: the tokens of that sequence.
        rows: int64 (documents,), the row of each document.
        starts: int64 (documents,), its first position in the row.
        lengths: int64 (documents,), its number of tokens.
        shape: (R, L), rows and positions.
    """

    items: list[int]
    slices: list[slice]
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    shape: tuple[int, int]

    @computed_once
    def positions(self) -> Tensor:
        """The position of each token in its document: int64 (tokens,)."""
        first = (self.lengths.cumsum(0) - self.lengths).repeat_interleave(self.lengths)
        return torch.arange(len(first), device="cpu") - first

    @computed_once
    def index(self) -> Tensor:
        """Where each token stands among the R · L positions: int64 (tokens,)."""
        first = self.rows * self.shape[1] + self.starts
        return first.repeat_interleave(self.lengths) + self.positions

    @computed_once
    def ids(self) -> Tensor:
        """The number of each position's document: int32 (R, L), -1 at padding."""
        return self.filled(
            torch.arange(len(self.items), dtype=torch.int32, device="cpu").repeat_interleave(self.lengths), -1
        )

    def filled(self, tokens: Tensor, padding: float) -> Tensor:
        """The rows (R, L, ...) of what belongs to each token (tokens, ...)."""
        flat = tokens.new_full((self.shape[0] * self.shape[1], *tokens.shape[1:]), padding)
        flat[self.index] = tokens
        return flat.view(*self.shape, *tokens.shape[1:])

    def pieces(self, of_items: list[Tensor]) -> Tensor:
        """What belongs to each token (tokens, ...), from a tensor (length, ...) for each sequence of the batch."""
        return torch.cat([of_items[item][piece] for item, piece in zip(self.items, self.slices, strict=True)])

    def cuts(self) -> Tensor:
        """The offsets of all R · L positions in a row, where padding is documents too: int32 (cuts + 1,)."""
        starts = self.rows * self.shape[1] + self.starts
        ends = (starts + self.lengths).tolist()
        row_ends = range(self.shape[1], self.shape[0] * self.shape[1] + 1, self.shape[1])
        return torch.tensor([0, *sorted({*starts.tolist(), *ends, *row_ends} - {0})], dtype=torch.int32, device="cpu")


def layout_of(
    lengths: list[int], *, packed: bool, length: int | None, multiple_of: int, over: Over, side: Side
) -> Layout:
    """The layout of sequences of these lengths: one in each row, or packed into one row or into rows of a length.

    The padding of a row is at its ``side``.
    """
    size = max(lengths) if length is None else length
    if packed and length is not None:
        rows = pack_lengths(lengths, size, over=over)
    elif packed:
        rows = [list(range(len(lengths)))]
    else:
        rows = [[item] for item in fitted(np.array(lengths), size, over)[0].tolist()]
    if not rows:
        raise ValueError(f"all {len(lengths)} sequences are longer than length {size}, and dropped: none is left")
    cut = row_slices(rows, lengths, max(size, 1))
    width = max(1, *(sum(piece.stop - piece.start for _, piece in row) for row in cut)) if length is None else length
    return _layout(cut, -(-width // multiple_of) * multiple_of, side)


def _layout(cut: list[list[tuple[int, slice]]], width: int, side: Side) -> Layout:
    sizes = [[piece.stop - piece.start for _, piece in row] for row in cut]
    firsts = [width - sum(row) if side == "left" else 0 for row in sizes]
    starts = [
        start for first, row in zip(firsts, sizes, strict=True) for start in np.cumsum([first, *row])[:-1].tolist()
    ]
    return Layout(
        [item for row in cut for item, _ in row],
        [piece for row in cut for _, piece in row],
        torch.tensor([number for number, row in enumerate(cut) for _ in row], dtype=torch.int64, device="cpu"),
        torch.tensor(starts, dtype=torch.int64, device="cpu"),
        torch.tensor([size for row in sizes for size in row], dtype=torch.int64, device="cpu"),
        (len(cut), width),
    )
