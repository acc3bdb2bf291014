"""The row lengths of a batch that a mask declares: by lengths, by padding tables, or by documents."""

from collections.abc import Iterator
from typing import NamedTuple

from maskloom.core.checks import readable
from maskloom.masks.algebra import Mask, Not, as_mask, is_torch_and, joined_parts
from maskloom.masks.padded import PaddingMask
from maskloom.masks.patterns.transforms import PerHead, RepeatedHeads, Transposed
from maskloom.program.program import MaskMod


class LongestRow(NamedTuple):
    """The longest row that a mask declares: its real positions, and the padding between them.

    Attributes:
        length: the length of the row.
        row: the batch row; None if the mask declares it for all rows.
        said_by: the repr of the part of the mask that declares it.
    """

    length: int
    row: int | None
    said_by: str


def longest_row(mask: MaskMod) -> LongestRow | None:
    """The longest row that a mask declares in tensors on the CPU; None if there is none.

    Parts under `shifted`, `within` and layouts are ignored, because their positions are not the positions of the row.
    """
    found = [row for part in _paddings(mask) for row in _longest_of(part)]
    return max(found, key=lambda row: row.length, default=None)


def _paddings(mask: MaskMod) -> Iterator[PaddingMask]:
    """The padding masks in a mask that use the positions of the row itself."""
    if isinstance(mask, PaddingMask):
        yield mask
    elif isinstance(mask, PerHead):
        yield from (found for part in mask.parts for found in _paddings(part))
    elif isinstance(mask, (Transposed, RepeatedHeads)):
        yield from _paddings(mask.mask)
    elif isinstance(mask, Not):
        yield from _paddings(mask.part)
    elif isinstance(mask, Mask):
        yield from (found for part in joined_parts(mask) for found in _paddings(part))
    elif is_torch_and(mask):
        yield from _paddings(as_mask(mask))


def _longest_of(part: PaddingMask) -> Iterator[LongestRow]:
    ends = part.row_ends()
    if ends is None or not readable(ends) or not ends.numel():
        return
    row = int(ends.argmax())  # not max(0): see `ends_along`
    yield LongestRow(int(ends[row]), row if len(ends) > 1 else None, repr(part))
