"""How long the rows of a batch are by what their mask declares: by lengths, by tables of padding, by documents."""

from collections.abc import Iterator
from typing import NamedTuple

from maskloom.core.checks import readable
from maskloom.masks.algebra import Mask, Not, as_mask, is_torch_and, joined_parts
from maskloom.masks.padded import PaddingMask
from maskloom.masks.patterns.transforms import PerHead, RepeatedHeads, Transposed
from maskloom.program.program import MaskMod


class LongestRow(NamedTuple):
    """The longest row that a mask declares: real positions, those of padding between them included.

    Attributes:
        length: of the row.
        row: the batch row; None where the mask says it of all.
        said_by: the part of the mask that says it, as its repr writes it.
    """

    length: int
    row: int | None
    said_by: str


def longest_row(mask: MaskMod) -> LongestRow | None:
    """The longest row that a mask declares on the CPU, None where it declares none there.

    Under `shifted`, `within` and layouts positions are others than those of the row: what stands there is not asked.
    """
    found = [row for part in _paddings(mask) for row in _longest_of(part)]
    return max(found, key=lambda row: row.length, default=None)


def _paddings(mask: MaskMod) -> Iterator[PaddingMask]:
    """The padding masks in a mask that count positions as the row does."""
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
    length, row = ends.max(0)
    yield LongestRow(int(length), int(row) if len(ends) > 1 else None, repr(part))
