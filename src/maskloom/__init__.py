"""Attention over batches that are not rectangles, on top of torch's FlexAttention."""

from maskloom.attention.functional import attend as attend
from maskloom.attention.reference import reference as reference
from maskloom.blocks.build import block_mask as block_mask
from maskloom.blocks.build import create_block_mask as create_block_mask
from maskloom.blocks.inspect import explain_block_mask as explain_block_mask
from maskloom.blocks.inspect import summary as summary
from maskloom.blocks.keep import BlockMaskCache as BlockMaskCache
from maskloom.blocks.keep import to_device as to_device
from maskloom.errors import FallbackError as FallbackError
from maskloom.masks.algebra import and_masks as and_masks
from maskloom.masks.algebra import as_mask as as_mask
from maskloom.masks.algebra import everything as everything
from maskloom.masks.algebra import nothing as nothing
from maskloom.masks.algebra import or_masks as or_masks
from maskloom.masks.moved import shifted as shifted
from maskloom.masks.padding import key_padding as key_padding
from maskloom.masks.padding import lengths as lengths
from maskloom.masks.padding import padding as padding
from maskloom.masks.padding import real as real
from maskloom.masks.position import prefix as prefix
from maskloom.masks.position import sinks as sinks
from maskloom.masks.relative import causal as causal
from maskloom.masks.relative import window as window
from maskloom.masks.segments import documents as documents
