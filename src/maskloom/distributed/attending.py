"""Attention by a plan: checks, exchange, attention to this rank's part, and back."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask

from maskloom.attention.backends.base import check_name
from maskloom.attention.backends.flash import has_flash
from maskloom.attention.backends.flash_limits import lse_has_gradient
from maskloom.attention.checks import check_options, check_score_mod_fits, checked_scale, checked_tensors
from maskloom.attention.clean_padding import Hidden, cleaned, zero_hidden_gradients
from maskloom.attention.dropout.options import checked_rate, checked_seed
from maskloom.attention.merge import merge, with_sinks
from maskloom.attention.request import Attended
from maskloom.core import captures
from maskloom.core.checks import check_flags, head_offset
from maskloom.core.words import brief
from maskloom.distributed.agreement import Said
from maskloom.distributed.coordinates import placed_score
from maskloom.distributed.dtensors import Local, local_of, local_sinks, wrapped
from maskloom.distributed.exchange.early import Gather, begun, ended
from maskloom.distributed.exchange.packing import refuse_transforms
from maskloom.distributed.part import Overlap, Part
from maskloom.distributed.tensor_kinds import compared, kind_of
from maskloom.masks.algebra import Mask
from maskloom.scores.base import ScoreMod

if TYPE_CHECKING:
    from maskloom.distributed.sequence_plan import Plan


class Asked(NamedTuple):
    """The options of `Plan.attend`; ``passed`` are those that `maskloom.attend` gets as they are."""

    score_mod: ScoreMod | None
    sinks: Tensor | None
    return_aux: AuxRequest | None
    clean_padding: bool
    passed: dict[str, Any]


class Offsets(NamedTuple):
    """The first batch row and the first head of some tensors in the whole; None: they are all."""

    b: int | None
    h: int | None


class Given(NamedTuple):
    """What `Plan.attend` is given, checked.

    Attributes:
        query, key, value: this rank's part of DTensors; in autocast's dtype where it is on.
        hidden: padding to be cleaned; None: none is.
        local: how DTensors are shared; None of plain tensors.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    offsets: Offsets
    asked: Asked
    hidden: Hidden | None
    local: Local | None


def attended(plan: "Plan", query: Any, key: Any, value: Any, h_offset: int | None, asked: Asked) -> Any:
    """What `Plan.attend` returns."""
    if plan.mesh.size() > 1:
        refuse_transforms("plan.attend", query, key, value)

    def checked() -> Given:
        given = _checked(plan, query, key, value, h_offset, asked)
        if not plan.comparison.is_done:
            _rehearse(plan.part, given)
        return given

    given = compared(plan.comparison, plan.mesh, checked, lambda given: _facts(plan, given))
    query, key, value, offsets, asked, hidden, local = given
    if hidden is not None:
        query, key, value = cleaned(query, key, value, hidden)
    found = _by_part(plan.part, query, key, value, offsets, asked)
    if hidden is not None:
        found = zero_hidden_gradients(found, hidden)
    out, lse = found if local is None else (None if one is None else wrapped(one, local) for one in found)
    return out if asked.return_aux is None else (out, AuxOutput(lse=lse))


def _checked(plan: "Plan", query: Any, key: Any, value: Any, h_offset: int | None, asked: Asked) -> Given:
    """The arguments of `Plan.attend`, or a TypeError or ValueError if they do not fit each other or the plan."""
    local = None
    if any(map(captures.is_dtensor, (query, key, value))):
        if h_offset is not None:
            raise ValueError("of DTensors the first head is known: give no h_offset")
        local = local_of(query, key, value)
        asked = asked._replace(sinks=local_sinks(asked.sinks, local, local.query.shape[1], query.shape[1]))
        query, key, value = local.query, local.key, local.value
    offsets = Offsets(None, _checked_offset(h_offset)) if local is None else Offsets(local.b_offset, local.h_offset)
    query, key, value = checked_tensors(query, key, value)
    _check_fits(plan, query, key, offsets)
    check_options(query, asked.return_aux, asked.sinks, asked.passed["kernel_options"])
    _check_passed(asked, query.device)
    check_score_mod_fits(asked.score_mod, plan.sizes.heads, query.device)
    hidden = _known_hidden(plan, offsets.b, query.shape[0]) if asked.clean_padding else None
    return Given(query, key, value, offsets, asked, hidden, local)


