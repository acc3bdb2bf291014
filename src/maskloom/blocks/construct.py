"""From a mask to its BlockMask: run it, lay the grid, classify the tiles, write the index tables.

A block mask that follows from numbers alone is kept, and copied for later calls. Of one that follows from tensors, its
`Recipe` is kept for all masks of the same structure.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.blocks.classify import classify
from maskloom.blocks.grid import Grid, Wanted, grid_of
from maskloom.blocks.index_tables import to_block_mask
from maskloom.core import captures
from maskloom.core.block_masks import copied_tables
from maskloom.core.cache import LRU
from maskloom.core.pickling import check_can_be_sent
from maskloom.core.templates import Template, template_of
from maskloom.core.torch_state import can_cache, float_state
from maskloom.masks.algebra import Mask
from maskloom.program.mask_program import MaskProgram, program_of
from maskloom.program.program import MaskMod

_constants: LRU[Hashable, BlockMask] = LRU(64)
"""Block masks that follow from numbers alone."""

_MOST_TILES = 1 << 14  # of such a block mask: 512 KiB of tables


@dataclass(frozen=True)
class Recipe:
    """How the BlockMask of a mask is built.

    Attributes:
        program: of the mask whose tiles are classified.
        held: the mask that the BlockMask holds.
        exact, separate_full_blocks: see `block_mask` and `create_block_mask`.
    """

    program: MaskProgram
    grid: Grid
    held: MaskMod
    exact: bool = True
    separate_full_blocks: bool = True

    def holding(self, held: MaskMod) -> "Recipe":
        """The same, of a BlockMask that holds another, equal mask."""
        return replace(self, held=held)

    def build(self) -> BlockMask:
        """A BlockMask with tables of its own: whoever gets it may write into them."""
        check_can_be_sent(self.held)
        key = self._key()
        built = None if key is None else _constants.get(key)
        if built is None:
            states = classify(self.program, self.grid, exact=self.exact)
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
    held = mask if shifted is None else shifted
    return Recipe(program, grid_of(program.dependence, wanted), held, exact, separate_full_blocks)


class RecipeOfKind(NamedTuple):
    """The recipe of all masks of one structure, without tensors.

    Attributes:
        slots: which of a mask's tensors are those of its program, in the order there.
    """

    program: MaskProgram
    slots: tuple[int, ...]
    held: Template[MaskMod]
    rest: tuple[Grid, bool, bool]

    def of(self, tensors: Sequence[Tensor]) -> Recipe:
        """The recipe of the mask that holds these tensors."""
        grid, exact, separate_full_blocks = self.rest
        held = self.held.filled(tensors)
        program = self.program.of(held, [tensors[slot] for slot in self.slots])
        return Recipe(program, grid, held, exact, separate_full_blocks)


_kinds: LRU[Hashable, RecipeOfKind | Literal["second time", "no kind"]] = LRU(256)


def recipe_of_kind(mask: Mask, arguments: Hashable, make: Callable[[], Recipe]) -> Recipe:
    """``make()``, or the recipe that it gave for a mask of the same structure, with the tensors of this one.

    Args:
        arguments: all that the recipe depends on beside the mask.
    """
    facts = captures.facts_of(mask)
    if facts.may_change or not facts.is_plain or not can_cache():
        return make()
    shapes = tuple([tensor.shape for tensor in facts.tensors])
    key = captures.structure(mask, numbers=True), shapes, arguments, float_state()
    known = _kinds.get(key)
    if isinstance(known, RecipeOfKind):
        return known.of(facts.tensors)
    recipe = make()
    if known != "no kind":
        _kinds.put(key, "second time" if known is None else kind_of(recipe, facts.tensors) or "no kind")
    return recipe


def kind_of(recipe: Recipe, tensors: Sequence[Tensor]) -> RecipeOfKind | None:
    """The recipe without tensors; None if it holds others than these, or if masks of one structure have other programs."""
    held, places = template_of(recipe.held, tensors), {id(tensor): place for place, tensor in enumerate(tensors)}
    slots = tuple([places.get(id(tensor), -1) for tensor in recipe.program.held])
    if recipe.program.key is None or held is None or -1 in slots:
        return None
    rest = recipe.grid, recipe.exact, recipe.separate_full_blocks
    return RecipeOfKind(recipe.program.of(noop_mask, []), slots, held, rest)
