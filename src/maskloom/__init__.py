"""Attention over batches that are not rectangles, on top of torch's FlexAttention.

A mask is written once, as ``mask(b, h, q_idx, kv_idx) -> bool``, and used in many ways. True means "may attend".
"""

import importlib
from typing import TYPE_CHECKING, Any

from maskloom.attention.attend import attend, explain
from maskloom.attention.merge import merge
from maskloom.attention.reference import reference
from maskloom.attention.weights import attention_weights
from maskloom.blocks.build import block_mask, create_block_mask
from maskloom.core import words as _words
from maskloom.core.forks import loading as _loading
from maskloom.errors import FallbackError, ParseError
from maskloom.masks.algebra import Mask, and_masks, as_mask, everything, nothing, or_masks
from maskloom.masks.parse import parse
from maskloom.masks.patterns.packed.segments import documents
from maskloom.masks.patterns.padding import create_padding_mask, key_padding, lengths, padding, real
from maskloom.masks.patterns.position import prefix, sinks
from maskloom.masks.patterns.relative import causal, window

if TYPE_CHECKING:  # loaded when they are first used
    from maskloom import batches, blocks, distributed, masks, nn, scores, show, testing
    from maskloom.nn.multihead import MultiheadFlexAttention
    from maskloom.show.plot import visualize_attention_scores

__version__ = "0.2.0"

# The public surface, in the order of the documentation: names, then namespaces.
__all__ = [
    "Mask",
    "as_mask",
    "causal",
    "window",
    "lengths",
    "padding",
    "key_padding",
    "real",
    "documents",
    "prefix",
    "sinks",
    "everything",
    "nothing",
    "and_masks",
    "or_masks",
    "create_padding_mask",
    "parse",
    "block_mask",
    "create_block_mask",
    "attend",
    "explain",
    "reference",
    "merge",
    "attention_weights",
    "MultiheadFlexAttention",
    "visualize_attention_scores",
    "FallbackError",
    "ParseError",
    "masks",
    "blocks",
    "scores",
    "batches",
    "nn",
    "distributed",
    "show",
    "testing",
]

_LAZY = {
    "MultiheadFlexAttention": "maskloom.nn.multihead",
    "visualize_attention_scores": "maskloom.show.plot",
}
_RENAMED = {
    "mask_value": "masks.mask_dataclass",
    "blind_rows": "blocks.fully_masked_rows",
    "blind_queries": "blocks.fully_masked_queries",
    "plot_attention": "show.attention",
    "plot_mask": "show.mask",
    "plot_tiles": "show.tiles",
}
"""Names of 0.1, and what they are now."""
_NAMESPACES = ("masks", "blocks", "scores", "batches", "nn", "distributed", "show", "testing")


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES or name in _LAZY:
        with _loading:  # a fork waits for it
            module = importlib.import_module(_LAZY.get(name, f"maskloom.{name}"))
        return getattr(module, name) if name in _LAZY else module
    raise AttributeError(f"module 'maskloom' has no attribute {name!r}{_moved(name)}")


def _moved(name: str) -> str:
    """A hint for a name that is in a namespace, or had another name in 0.1."""
    if name in _RENAMED:
        return f"; it is maskloom.{_RENAMED[name]}"
    homes = [
        space
        for space in _NAMESPACES[:-1]
        if name in getattr(importlib.import_module(f"maskloom.{space}"), "__all__", ())
    ]
    return f"; it is maskloom.{homes[0]}.{name}" if homes else ""


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext maskloom``: IPython shows torch's BlockMask with a picture. Importing maskloom inside IPython does so too."""
    _words.register_block_masks(shell)


def _html() -> Any:
    with _loading:
        return importlib.import_module("maskloom.show.notebook").html_of


_words.made_by(_html)
_words.register_block_masks()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
