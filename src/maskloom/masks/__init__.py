"""Masks: what may attend to what. Every pattern, how masks combine, and how to write one."""

from maskloom.core.cache import mark_changed
from maskloom.masks import patterns
from maskloom.masks.algebra import Mask, and_masks, as_mask, everything, mask_dataclass, nothing, or_masks
from maskloom.masks.parse import parse
from maskloom.masks.patterns import *
from maskloom.masks.simplify import simplify

__all__ = [
    *patterns.__all__,
    "everything",
    "nothing",
    "as_mask",
    "and_masks",
    "or_masks",
    "simplify",
    "parse",
    "Mask",
    "mask_dataclass",
    "mark_changed",
]
