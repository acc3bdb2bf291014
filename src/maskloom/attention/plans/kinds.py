"""Plans of a kind: what `attend` decides for a mask whose tensors are new, from a mask of the same structure.

A training step has new lengths. A plan as in `plan` is kept with a mask as long as its tensors stay as they are. Here is what
of it is the same for all masks of one structure, shapes and numbers: the backend, the compiled function, the form in
which its kernel takes the mask. Only the tables of the BlockMask are made anew. Nothing here depends on values: it is for
tensors on a GPU, whose values no check reads.

Whether tiles that intervals leave open are looked at closely, for which the host waits for the GPU, is decided by the mask
that the kind is made of: where it would save few visits, as `_is_worth_waiting` says, it is taken to save few for the others.
Where it would, attention visits tiles that it could have skipped; its result is the same.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import Backend, visits_all
from maskloom.attention.backends.table_reads import reads_by_values
from maskloom.attention.clean_padding import Hidden, hidden_in, hidden_of
from maskloom.attention.request import Request
from maskloom.blocks.construct import Recipe, Visits, recipe_of
from maskloom.blocks.grid import Wanted
from maskloom.blocks.replay.kinds import RecipeOfKind, kind_of, kinds_cache
from maskloom.blocks.replay.manner import built_once
from maskloom.blocks.replay.plan import ReplayPlan
from maskloom.blocks.replay.recorder import record_replay
from maskloom.core import captures
from maskloom.core.block_masks import emptied, rebuilt
from maskloom.core.cache import LRU
from maskloom.core.checks import readable
from maskloom.core.pickling import stays_here
from maskloom.core.templates import Template, template_of
from maskloom.core.torch_state import can_cache, float_state, raw_stream, uncompiled
from maskloom.core.weak_table import IdentityTable
from maskloom.masks.algebra import Mask
from maskloom.masks.dense import needed_sizes
from maskloom.masks.simplify import simplified
from maskloom.program.program import MaskMod


class Plan(Protocol):
    """What a plan must say of itself to be made again."""

    @property
    def blocks(self) -> BlockMask | None:
        """The BlockMask that its kernel gets; None if it gets something else of the mask."""

    @property
    def hidden(self) -> Hidden | None:
        """Where padding is cleaned; None if it is not."""

    def with_others(self, blocks: BlockMask, hidden: Hidden | None) -> Self:
        """The same with another BlockMask and padding of the same kind: a mask of the same structure, tables of the same shapes."""


P = TypeVar("P", bound=Plan)


class _Kind(NamedTuple):
    """A plan without tensors.

    Attributes:
        mask_mod: in the form that the kernel takes, where a BlockMask is given.
        recipe: of the BlockMask, where a mask is given; it holds the mask in that form.
        hides: computes where padding is cleaned from the mask's tensors; None where it is not.
    """

    plan: Any
    mask_mod: Template[MaskMod] | None
    recipe: RecipeOfKind | None
    hides: ReplayPlan | None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that its recipe holds."""
        return 0 if self.recipe is None else self.recipe.nbytes

    @property
    def lasts(self) -> bool:
        """Whether the plan for a mask stays right when its tensors are written into."""
        recipe = self.recipe
        return recipe is not None and recipe.bare.visits_all and recipe.derive is None and self.hides is None

    def plan_for(self, owner: Mask | BlockMask, facts: captures.Facts) -> Any:
        """The plan for a mask, or a BlockMask, of which these are the facts."""
        if isinstance(owner, BlockMask):
            assert self.mask_mod is not None
            blocks = rebuilt(owner, mask_mod=self.mask_mod.filled(facts.tensors, facts.remarks))
        else:
            assert self.recipe is not None
            with stays_here():
                blocks = self.recipe.build(facts.tensors, facts.remarks)
        return self.plan.with_others(blocks, None if self.hides is None else hidden_of(self.hides.run(facts.tensors)))


_kinds: LRU[Hashable, _Kind | Literal["second time", "no kind"]] = kinds_cache()

_exact: LRU[Hashable, bool | Literal["seen"]] = LRU(256)
"""Of structures of masks, and of the order of magnitude of their pairs, whether block masks are exact: for a batch of other lengths too
the host then waits, or does not."""


def plan_like(
    owner: Mask | BlockMask,
    facts: captures.Facts,
    call: Hashable,
    checked: Callable[[], tuple[Request, Backend]],
    make: Callable[[Request, Backend], P | None],
) -> P | None:
    """``make(*checked())``, or what it gave for an owner of the same kind, with the tensors of this one.

    A kind is recorded when its owner comes a second time. Before, ``make`` records nothing, and whether it waits for the device to
    make a block mask exact is what two masks of the structure, of about that size, have shown.

    Args:
        facts: of the mask.
        call: all else that the plan depends on.
    """
    state = _state(owner, facts)
    lasting = _lasting.get(owner)
    if state is not None and lasting is not None and lasting.tensors is facts.tensors:
        plan = lasting.plans.get((state, call))
        if plan is not None:
            return cast(P, plan)
    key = None if state is None else (_structure(owner), state, call)
    known = None if key is None else _kinds.get(key)
    if isinstance(known, _Kind):
        plan = known.plan_for(owner, facts)
        if known.lasts:
            if lasting is None or lasting.tensors is not facts.tensors or len(lasting.plans) >= _MOST_LASTING:
                lasting = _Lasting(facts.tensors, {})
                _lasting.put(owner, lasting)
            lasting.plans[state, call] = plan
        return cast(P, plan)
    request, backend = checked()
    if key is None:
        return make(request, backend)
    alike = _structure(owner), math.prod(request.sizes).bit_length()
    seen = _exact.get(alike)
    with built_once(exact=seen is not False):  # of what is built here; a BlockMask that is given stays as it is
        plan = make(request, backend)
    if isinstance(owner, Mask) and plan is not None and plan.blocks is not None:
        if seen is None:
            _exact.put(alike, "seen")
        elif seen == "seen" and known is None and not _visits_all(request, backend):  # else it is decided below
            _exact.put(alike, _is_exact(_whole(owner, request, backend), request))
    if known != "no kind":
        _kinds.put(key, "second time")
        if known is not None:
            new = None if plan is None else _kind_of(owner, facts, request, backend, plan)
            _kinds.put(key, new or "no kind")
    return plan


