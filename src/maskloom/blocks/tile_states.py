"""Tile states and counts from a BlockMask's tables.

A BlockMask means: every element of its full tiles, and the elements of its partial tiles where mask_mod returns True.
Neither the tables nor mask_mod alone are the mask.
"""

import copyreg
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core.block_masks import made_of_mask, says_its_mask
from maskloom.core.pickling import reduced
from maskloom.core.symbols import ceil_div

SKIPPED, PARTIAL, FULL = 0, 1, 2


def _reduced(block_mask: BlockMask) -> Any:
    """What is sent: a DataLoader worker reports what cannot be pickled, wherever it was built."""
    found = reduced(block_mask)
    if found[0] is not copyreg.__newobj__ or not says_its_mask(block_mask):  # type: ignore[attr-defined] # typeshed has it not
        return found
    return _received, found[1:3]


def _received(made: tuple[type[BlockMask]], state: dict[str, Any]) -> BlockMask:
    block_mask = BlockMask.__new__(*made)
    vars(block_mask).update(state)
    return made_of_mask(block_mask)


ForkingPickler.register(BlockMask, _reduced)


_ALL = slice(None)


def tile_states(block_mask: BlockMask, rows: slice = _ALL) -> Tensor:
    """The state of each tile: int8 (B or 1, H or 1, query tiles, key tiles) of SKIPPED, PARTIAL and FULL.

    Args:
        rows: the query tiles to return.
    """
    kv_block = block_mask.BLOCK_SIZE[1]
    key_tiles = ceil_div(block_mask.seq_lengths[1], kv_block)
    states = _listed(block_mask.kv_num_blocks[..., rows], block_mask.kv_indices[..., rows, :], key_tiles).to(torch.int8)
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = _listed(block_mask.full_kv_num_blocks[..., rows], block_mask.full_kv_indices[..., rows, :], key_tiles)
        states = states.masked_fill(full, FULL)
    return states


class TileCounts(NamedTuple):
    """The number of tiles of each state in a BlockMask, over all batch rows and heads of its tables."""

    skipped: int
    partial: int
    full: int


@dataclass
class Decided:
    """How many tiles each method decided. Only distinct tiles count: shared batch rows and heads count once."""

    total: int = 0
    left_open: int = 0  # not decided by intervals
    evaluation: int = 0
    unsupported_ops: tuple[str, ...] = field(default=())

    def add(self, states: Tensor, is_open: Tensor, unsupported_ops: tuple[str, ...]) -> None:
        """Count the tiles of a band."""
        self.unsupported_ops = unsupported_ops
        self.total += states.numel()
        self.left_open += int(is_open.sum())

    @property
    def intervals(self) -> int:
        return self.total - self.left_open

    @property
    def witnesses(self) -> int:
        return self.left_open - self.evaluation


def tile_counts(block_mask: BlockMask) -> TileCounts:
    """The numbers of tiles that attention skips, visits with mask_mod (partial), and visits without it (full)."""
    counts = torch.bincount(tile_states(block_mask).flatten().long(), minlength=3)
    return TileCounts(*counts.tolist())


def _listed(counts: Tensor, indices: Tensor, key_tiles: int) -> Tensor:
    """Which key tiles a table lists for each query tile: bool (B, H, query tiles, key tiles)."""
    position = torch.arange(indices.shape[-1], device=indices.device)
    target = torch.where(position < counts[..., None], indices.long(), key_tiles)  # beyond the count: a dropped column
    listed = torch.zeros(*indices.shape[:-1], key_tiles + 1, dtype=torch.bool, device=indices.device)
    return listed.scatter(-1, target, True)[..., :key_tiles]
