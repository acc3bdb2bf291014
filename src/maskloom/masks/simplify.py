"""Rewrite masks to equal masks that kernels run faster, by structure alone.

`simplify` looks at how masks are combined, never at the values of their tensors: every batch gets the same structure,
and so the same compiled kernel. A rewrite always gives an exactly equal mask:

=====================================  ============================================================================
``causal & window(back=b, ahead=a)``   ``window(back=b, ahead=0)``: one band
``window(..) & window(..)``            the narrower in each direction
``causal & lengths(lens)``             ``causal`` and ``q_idx < lens[b]``: the keys before a real query are real
``causal & documents(offsets=..)``     ``causal`` and ``kv_idx >= start[q_idx]``: one table read, where ids take two
``m & m``, ``m | m`` (one object)      ``m``
=====================================  ============================================================================

``causal`` may also be a window that only looks back. Constants and double negation are removed earlier, when masks are
combined.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Any, cast

from maskloom.core.cache import cached_with
from maskloom.masks.algebra import (
    And,
    Mask,
    Not,
    Or,
    Placing,
    Xor,
    and_masks,
    or_masks,
    xor_masks,
)
from maskloom.masks.patterns.relative import Causal, Window
from maskloom.masks.patterns.shift import Shifted


def simplify(mask: Mask) -> Mask:
    """An equal mask that is cheaper for a kernel; the mask itself if no cheaper one is known.

    Equal means: the same at every b, h, q_idx and kv_idx (under `shifted` also before position 0), with the same checks
    of lengths, batch rows and heads. It never waits for a device. docs/notes/backends.md lists all rewrites.
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
    if isinstance(mask, (Shifted, Placing)):
        inner = simplify(mask.mask)
        return mask if inner is mask.mask else replace(cast(Any, mask), mask=inner)  # each is a dataclass
    return mask


def simplified(mask: Mask) -> Mask:
    """`simplify`, kept with the mask: what it computes from tensors is then computed once."""

    def cheaper() -> Mask | None:
        found = simplify(mask)
        return None if found is mask else found

    found = cached_with(mask, ("simplified",), cheaper)
    return mask if found is None else found


def describe(mask: Mask) -> str:
    """A mask as text for readers: it writes out parts made by `simplify`, whose repr names the original mask."""
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
    """Join all windows, and causal, to one window, at the place of the first of them."""
    windows = [part for part in parts if isinstance(part, Window)]
    is_causal = any(isinstance(part, Causal) for part in parts)
    if not windows or len(windows) + is_causal == 1:
        return parts
    ahead = 0 if is_causal else min(window.ahead for window in windows)
    band = Window(min(window.back for window in windows), ahead)
    first = next(place for place, part in enumerate(parts) if isinstance(part, (Window, Causal)))
    rest = [band if place == first else part for place, part in enumerate(parts)]
    return [part for part in rest if part is band or not isinstance(part, (Window, Causal))]
