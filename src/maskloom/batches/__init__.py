"""Batches: forms of padding, packing, and what a DataLoader needs. Each name is loaded when it is first used."""

import importlib
from typing import TYPE_CHECKING, Any

from maskloom.core.forks import loading as _loading

if TYPE_CHECKING:
    from maskloom.batches.bins import fill, pack_lengths, row_slices
    from maskloom.batches.documents import document_ids, positions
    from maskloom.batches.forms import (
        lengths_from_offsets,
        lengths_from_pads,
        offsets_from_lengths,
        pads_from_lengths,
        pads_from_tokens,
        pads_from_zeros,
    )
    from maskloom.batches.packed import Packed, pack, unpack
    from maskloom.loading.batch import Batch
    from maskloom.loading.collate import Collator
    from maskloom.loading.sample import TokenBudgetSampler

__all__ = [
    "pads_from_lengths",
    "pads_from_tokens",
    "pads_from_zeros",
    "lengths_from_pads",
    "offsets_from_lengths",
    "lengths_from_offsets",
    "positions",
    "document_ids",
    "Packed",
    "pack",
    "unpack",
    "pack_lengths",
    "row_slices",
    "fill",
    "Collator",
    "Batch",
    "TokenBudgetSampler",
]

_ROOMS = {
    "maskloom.batches.bins": ("pack_lengths", "row_slices", "fill"),
    "maskloom.batches.documents": ("positions", "document_ids"),
    "maskloom.batches.packed": ("Packed", "pack", "unpack"),
    "maskloom.loading.batch": ("Batch",),
    "maskloom.loading.collate": ("Collator",),
    "maskloom.loading.sample": ("TokenBudgetSampler",),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'maskloom.batches' has no attribute {name!r}")
    with _loading:  # a fork waits for it
        return getattr(importlib.import_module(_HOMES.get(name, "maskloom.batches.forms")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
