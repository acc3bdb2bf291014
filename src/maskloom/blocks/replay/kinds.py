"""The recipe of the block masks of all masks of one structure: what of it depends on no values, once for all of them.

A training step makes a mask of new lengths. Its block mask is built by the recipe that an earlier mask of the structure gave, with what
was computed of tensors recorded as lists of operations, or as a CUDA graph.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.blocks.first_sight import at_first_sight
from maskloom.blocks.index_tables import to_block_mask
from maskloom.blocks.open_tiles import decide
from maskloom.blocks.replay.cached import MOST_BYTES, MOST_BYTES_EACH, MOST_KINDS
from maskloom.blocks.replay.captured import CapturedCalls, Tensors, are_allowed
from maskloom.blocks.replay.manner import manner
from maskloom.blocks.replay.plan import ReplayPlan
from maskloom.blocks.replay.recorder import record_replay
from maskloom.core import captures
from maskloom.core.block_masks import TABLES
from maskloom.core.cache import LRU
from maskloom.core.forks import computed_once
from maskloom.core.pickling import check_can_be_sent
from maskloom.core.templates import Template, template_of
from maskloom.core.torch_state import can_cache, float_state, raw_stream, uncompiled, without_autocast
from maskloom.masks.algebra import Mask
from maskloom.masks.simplify import simplified, simplify
from maskloom.program.program import MaskMod

if TYPE_CHECKING:
    from maskloom.blocks.construct import Recipe


@dataclass(frozen=True)
class RecipeOfKind:
    """The recipe of all masks of one structure, without tensors.

    Attributes:
        derive: computes from a mask's tensors those that its simpler form holds besides; None where there are none.
        bare: of a mask of the structure, without its tensors.
        slots: which of all these are the tensors of its program, in the order there.
        held: the mask that the BlockMask holds.
        is_captured: whether all of it becomes one CUDA graph, where these are allowed.
        states: computes from a mask's tensors what `at_first_sight` gives, and what `derive` computes; None where that cannot
            be repeated, or is not small.
    """

    derive: ReplayPlan | None
    bare: "Recipe"
    slots: tuple[int, ...]
    held: Template[MaskMod]
    is_captured: bool
    states: ReplayPlan | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that its lists of operations hold."""
        return sum(plan.nbytes for plan in (self.derive, self.states) if plan is not None)

    def build(self, tensors: tuple[Tensor, ...], remarks: Sequence[captures.Remark] | None = None) -> BlockMask:
        """The BlockMask of the mask that holds these tensors, and remarks on them."""
        if not (self.is_captured and are_allowed()):
            return self._listed(tensors, remarks)
        with torch.no_grad():
            found = self._computed(tensors)
        tables: dict[str, Any] = dict(zip(TABLES, found, strict=False))
        held, grid = self.held.filled((*tensors, *found[len(TABLES) :]), remarks), self.bare.grid
        check_can_be_sent(held)
        return BlockMask(
            seq_lengths=(grid.q_len, grid.kv_len),
            BLOCK_SIZE=(grid.q_block, grid.kv_block),
            mask_mod=held,
            **tables,
        )

    def _listed(self, tensors: tuple[Tensor, ...], remarks: Sequence[captures.Remark] | None) -> BlockMask:
        """The BlockMask by lists of operations."""
        if self.states is None:
            derived = () if self.derive is None else self.derive.run(tensors)
            return self._recipe((*tensors, *derived), remarks).build()
        bare = self.bare
        with without_autocast(bare.program.device):
            states, *found = self.states.run(tensors)
        undecided = [found.pop(0) for _ in range(2)] if bare.exact else []  # whether there are any, and which
        known = (*tensors, *found)
        held = self.held.filled(known, remarks)
        check_can_be_sent(held)
        if undecided and undecided[0]:
            program = bare.program.of(held, [known[slot] for slot in self.slots])
            states, _ = decide(states, undecided[1].nonzero(), program, bare.grid)
        return to_block_mask(states, held, bare.grid, separate_full_blocks=bare.separate_full_blocks)

    def with_states(self, tensors: Sequence[Tensor]) -> "RecipeOfKind":
        """The same, with the states of tiles recorded as one list of operations on such tensors."""
        bare = self.bare
        if bare.visits_all or not 0 < math.prod(bare.grid.shape) <= _MOST_TILES_OF_STATES or not tensors:
            return self
        if bare.exact and (torch.is_inference_mode_enabled() or bare.program.device.type not in ("cpu", "cuda")):
            return self

        def computed() -> Tensors:
            derived = () if self.derive is None else self.derive.listed(tensors)
            program = self._recipe((*tensors, *derived)).program
            with without_autocast(program.device):
                return *at_first_sight(program, bare.grid, exact=bare.exact, count=None), *derived

        constants = [*bare.program.bare.constants, *(() if self.derive is None else self.derive.constants)]
        _, plan = uncompiled(record_replay)(computed, tensors, constants, may_wait=bare.exact)
        return self if plan is None or plan.nbytes > MOST_BYTES_EACH else replace(self, states=plan)

    def _recipe(self, tensors: Sequence[Tensor], remarks: Sequence[captures.Remark] | None = None) -> "Recipe":
        held = self.held.filled(tensors, remarks)
        return self.bare.of(self.bare.program.of(held, [tensors[slot] for slot in self.slots]), held)

    @computed_once
    def _computed(self) -> CapturedCalls:
        """The tables, and the derived tensors, from the mask's tensors."""

        def computed(*tensors: Tensor) -> tuple[Tensor, ...]:
            derived = () if self.derive is None else self.derive.listed(tensors)
            built = self._recipe((*tensors, *derived)).build()
            return *[getattr(built, name) for name in TABLES], *derived

        results = 0 if self.derive is None else len(self.derive.results)
        return CapturedCalls(computed, [None] * (len(TABLES) + results))


