"""What `MultiheadFlexAttention` refuses in its inputs, by name, before any work."""

from typing import Literal

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.checks import check_is_dense
from maskloom.core.symbols import known
from maskloom.core.torch_state import autocast_to
from maskloom.core.words import brief, what_it_is
from maskloom.masks.algebra import as_mask
from maskloom.nn.cache import KVCache
from maskloom.nn.call import AttendOptions
from maskloom.nn.projections import Positions, ProjectedHeads
from maskloom.program.program import MaskMod


def checked_context(module: ProjectedHeads, x: Tensor, context: Tensor | None, cache: KVCache | None) -> Tensor | None:
    """The context that keys and values are made of; None where x attends to itself."""
    check_is_dense("x", x)
    if x.ndim != 3 or x.shape[-1] != module.d_in:
        raise ValueError(f"x has shape (batch, length, {module.d_in}); got {tuple(x.shape)}")
    layers = [module.in_proj] if module.d_context is None else [module.q_proj, module.kv_proj]
    check_entries("x", x, layers[0])
    width = module.d_in if module.d_context is None else module.d_context
    if context is None:
        if width != module.d_in:
            raise ValueError(f"this module attends to a context with d_context={width} features: give context=")
        if cache is not None and cache.batch != x.shape[0]:
            raise ValueError(
                f"the cache is for {cache.batch} batch rows, and x has {x.shape[0]}; got x {tuple(x.shape)}"
            )
        return None
    if cache is not None:
        raise ValueError("a cache is for attention of x to itself: give context or cache, not both")
    if not isinstance(context, Tensor):
        raise TypeError(f"context is a tensor (batch, length, features); got {what_it_is(context)}")
    check_is_dense("context", context)
    if context.ndim != 3 or context.shape[-1] != width or context.shape[0] != x.shape[0]:
        raise ValueError(
            f"context has shape (batch, length, {width}), as many batch rows as x {tuple(x.shape)}; "
            f"got {tuple(context.shape)}"
        )
    check_entries("context", context, layers[-1])
    return context


def check_entries(name: str, given: Tensor, layer: nn.Module) -> None:
    """Raise a TypeError or ValueError for an input without positions, or of a dtype that its projection cannot take."""
    if known(given.shape[1] == 0):
        raise ValueError(f"{name} has at least one position; got {tuple(given.shape)}")
    if not given.is_floating_point():
        raise TypeError(f"{name} is floating point: token ids go through an embedding first; got {given.dtype}")
    if type(layer) is not nn.Linear or layer._forward_pre_hooks:  # another layer, or a hook, may cast it
        return
    dtype = layer.weight.dtype
    if given.dtype != dtype and autocast_to(given.device) is None:
        raise ValueError(f"{name} is {given.dtype}, and the module's parameters are {dtype}: cast one of them")


def check_placing(
    module: ProjectedHeads,
    mask: BlockMask | MaskMod | Tensor | None,
    positions: Positions | None,
    cache: KVCache | None,
    pads: Tensor | None,
    options: AttendOptions,
    *,
    has_context: bool,
) -> None:
    """Raise a TypeError or ValueError for positions that are known otherwise, or that nothing reads; for what the module has."""
    if module.sinks is not None and options.get("sinks") is not None:
        raise ValueError("this module has sinks of its own: give no sinks=")
    if module.dropout and options.get("dropout"):
        raise ValueError(f"this module has dropout={module.dropout} of its own, in training: give no dropout=")
    if isinstance(positions, tuple) and len(positions) != 2:
        raise ValueError(
            f"positions are one tensor, or a pair, those of x and those of the context; got {len(positions)}"
        )
    if has_context and isinstance(positions, Tensor):
        raise ValueError(
            "beside a context positions are a pair, those of x and those of the context, each a tensor or None for 0, 1, ...; "
            f"got one tensor {tuple(positions.shape)}"
        )
    if positions is not None and module.rotary is None:
        raise ValueError("positions are for rotary, and this module has none: make it with rotary=")
    if cache is None:
        if pads is not None:
            raise ValueError("pads are for a cache; without one join padding(pads) to the mask by &")
        return
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache is a maskloom.nn.KVCache; got {brief(cache)}")
    for name, given in (("positions", positions), ("q_offset", options.get("q_offset"))):
        if given is not None:
            raise ValueError(f"with a cache the module knows the positions itself: give no {name}")
    if isinstance(mask, (BlockMask, Tensor)):
        kind = type(mask).__name__
        raise TypeError(f"with a cache the mask is one of true positions, causal say; got a {kind}, of fixed lengths")
    if mask is not None:
        as_mask(mask)  # raises if it is none


def check_need_weights(need_weights: bool | Literal["mean"]) -> None:
    """Raise a ValueError for another word."""
    if not (isinstance(need_weights, (bool, int)) and need_weights in (False, True)) and need_weights != "mean":
        raise ValueError(f'need_weights is True, False or "mean"; got {brief(need_weights)}')
