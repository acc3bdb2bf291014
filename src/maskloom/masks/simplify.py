"""Equal masks that kernels run faster, found from declared structure alone.

`simplify` looks at which masks are combined, never at the values of their tensors: every batch gets the same structure,
and with it the same compiled kernel. A rewrite gives an exactly equal mask, or is not made:

=====================================  ============================================================================
``causal & window(back=b, ahead=a)``   ``window(back=b, ahead=0)``: one band
``window(..) & window(..)``            the narrower in each direction
``causal & lengths(lens)``             ``causal`` and ``q_idx < lens[b]``: the keys before a real query are real
``causal & documents(offsets=..)``     ``causal`` and ``kv_idx >= start[q_idx]``: one table read, where ids take two
``m & m``, ``m | m`` (one object)      ``m``
=====================================  ============================================================================

``causal`` may also be a window that looks back only. Constants and double negation go when masks are combined already.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import is_

from maskloom.masks.algebra import (
    And,
    Mask,
    Not,
    Or,
    Xor,
    and_masks,
    or_masks,
    xor_masks,
)
from maskloom.masks.patterns.relative import Causal, Window
from maskloom.masks.patterns.shift import Shifted


def simplify(mask: Mask) -> Mask:
    """An equal mask that is cheaper for a kernel, or the mask itself where nothing is known to be cheaper.

    Equal means equal at every b, h, q_idx and kv_idx, under `shifted` also before position 0, with the same checks of lengths,
    batch rows and heads. Nothing waits for a device. docs/notes/backends.md has what becomes of what.
    """
    if isinstance(mask, And):
        parts = _conjunction([simplify(part) for part in mask.parts])
        return mask if _are(parts, mask.parts) else and_masks(*parts)
    if isinstance(mask, Or):
        parts = _once([simplify(part) for part in mask.parts])
        return mask if _are(parts, mask.parts) else or_masks(*parts)
    if isinstance(mask, Xor):
        parts = [simplify(part) for part in mask.parts]
        return mask if _are(parts, mask.parts) else xor_masks(*parts)
    if isinstance(mask, Not):
        inner = simplify(mask.part)
        return mask if inner is mask.part else ~inner
    if isinstance(mask, Shifted):
        inner = simplify(mask.mask)
        return mask if inner is mask.mask else replace(mask, mask=inner)
    return mask


def describe(mask: Mask) -> str:
    """A mask as a reader wants to see it: what `simplify` made is written out, where its repr names what it came from."""
    if isinstance(mask, And):
        return " & ".join(
            f"({part.description})" if hasattr(part, "description") else repr(part) for part in mask.parts
        )
    return mask.description if hasattr(mask, "description") else repr(mask)


def _are(parts: Sequence[Mask], others: Sequence[Mask]) -> bool:
    return len(parts) == len(others) and all(map(is_, parts, others))


def _conjunction(parts: list[Mask]) -> list[Mask]:
    parts = _one_band(_once(parts))
    if not any(isinstance(part, Causal) or (isinstance(part, Window) and part.ahead == 0) for part in parts):
        return parts
    return [part.beside_causal() for part in parts]


def _once(parts: list[Mask]) -> list[Mask]:
    return list({id(part): part for part in parts}.values())


def _one_band(parts: list[Mask]) -> list[Mask]:
    """All windows, and causal with them, as one window; where the first of them stood."""
    windows = [part for part in parts if isinstance(part, Window)]
    is_causal = any(isinstance(part, Causal) for part in parts)
    if not windows or len(windows) + is_causal == 1:
        return parts
    ahead = 0 if is_causal else min(window.ahead for window in windows)
    band = Window(min(window.back for window in windows), ahead)
    first = next(place for place, part in enumerate(parts) if isinstance(part, (Window, Causal)))
    rest = [band if place == first else part for place, part in enumerate(parts)]
    return [part for part in rest if part is band or not isinstance(part, (Window, Causal))]
