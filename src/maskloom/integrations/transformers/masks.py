"""The half that makes masks: what transformers calls once for each kind of layer in a forward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import masking_utils

from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.core.checks import readable
from maskloom.core.symbols import as_tensor, is_int
from maskloom.integrations.transformers.layer_mask import FEW, LayerMask, Place, table_of
from maskloom.integrations.transformers.mask_functions import (
    MaskFunction,
    is_causal,
    is_packed,
    is_relative,
    once_for_batch,
    read_mask_function,
)
from maskloom.integrations.transformers.positions import positions_of_maker
from maskloom.masks.algebra import And, Mask, and_masks, as_mask, everything
from maskloom.masks.patterns.from_tables import from_dense
from maskloom.masks.patterns.padding import key_padding, real
from maskloom.masks.patterns.relative import Causal, Window, causal
from maskloom.masks.patterns.shift import shifted

_KNOWN = {"allow_is_causal_skip", "allow_is_bidirectional_skip", "use_vmap", "dtype", "config", "local_size"}


def layer_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> LayerMask:
    """The mask of one kind of layer, for `attention`; transformers' ``AttentionMaskInterface`` calls it.

    With gradients a query at a padded position of a causal mask sees nothing, as in flash attention; its output is 0.
    Without, it sees what "eager" shows it: ``generate()`` goes on from the last position, even if that is padding.

    Args:
        batch_size, q_length, kv_length, q_offset, kv_offset: see `Place`.
        mask_function: ``(batch_idx, head_idx, q_idx, kv_idx) -> bool``, at absolute positions.
        attention_mask: bool (B, positions), True = a real token; beyond its end nothing is real.
        options: what transformers says besides, which changes no mask.

    Raises:
        TypeError: an option that this version of maskloom does not know.
    """
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise TypeError(f"transformers gives {', '.join(unknown)} to its mask functions, which maskloom does not know")
    if isinstance(q_offset, Tensor):
        q_offset = q_offset.clone()  # a static cache writes into it, before the layers attend
    place = Place(batch_size, q_length, kv_length, q_offset, kv_offset, torch.device(device))
    read = read_mask_function(mask_function)
    pattern = as_mask(mask_function) if read is None else read
    mask = placed(pattern, place)
    given: Mask | Tensor = mask
    if read is not None and not _is_at_start(place) and q_length <= FEW:  # a prefill's graph is of any length
        given = _of_step(mask, attention_mask, place)
    elif attention_mask is not None:
        given = _of_batch(mask, attention_mask, place, is_causal(pattern) and torch.is_grad_enabled())
    if attention_mask is not None:
        return LayerMask(pattern, given, place, open_to_packing=False)
    positions = positions_of_maker()
    packed = positions.are_read if torch.compiler.is_dynamo_compiling() else is_packed(mask_function)
    return LayerMask(pattern, given, place, open_to_packing=not packed, positions=positions)


def placed(pattern: Mask, place: Place) -> Mask:
    """A pattern at absolute positions, as a mask of these queries and keys."""
    q_offset, kv_offset = place.q_offset, place.kv_offset
    if is_relative(pattern):
        q_offset, kv_offset = q_offset - kv_offset, 0
        pattern = _without_what_always_holds(pattern, place._replace(q_offset=q_offset))
        if pattern is everything:
            return everything
    if _is_at_start(place):
        return pattern if pattern is causal else _shared(pattern)
    return _shared(shifted(pattern, q_offset=_lasting(q_offset, place), kv_offset=_lasting(kv_offset, place)))


def _lasting(offset: int | Tensor, place: Place) -> int | Tensor:
    """An offset, in a tensor unless it is 0: a mask is recorded once for all offsets in tensors, and for each int."""
    return offset if is_int(offset) and offset == 0 else as_tensor(offset, place.device)


def _of_step(mask: Mask, attention_mask: Tensor | None, place: Place) -> Mask | Tensor:
    """The mask of few queries behind other keys: `everything`, or a table for all layers."""
    # no function of transformers depends on the head
    table = None if mask is everything else table_of(mask, place, heads=1)
    if torch.compiler.is_dynamo_compiling():  # a graph takes masks
        mask = mask if table is None else from_dense(table)
        return mask if attention_mask is None else _with_padding(mask, attention_mask, place, hides_queries=False)
    keys = None if attention_mask is None else _cut(attention_mask, place.kv_offset, place.kv_len)
    if keys is None or _is_all_real(keys):
        return everything if table is None else table
    rows = keys[:, None, None]
    return rows.expand(-1, -1, place.q_len, -1) if table is None else table & rows


def _of_batch(mask: Mask, attention_mask: Tensor, place: Place, hides_queries: bool) -> Mask:
    """`_with_padding`, one mask for all forwards of the same batch."""
    if not _is_at_start(place):
        return _with_padding(mask, attention_mask, place, hides_queries)
    rest = place, hides_queries
    return once_for_batch(attention_mask, mask, rest, lambda real: _with_padding(mask, real, place, hides_queries))


def _with_padding(mask: Mask, attention_mask: Tensor, place: Place, hides_queries: bool) -> Mask:
    keys = _cut(attention_mask, place.kv_offset, place.kv_len)
    if _is_all_real(keys):
        return mask
    if not hides_queries or not is_int(place.q_offset):
        return and_masks(mask, key_padding(~keys))
    if _is_at_start(place) and place.q_len == place.kv_len:
        return and_masks(mask, real(keys))
    if place.q_len <= FEW:
        return and_masks(mask, key_padding(~keys))
    return and_masks(mask, real(_cut(attention_mask, place.q_offset, place.q_len), keys))


def _is_all_real(keys: Tensor) -> bool:
    """Whether no key is padding. On a device values are not looked at, and it is not known."""
    return readable(keys) and bool(keys.all())


def _cut(attention_mask: Tensor, first: int | Tensor, length: int) -> Tensor:
    """The flags of ``length`` positions from ``first`` on; those beyond the end are False."""
    if isinstance(first, Tensor):
        places = torch.arange(length, device=attention_mask.device) + first
        inside = places < attention_mask.shape[1]
        return attention_mask[:, places.clamp(max=attention_mask.shape[1] - 1)] & inside
    flags = attention_mask[:, first : first + length]
    return F.pad(flags, (0, length - flags.shape[1])) if flags.shape[1] < length else flags


def _is_at_start(place: Place) -> bool:
    return is_int(place.q_offset) and is_int(place.kv_offset) and place.q_offset == 0 == place.kv_offset


def _without_what_always_holds(mask: Mask, place: Place) -> Mask:
    """A relative mask without the parts that hide none of these keys: what a step of decoding, and a short row, need."""
    if not isinstance(place.q_offset, int) or torch.compiler.is_dynamo_compiling():
        return mask
    first, last, last_key = place.q_offset, place.q_offset + place.q_len - 1, place.kv_len - 1
    if isinstance(mask, Causal):
        return everything if first >= last_key else mask
    if isinstance(mask, Window) and last - mask.back <= 0:
        if first + mask.ahead >= last_key:
            return everything
        return causal if isinstance(mask.ahead, int) and mask.ahead == 0 else mask
    if isinstance(mask, And):
        return and_masks(*[_without_what_always_holds(part, place) for part in mask.parts])
    return mask


_masks: LRU[Mask, Mask] = LRU(32)  # those without tensors: the next forward's is then the same object


def _shared(mask: Mask) -> Mask:
    """The mask, or an equal one of an earlier forward, with which is kept what was built from it."""
    if torch.compiler.is_dynamo_compiling() or captures.tensors(mask):
        return mask
    found = _masks.get(mask)
    if found is None:
        _masks.put(mask, found := mask)
    return found