class _Lasting(NamedTuple):
    """The plans of one mask that hold whatever is written into its tensors, by all that they depend on."""

    tensors: tuple[Tensor, ...]
    plans: dict[Hashable, Any]


_lasting: IdentityTable[_Lasting] = IdentityTable()

_MOST_LASTING = 32


def _state(owner: Mask | BlockMask, facts: captures.Facts) -> Hashable | None:
    """What is the same for all of a kind, beside the structure of the mask; None where there is none."""
    if not (facts.is_plain and facts.tensors and can_cache()) or torch.is_inference_mode_enabled():
        return None
    tensors, given = facts.tensors, None
    if isinstance(owner, BlockMask):
        tables = {name: held for name, held in vars(owner).items() if isinstance(held, Tensor)}
        given = owner.BLOCK_SIZE, owner.seq_lengths, tuple(tables)
        tensors = (*tensors, *tables.values())
    if not all(map(_is_unread, tensors)):
        return None
    laid = tuple(
        [
            (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device, tensor.requires_grad)
            for tensor in tensors
        ]
    )
    return laid, given, float_state(), raw_stream(tensors[0].device)


def _structure(owner: Mask | BlockMask) -> Hashable:
    return captures.structure(owner.mask_mod if isinstance(owner, BlockMask) else owner, numbers=True)


def _is_unread(tensor: Tensor) -> bool:
    """Whether it is a plain tensor whose values no check reads."""
    return type(tensor) is Tensor and not readable(tensor)


def _kind_of(
    owner: Mask | BlockMask, facts: captures.Facts, request: Request, backend: Backend, plan: Plan
) -> _Kind | None:
    """The kind of a plan; None if it holds tensors that do not follow from the owner's, or has no tiles."""
    if plan.blocks is None:
        return None
    batch, heads, q_len, kv_len = request.sizes
    device, final = request.query.device, plan.blocks.mask_mod
    mask = owner.mask_mod if isinstance(owner, BlockMask) else owner
    recipe, mask_mod = None, None
    simple = simplified(mask) if isinstance(mask, Mask) else None
    if simple is None or reads_by_values(mask, device) or reads_by_values(simple, device):
        return None
    if isinstance(owner, Mask):
        same = captures.structure(final, numbers=True) == captures.structure(simple, numbers=True)
        whole = _whole(owner, request, backend)
        if not whole.visits_all:
            whole = replace(whole, exact=_is_exact(whole, request))
            _exact.put((_structure(owner), math.prod(request.sizes).bit_length()), whole.exact)
        whole = whole if same else whole.holding(final)  # if it is the same, with other copies of what is computed
        recipe = kind_of(whole, owner, facts.tensors, facts.remarks)
    elif not any(map(_stands_for_others, owner.kv_indices.shape, (batch, heads), _needed(mask, request))):
        mask_mod = template_of(final, facts.tensors, facts.remarks)
    hides = None if plan.hidden is None else _recorded(mask, facts, q_len, kv_len)
    if (mask_mod is None and recipe is None) or (hides is None and plan.hidden is not None):
        return None
    return _Kind(plan.with_others(emptied(plan.blocks), None), mask_mod, recipe, hides)


def _needed(mask: MaskMod, request: Request) -> tuple[int, int]:
    """B and H of its tables."""
    batch, heads, q_len, kv_len = request.sizes
    return needed_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=request.query.device)


def _whole(mask: Mask, request: Request, backend: Backend) -> Recipe:
    """The recipe of its exact BlockMask, or of the one of all tiles."""
    _, _, q_len, kv_len = request.sizes
    wanted = Wanted(q_len, kv_len, *_needed(mask, request), backend.block_size(request))
    found = recipe_of(simplified(mask), wanted, request.query.device)
    return replace(found, visits_all=_visits_all(request, backend))


def _visits_all(request: Request, backend: Backend) -> bool:
    return visits_all(request, backend.block_size(request))


def _is_exact(whole: Recipe, request: Request) -> bool:
    """Whether a BlockMask is made exactly as this recipe says."""
    batch, heads, _, _ = request.sizes
    return _is_worth_waiting(whole.visits(), batch * heads // max(1, math.prod(whole.grid.shape[:2])))


def _recorded(mask: MaskMod, facts: captures.Facts, q_len: int, kv_len: int) -> ReplayPlan | None:
    """How it is computed where a mask hides; None if that cannot be repeated."""
    found, plan = uncompiled(record_replay)(lambda: hidden_in(mask, q_len, kv_len) or (), facts.tensors)
    return plan if found else None


_FEW_VISITS = 1024
"""Tiles that a GPU of a hundred processors visits in about ten microseconds; a wait for it takes longer."""


def _is_worth_waiting(visits: Visits, times: int) -> bool:
    """Whether the host waits for the device to spare attention visits in vain, of tables that serve so many rows and heads."""
    return visits.vain * times > _FEW_VISITS and visits.vain > visits.needed // 8


def _stands_for_others(given: int, size: int, needed: int) -> bool:
    """Whether tables of a BlockMask are for several rows, or heads, of which each needs its own: their values are looked at."""
    return given != size and needed != 1
