"""Attention over batches that are not rectangles, on top of torch's FlexAttention.

A mask is written once, as ``mask(b, h, q_idx, kv_idx) -> bool``, and read many ways. True means "may attend".
"""

from maskloom.attention.functional import attend, explain
from maskloom.attention.reference import reference
from maskloom.batches.lengths import (
    lengths_from_offsets,
    lengths_from_pads,
    offsets_from_lengths,
    pads_from_lengths,
    pads_from_tokens,
    pads_from_zeros,
)
from maskloom.blocks.build import block_mask, create_block_mask
from maskloom.blocks.inspect import density, explain_block_mask, summary
from maskloom.blocks.keep import BlockMaskCache, to_device, update_
from maskloom.errors import FallbackError, ParseError
from maskloom.masks.algebra import Mask, and_masks, as_mask, everything, mask_value, nothing, or_masks
from maskloom.masks.moved import shifted
from maskloom.masks.padding import create_padding_mask, key_padding, lengths, padding, real
from maskloom.masks.parse import parse
from maskloom.masks.position import prefix, sinks
from maskloom.masks.relative import causal, window
from maskloom.masks.segments import documents
from maskloom.masks.simplify import simplify
from maskloom.nn.multihead import MultiheadFlexAttention
from maskloom.show.plot import plot_attention, plot_mask, plot_tiles, save_figure, visualize_attention_scores

__version__ = "0.1.0"

# The public surface, in the order of the documentation.
__all__ = [
    # masks: what may attend to what
    "causal",
    "window",
    "prefix",
    "sinks",
    "lengths",
    "real",
    "padding",
    "key_padding",
    "documents",
    "shifted",
    "everything",
    "nothing",
    "as_mask",
    "and_masks",
    "or_masks",
    "create_padding_mask",
    "simplify",
    "parse",
    "ParseError",
    "Mask",
    "mask_value",
    # batches: where the padding is
    "pads_from_lengths",
    "pads_from_tokens",
    "pads_from_zeros",
    "lengths_from_pads",
    "offsets_from_lengths",
    "lengths_from_offsets",
    # blocks: which tiles must be visited
    "block_mask",
    "create_block_mask",
    "explain_block_mask",
    "summary",
    "density",
    "to_device",
    "update_",
    "BlockMaskCache",
    # attention: run it
    "attend",
    "explain",
    "reference",
    "FallbackError",
    # nn: the module
    "MultiheadFlexAttention",
    # show: see it
    "visualize_attention_scores",
    "plot_attention",
    "plot_mask",
    "plot_tiles",
    "save_figure",
]
