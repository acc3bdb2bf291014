"""From a mask to its BlockMask: run it, lay the grid, classify the tiles, write the index tables.

A block mask that follows from numbers alone is kept, and copied for later calls. Of one that follows from tensors, `replay.kinds` keeps
the recipe for all masks of the same structure.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.classify import classify
from maskloom.blocks.grid import Grid, Wanted, grid_of
from maskloom.blocks.index_tables import of_all_tiles, to_block_mask
from maskloom.blocks.replay.manner import manner
from maskloom.blocks.tile_states import SKIPPED
from maskloom.core import captures
from maskloom.core.block_masks import copied_tables
from maskloom.core.cache import LRU
from maskloom.core.pickling import check_can_be_sent
from maskloom.core.torch_state import can_cache
from maskloom.program.mask_program import MaskProgram, program_of
from maskloom.program.program import MaskMod

_constants: LRU[Hashable, BlockMask] = LRU(64)
"""Block masks that follow from numbers alone."""

_MOST_TILES = 1 << 14  # of such a block mask: 512 KiB of tables


class Visits(NamedTuple):
    """Tiles that attention visits, over all batch rows and heads of the tables.

    Attributes:
        needed: of which some element is visible.
        vain: of which none is, though intervals alone do not tell.
    """

    needed: int
    vain: int


@dataclass(frozen=True)
class Recipe:
    """How the BlockMask of a mask is built.

    Attributes:
        program: of the mask whose tiles are classified.
        held: the mask that the BlockMask holds.
        exact, separate_full_blocks: see `block_mask` and `create_block_mask`.
        visits_all: whether all tiles are partial, whatever the mask hides: nothing is looked at, and nobody may write into
            the tables.
    """

    program: MaskProgram
    grid: Grid
    held: MaskMod
    exact: bool = True
    separate_full_blocks: bool = True
    visits_all: bool = False

    def visits(self) -> Visits:
        """How many tiles attention visits, and how many of them for nothing if no element is evaluated.

        Asking waits for the device.
        """
        certain, loose = (
            classify(self.program, self.grid, exact=exact, is_recorded=False) != SKIPPED for exact in (True, False)
        )
        return Visits(needed=int(certain.sum()), vain=int((loose & ~certain).sum()))

    def check(self) -> None:
        """Raise the errors that building it raises, of positions beyond a table say. It never waits for the device."""
        classify(self.program, self.grid, exact=False, is_recorded=False)

    def of(self, program: MaskProgram, held: MaskMod) -> "Recipe":
        """The same of another mask of its structure, and of that mask's program."""
        return Recipe(program, self.grid, held, self.exact, self.separate_full_blocks, self.visits_all)

    def holding(self, held: MaskMod) -> "Recipe":
        """The same, of a BlockMask that holds another, equal mask."""
        return replace(self, held=held)

    def build(self) -> BlockMask:
        """A BlockMask with tables of its own: whoever gets it may write into them."""
        if self.visits_all:
            return of_all_tiles(self.held, self.grid, self.program.device)
        check_can_be_sent(self.held)
        key = self._key()
        built = None if key is None else _constants.get(key)
        if built is None:
            states = classify(self.program, self.grid, exact=self.exact, is_recorded=manner.is_recorded)
            built = to_block_mask(states, self.held, self.grid, separate_full_blocks=self.separate_full_blocks)
            if key is None or built.kv_indices.numel() > _MOST_TILES:
                return built
            _constants.put(key, built)
        return copied_tables(built, mask_mod=self.held)

    def _key(self) -> Hashable | None:
        """A key of the tables, where they follow from numbers."""
        of_numbers = self.program.is_of_numbers and self.program.device.type == "cpu" and can_cache()
        offsets = self.grid.q_offset, self.grid.kv_offset
        if not of_numbers or any(isinstance(offset, Tensor) for offset in offsets):
            return None
        return self.program.key, self.grid, self.exact, self.separate_full_blocks


def recipe_of(
    mask: MaskMod,
    wanted: Wanted,
    device: torch.device | str | None,
    *,
    shifted: MaskMod | None = None,
    exact: bool = True,
    separate_full_blocks: bool = True,
) -> Recipe:
    """The recipe of a mask's BlockMask.

    Args:
        shifted: the mask that the BlockMask holds, if the first positions are not 0; by default the mask itself.

    Raises:
        TypeError, ValueError: the errors of `block_mask` that need the mask's program.
    """
    program = program_of(mask, captures.device_for(mask, device))
    if program.is_mapped:
        raise ValueError(
            "torch.vmap maps over tensors of this mask, and a block mask has tables for one: give attend the mask itself, or "
            "build the block mask outside of vmap"
        )
    if exact and program.device.type == "meta":
        raise ValueError(
            "which tiles a block mask has depends on values, and there are none on the meta device; build it on another, or with "
            "exact=False"
        )
    held = mask if shifted is None else shifted
    return Recipe(program, grid_of(program.dependence, wanted), held, exact, separate_full_blocks)
