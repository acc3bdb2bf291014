"""Forms of padding: lengths, offsets and padding tables, each computed from another."""

from maskloom.batches.forms import (
    lengths_from_offsets,
    lengths_from_pads,
    offsets_from_lengths,
    pads_from_lengths,
    pads_from_tokens,
    pads_from_zeros,
)

__all__ = [
    "pads_from_lengths",
    "pads_from_tokens",
    "pads_from_zeros",
    "lengths_from_pads",
    "offsets_from_lengths",
    "lengths_from_offsets",
]
