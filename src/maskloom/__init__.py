"""Attention over batches that are not rectangles, on top of torch's FlexAttention.

A mask is written once, as ``mask(b, h, q_idx, kv_idx) -> bool``, and read many ways. True means "may attend".
"""

from maskloom.attention.functional import attend, explain
from maskloom.attention.kept import mark_changed
from maskloom.attention.merge import merge
from maskloom.attention.reference import reference
from maskloom.batches.lengths import (
    lengths_from_offsets,
    lengths_from_pads,
    offsets_from_lengths,
    pads_from_lengths,
    pads_from_tokens,
    pads_from_zeros,
)
from maskloom.blocks.blind import blind_queries
from maskloom.blocks.build import block_mask, create_block_mask
from maskloom.blocks.inspect import balance, blind_rows, density, explain_block_mask, summary, tiles_per_row
from maskloom.blocks.keep import BlockMaskCache, pin_memory, to_device, updatable, update_
from maskloom.blocks.loading import safe_globals
from maskloom.errors import FallbackError, ParseError
from maskloom.masks.algebra import Mask, and_masks, as_mask, everything, mask_value, nothing, or_masks
from maskloom.masks.arranged import per_batch, per_head, repeat_heads, transposed
from maskloom.masks.blockwise import chunked, fixed, strided
from maskloom.masks.conversations import shared_prefix, turns
from maskloom.masks.cross_documents import documents_lower_right
from maskloom.masks.diffusion import block_diffusion
from maskloom.masks.generation import beams, tree
from maskloom.masks.given import from_blocks, from_dense, top_k_blocks
from maskloom.masks.graphs import from_edges
from maskloom.masks.grid import axial, shifted_windows
from maskloom.masks.grid_windows import grid_window, neighbourhood
from maskloom.masks.layout import grid_tiles, morton, tiled
from maskloom.masks.media import flamingo, mixed_modal
from maskloom.masks.moved import shifted
from maskloom.masks.padding import create_padding_mask, key_padding, lengths, padding, real
from maskloom.masks.parse import parse
from maskloom.masks.position import global_tokens, key_range, prefix, query_range, random_blocks, sinks
from maskloom.masks.relative import (
    anticausal,
    band,
    causal,
    causal_lower_right,
    dilated,
    window,
    window_both_ways,
    window_counting_itself,
    window_reaching_back,
)
from maskloom.masks.segments import document_prefix, documents
from maskloom.masks.simplify import simplify
from maskloom.masks.video import spatial, temporal
from maskloom.masks.within import per_document, within
from maskloom.nn.holder import Holder
from maskloom.nn.multihead import MultiheadFlexAttention
from maskloom.scores.alibi import alibi
from maskloom.scores.composed import compose
from maskloom.scores.moved import shifted_score
from maskloom.scores.relative import relative_bias, t5_buckets
from maskloom.scores.softcap import softcap
from maskloom.show.plot import plot_attention, plot_mask, plot_tiles, save_figure, visualize_attention_scores

__version__ = "0.1.0"

# The public surface, in the order of the documentation.
__all__ = [
    # masks: what may attend to what
    # relative
    "causal",
    "anticausal",
    "causal_lower_right",
    "window",
    "window_counting_itself",
    "window_reaching_back",
    "window_both_ways",
    "band",
    "dilated",
    "strided",
    "fixed",
    "chunked",
    # position
    "prefix",
    "sinks",
    "key_range",
    "query_range",
    "global_tokens",
    "random_blocks",
    # padding
    "lengths",
    "real",
    "padding",
    "key_padding",
    # segments
    "documents",
    "documents_lower_right",
    "within",
    "per_document",
    "document_prefix",
    "shared_prefix",
    "turns",
    # moved and arranged
    "shifted",
    "transposed",
    "per_head",
    "per_batch",
    "repeat_heads",
    # grids and video
    "neighbourhood",
    "grid_window",
    "axial",
    "shifted_windows",
    "tiled",
    "morton",
    "grid_tiles",
    "spatial",
    "temporal",
    # generation
    "block_diffusion",
    "tree",
    "beams",
    "mixed_modal",
    "flamingo",
    # given
    "from_dense",
    "from_blocks",
    "top_k_blocks",
    "from_edges",
    # algebra
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
    "tiles_per_row",
    "blind_rows",
    "blind_queries",
    "balance",
    "to_device",
    "pin_memory",
    "updatable",
    "update_",
    "BlockMaskCache",
    "safe_globals",
    # scores: how a score is bent
    "alibi",
    "relative_bias",
    "t5_buckets",
    "softcap",
    "compose",
    "shifted_score",
    # attention: run it
    "attend",
    "explain",
    "mark_changed",
    "reference",
    "merge",
    "FallbackError",
    # nn: modules
    "MultiheadFlexAttention",
    "Holder",
    # show: see it
    "visualize_attention_scores",
    "plot_attention",
    "plot_mask",
    "plot_tiles",
    "save_figure",
]