def _check_passed(asked: Asked, device: torch.device) -> None:
    """Raise a TypeError or ValueError for options that `maskloom.attend` refuses whatever it gets beside them."""
    options = asked.passed
    check_flags(clean_padding=asked.clean_padding, deterministic=options["deterministic"])
    check_name(options["backend"])
    checked_scale(options["scale"])
    rate, seed = checked_rate(options["dropout"]), options["dropout_seed"]
    if seed is not None:
        checked_seed(rate, seed, device)


def _rehearse(part: Part, given: Given) -> None:
    """Raise what `maskloom.attend` will refuse of this rank's part, before the others wait for it."""
    from maskloom.attention.attend import explain  # the chain of imports would be too long

    at, asked = _share(part, given.query, given.offsets, given.asked)
    query, key, value = part.alike(given.query, given.key, given.value)
    mask, options = _options(part, query, key, at, asked)
    explain(query, key, value, mask, return_aux=asked.return_aux, **options)
    if options["score_mod"] is not None:  # what a function raises, it raises of a score too
        index = torch.zeros((), dtype=torch.int64, device=query.device)
        with torch.no_grad():
            options["score_mod"](torch.zeros((), device=query.device), index, index, index, index)


def _facts(plan: "Plan", given: Given) -> dict[str, Said]:
    """What of the arguments must be the same on all ranks, because of what they exchange."""
    b_offset, h_offset = (first or 0 for first in given.offsets)
    found = {
        **kind_of(given.query, given.key, given.value),
        "the first batch row": Said(b_offset, str(b_offset)),
        "h_offset": Said(h_offset, str(h_offset)),
    }
    if plan.scheme.parts > 1:  # the log-sum-exp goes back to the ranks of its rows
        wanted = given.asked.return_aux is not None and given.asked.return_aux.lse
        found["return_aux"] = Said(wanted, "the log-sum-exp" if wanted else "no log-sum-exp")
    return found


def _by_part(part: Part, query: Tensor, key: Tensor, value: Tensor, offsets: Offsets, asked: Asked) -> Attended:
    at, asked = _share(part, query, offsets, asked)
    query, key, value = part.heads_of(query, key, value)
    if part.overlap is not None and _lse_is_differentiable(query, key, value):
        found = _while_keys_come(part, part.overlap, query, key, value, at, asked)
    else:
        key, value = part.keys_for(key, value)
        found = _run(part, query, key, value, at, asked, asked.return_aux)
    lse = None if found.lse is None else part.back(found.lse[..., None], -torch.inf)[..., 0]
    return Attended(part.back(found.out), lse)


def _share(part: Part, query: Tensor, offsets: Offsets, asked: Asked) -> tuple[Offsets, Asked]:
    """Where this part's heads begin, and what is asked for them."""
    share = query.shape[1] // part.parts
    first = part.place.part * share
    at = Offsets(offsets.b, offsets.h if part.parts == 1 else first + (offsets.h or 0))
    return at, asked._replace(sinks=None if asked.sinks is None else asked.sinks[first : first + share])


def _run(
    part: Part, query: Tensor, key: Tensor, value: Tensor, at: Offsets, asked: Asked, return_aux: AuxRequest | None
) -> Attended:
    """`maskloom.attend` with the masks of a part."""
    from maskloom.attention.attend import attend  # the chain of imports would be too long

    mask, options = _options(part, query, key, at, asked)
    found = attend(query, key, value, mask, return_aux=return_aux, **options)
    return Attended(found, None) if isinstance(found, Tensor) else Attended(found[0], found[1].lse)


def _options(
    part: Part, query: Tensor, key: Tensor, at: Offsets, asked: Asked
) -> tuple[Mask | BlockMask, dict[str, Any]]:
    """The mask of a part, and the options that `maskloom.attend` gets beside it."""
    masks = part.masks(query.shape[0], *at)
    mask = part.ready(masks.placing if asked.passed["dropout"] else masks.plain, query, key)
    score_mod = None if asked.score_mod is None else placed_score(asked.score_mod, masks.at)
    q_offset = None if isinstance(mask, BlockMask) else 0
    return mask, {"q_offset": q_offset, "sinks": asked.sinks, "score_mod": score_mod, **asked.passed}