_MOST_TILES_OF_STATES = 1 << 18
"""Maximum tiles whose states are computed by such a list."""

_MOST_CAPTURED = 1 << 18
"""Maximum tiles of a block mask that is built by a CUDA graph: the memory of that stays."""

_MOST_COPIED = 1 << 22
"""Maximum bytes of the tensors of its mask, which are copied each time."""


def kinds_cache(most_bytes: int = MOST_BYTES) -> LRU[Hashable, Any]:
    """A cache of recipes by kind, or of what holds such a recipe, and says so by its ``nbytes``; of words too."""
    return LRU(MOST_KINDS, most_bytes=most_bytes, nbytes=lambda known: getattr(known, "nbytes", 0))


_kinds: LRU[Hashable, RecipeOfKind | Literal["second time", "no kind"]] = kinds_cache()


def built_like(mask: Mask, arguments: Hashable, make: Callable[[], "Recipe"]) -> BlockMask:
    """The BlockMask of ``make()``, or of the recipe that it gave for a mask of the same structure.

    Args:
        arguments: all that the recipe depends on beside the mask.
    """
    facts = captures.facts_of(mask)
    if facts.may_change or not facts.is_plain or not can_cache() or not manner.is_recorded:
        return make().build()
    laid = tuple([  # with places in their memory, in which recorded views of them have places of their own
        (type(held), held.shape, held.stride(), held.storage_offset(), raw_stream(held.device)) for held in facts.tensors
    ])  # fmt: skip
    key = captures.structure(mask, numbers=True), laid, arguments, float_state(), torch.is_inference_mode_enabled()
    known = _kinds.get(key)
    if isinstance(known, RecipeOfKind):
        return known.build(facts.tensors, facts.remarks)
    recipe = make()
    if known is None:
        _kinds.put(key, "second time")
    elif known == "second time":
        kind = kind_of(recipe, mask, facts.tensors, facts.remarks)
        _kinds.put(key, kind or "no kind")
        if kind is not None:  # which has recorded what the recipe would record again
            return kind.build(facts.tensors, facts.remarks)
    return recipe.build()


def kind_of(
    recipe: "Recipe", mask: Mask, tensors: Sequence[Tensor], remarks: Sequence[captures.Remark] = ()
) -> RecipeOfKind | None:
    """The recipe without tensors; None if it holds others than these, or if masks of one structure have other programs.

    Args:
        mask: of which it is, before it was `simplified`; it holds ``tensors``, and ``remarks`` on them.
    """
    derived, derive = _derived(mask, tensors)
    known = [*tensors, *derived]
    held, places = template_of(recipe.held, known, remarks), {id(tensor): place for place, tensor in enumerate(known)}
    slots = tuple([places.get(id(tensor), -1) for tensor in recipe.program.held])
    if recipe.program.key is None or held is None or -1 in slots or (derived and derive is None):
        return None
    program = recipe.program.of(noop_mask, [])
    is_captured = (
        not (recipe.exact or recipe.visits_all)  # then nothing waits, and there is something to compute
        and recipe.separate_full_blocks
        and program.device.type == "cuda"
        and not torch.is_inference_mode_enabled()
        and math.prod(recipe.grid.shape) <= _MOST_CAPTURED
        and sum((tensor.numel() + int(tensor.storage_offset())) * tensor.itemsize for tensor in known) <= _MOST_COPIED
        and {tensor.device for tensor in known} == {program.device}
    )
    made = RecipeOfKind(derive, recipe.of(program, noop_mask), slots, held, is_captured)
    return made.with_states(tensors)


def _derived(mask: Mask, tensors: Sequence[Tensor]) -> tuple[list[Tensor], ReplayPlan | None]:
    """The tensors that the mask's simpler form computes, and how; no plan if that cannot be repeated."""
    names = set(map(id, tensors))

    def others(form: Mask) -> Tensors:
        return tuple([tensor for tensor in captures.tensors(form) if id(tensor) not in names])

    found = others(simplified(mask))
    if not found:
        return [], None
    again, plan = uncompiled(record_replay)(lambda: others(simplify(mask)), tensors)
    same = [_meta(tensor) for tensor in again] == [_meta(tensor) for tensor in found]
    return list(found), plan if same else None


def _meta(tensor: Tensor) -> Hashable:
    return tensor.dtype, tensor.shape, tensor.stride()
