"""The mask of a padded batch, as a mask of its tokens packed into one row."""

from torch import Tensor

from maskloom.masks.algebra import And, Everything, Mask, Not, Or, Xor, and_masks, as_mask
from maskloom.masks.padded import PaddingMask
from maskloom.masks.patterns.packed.segments import documents
from maskloom.masks.patterns.padding import Lengths, Padding, QueryLengths, Real
from maskloom.masks.patterns.relative import Anticausal, Causal, Window
from maskloom.program.program import MaskMod


def packed_form(mask_mod: MaskMod, offsets: Tensor, length: int) -> Mask | None:
    """The mask of a row in which the real tokens of each batch row are a document; None where there is none for sure.

    It is for a mask that is one padding mask and others, which ask in what order query and key stand; or how far they are
    apart, if padding stands behind the tokens alone. Both are the same in the row.

    Args:
        offsets: integers (pieces + 1,), where each batch row's tokens begin, and the end; other pieces see nothing but themselves.
        length: of the row. What stands behind the end is hidden.
    """
    mask = as_mask(mask_mod)
    parts = mask.parts if isinstance(mask, And) else (mask,)
    paddings = [part for part in parts if isinstance(part, PaddingMask)]
    others = [part for part in parts if not isinstance(part, PaddingMask)]
    if len(paddings) != 1 or not _is_of_one_sequence(paddings[0]):
        return None
    kept = _BY_DISTANCE if isinstance(paddings[0], (Lengths, QueryLengths)) else _BY_ORDER
    if not all(_consists_of(kept, part) for part in others):
        return None
    return and_masks(*others, documents(offsets=offsets, length=length))


_BY_ORDER = (Causal, Anticausal, Everything)
_BY_DISTANCE = (*_BY_ORDER, Window)


def _is_of_one_sequence(padding: PaddingMask) -> bool:
    """Whether it hides the same positions as queries and as keys."""
    if isinstance(padding, Lengths):
        return padding.q_lens is padding.kv_lens
    if isinstance(padding, Padding):
        return padding.q_pads is padding.kv_pads
    if isinstance(padding, Real):
        return padding.q_real is padding.kv_real
    return isinstance(padding, QueryLengths)


def _consists_of(kinds: tuple[type[Mask], ...], mask: Mask) -> bool:
    if isinstance(mask, (And, Or, Xor)):
        return all(_consists_of(kinds, part) for part in mask.parts)
    return _consists_of(kinds, mask.part) if isinstance(mask, Not) else type(mask) in kinds