def _while_keys_come(
    part: Part, overlap: Overlap, query: Tensor, key: Tensor, value: Tensor, at: Offsets, asked: Asked
) -> Attended:
    """Attention to this group's own keys while those of others come in, then to these, merged."""
    assert part.place.by_rows is not None
    gather = Gather(overlap.places, part.place.by_rows)
    everyones = begun([key, value], gather)
    parts = asked._replace(sinks=None, passed={**asked.passed, **_one_seed(asked, query)})
    near = _run(overlap.near, query, key[:, :, : part.queries], value[:, :, : part.queries], at, parts, _LSE)
    key, value = ended(everyones, gather)
    far = _run(overlap.far, query, key, value, at, parts, _LSE)
    assert near.lse is not None and far.lse is not None
    out, lse = merge(near.out, near.lse, far.out, far.lse)
    if asked.sinks is not None:
        out, lse = with_sinks(out, lse, asked.sinks)
    return Attended(out, lse if asked.return_aux is not None and asked.return_aux.lse else None)


_LSE = AuxRequest(lse=True)


def _one_seed(asked: Asked, query: Tensor) -> dict[str, Any]:
    """The seed of dropout, drawn once for both parts."""
    seed = checked_seed(checked_rate(asked.passed["dropout"]), asked.passed["dropout_seed"], query.device)
    return {} if seed is None else {"dropout_seed": seed}


def _lse_is_differentiable(*tensors: Tensor) -> bool:
    """Whether the backend that runs anyway gives a log-sum-exp that can be merged: FLASH's has no gradient before torch 2.14."""
    if tensors[0].device.type == "cpu" or lse_has_gradient() or not has_flash():
        return True
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def _check_fits(plan: "Plan", query: Tensor, key: Tensor, offsets: Offsets) -> None:
    """Raise a ValueError for tensors that do not fit the plan."""
    batch, heads = query.shape[:2]
    for name, tensor in (("query", query), ("key", key)):
        if tensor.shape[2] != plan.rows:
            raise ValueError(
                f"{name} has the rows of one rank, (batch, heads, {plan.rows}, head dim); got {tuple(tensor.shape)}"
            )
    if query.device.type != plan.mesh.device_type:
        raise ValueError(f"the plan is for a mesh of {plan.mesh.device_type}; query is on {query.device}")
    if plan.batch is not None and (batch != plan.batch if offsets.b is None else offsets.b + batch > plan.batch):
        raise ValueError(f"the plan is for a mask of {plan.batch} batch rows; query is {tuple(query.shape)}")
    if offsets.h is None and heads != plan.sizes.heads:
        raise ValueError(
            f"the plan is for {plan.sizes.heads} query heads; query is {tuple(query.shape)}. Of some of the heads say which, "
            "h_offset= the first"
        )
    if offsets.h is not None and offsets.h + heads > plan.sizes.heads:
        last = offsets.h + heads - 1
        raise ValueError(f"the plan is for {plan.sizes.heads} query heads; heads {offsets.h} to {last} are asked for")
    if heads % plan.scheme.parts:
        raise ValueError(
            f'strategy "heads" gives each rank as many query heads; there are {heads} heads and {plan.scheme.parts} ranks: '
            'plan with strategy="gather" or "needed"'
        )


def _checked_offset(h_offset: int | None) -> int | None:
    if h_offset is None:
        return None
    first = head_offset(h_offset)
    if not isinstance(first, int):
        raise TypeError("h_offset of a plan is an int: masks are made for it once")
    return first


def _known_hidden(plan: "Plan", b_offset: int | None, batch: int) -> Hidden:
    if plan.hidden is None:
        raise ValueError(
            "clean_padding needs a mask that says where padding is: lengths, real, padding, key_padding, documents or "
            f"from_dense, alone or joined to others with &; got {brief(plan.mask)}"
        )
    if b_offset is None:
        return plan.hidden

    def of_rows(pads: Tensor) -> Tensor:
        return pads if len(pads) == 1 else pads[b_offset : b_offset + batch]

    keys, queries = plan.hidden
    return Hidden(of_rows(keys), None if queries is None else of_rows(queries))
