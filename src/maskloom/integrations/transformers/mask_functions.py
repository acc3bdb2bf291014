"""transformers' own mask functions, read as masks of maskloom.

Its mask functions are closures. One is recognised by its code, which is the very code of transformers' factory, and its
numbers and tables are then taken from its cells. Any other function is not read: it is run as it is.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import masking_utils

from maskloom.core import captures
from maskloom.core.cache import keep_beside
from maskloom.core.checks import readable
from maskloom.core.symbols import is_one_of
from maskloom.integrations.transformers.positions import MADE_OF
from maskloom.masks.algebra import And, Everything, FromFunction, Mask, Or, and_masks, everything, or_masks
from maskloom.masks.patterns.blockwise import Chunked, chunked
from maskloom.masks.patterns.packed.segments import documents
from maskloom.masks.patterns.packed.within import within
from maskloom.masks.patterns.relative import Anticausal, Causal, Window, anticausal, causal, window, window_both_ways
from maskloom.masks.patterns.relative import window_counting_itself as sliding
from maskloom.masks.patterns.shift import Shifted, shifted
from maskloom.masks.simplify import simplify

R = TypeVar("R")

MaskFunction = Callable[..., Any]
"""``(batch_idx, head_idx, q_idx, kv_idx) -> bool``, as transformers makes it."""


def read_mask_function(function: MaskFunction) -> Mask | None:
    """The equal mask of maskloom, at absolute positions; None where the function is not one of transformers'.

    A window of 0 keys hides all: models make its mask (Qwen 2 MoE by default), and have no layer that takes it. Inside torch.compile closures are not read: dynamo does not show what they hold.
    """
    if function is masking_utils.causal_mask_function:
        return causal
    if function is masking_utils.bidirectional_mask_function:
        return everything
    if torch.compiler.is_dynamo_compiling():
        return None
    reader = _READERS.get(getattr(function, "__code__", None))
    return None if reader is None else reader(**_cells(function))


def is_packed(function: MaskFunction) -> bool:
    """Whether transformers has put packed documents into the function, by itself or among others."""
    if torch.compiler.is_dynamo_compiling():
        return False
    if _is_made_by(function, *_JOINED):
        return any(map(is_packed, _cells(function)["mask_functions"]))
    return _is_made_by(function, _PACKED, _REMAPPED)


def is_relative(mask: Mask) -> bool:
    """Whether the mask only asks how far query and key are apart, so that it is the same in each document."""
    if isinstance(mask, (Causal, Anticausal, Window, Everything)):
        return True
    parts = getattr(mask, "parts", ())
    return len(parts) > 0 and all(map(is_relative, parts))


def is_causal(mask: Mask) -> bool:
    """Whether no query sees a later key, as far as its structure says."""
    if isinstance(mask, Causal) or (isinstance(mask, Window) and type(mask.ahead) is int and mask.ahead == 0):
        return True
    return any(map(is_causal, _conjuncts(mask)))


def once_for_batch(tensor: Tensor, mask: Mask, rest: Hashable, make: Callable[[Tensor], Mask]) -> Mask:
    """``make(tensor)``, or what it made of the same tensor in an earlier forward: with that is kept what was built from it.

    Args:
        tensor: of the batch, or an equal view of the same one; a write into it is noticed.
        mask, rest: what else the mask is made of. Nothing is kept of a mask that holds tensors, or that may change unseen.
    """
    known = None if torch.compiler.is_dynamo_compiling() else captures.facts_of(mask)
    if known is None or known.may_change or known.tensors:
        return make(tensor)
    return kept_for_batch(tensor, ("a mask", mask, rest), make)


def kept_for_batch(tensor: Tensor, key: Hashable, make: Callable[[Tensor], R]) -> R:
    """``make(tensor)``, which must not hold the tensor itself; kept until somebody writes into it, for equal views of the same one too."""
    owner = tensor if tensor._base is None else tensor._base
    view = tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()
    # detached: what is kept beside a tensor must not hold it
    return keep_beside(owner, (key, view), lambda: make(tensor.detach()))


def inside_documents(segments: Any, mask: Mask) -> Mask:
    """The mask inside each document. Positions restart there, but for tables, which have an entry for each position."""
    mask = _without_padding(mask)
    if is_relative(mask) or (not isinstance(mask, FromFunction) and captures.tensors(mask)):
        return segments & mask
    return within(segments, mask)


def inside_counted(position_ids: Tensor, mask: Mask) -> Mask:
    """The mask inside each of the documents that position ids tell of; one for all forwards of the same batch."""

    def make(positions: Tensor) -> Mask:
        positions = positions[0] if positions.ndim == 2 and positions.shape[0] == 1 else positions  # one row is for all
        return simplify(inside_documents(documents(position_ids=positions), mask))  # for layers that are compiled each

    return once_for_batch(position_ids, mask, "positions", make)


def _inside_ids(ids: Tensor, mask: Mask) -> Mask:
    told = None if torch.compiler.is_dynamo_compiling() else getattr(ids, MADE_OF, None)
    positions = None if told is None else told()
    if positions is not None and positions.ndim == 2 and is_one_of(positions.shape[0], 1, ids.shape[0]):
        return inside_counted(positions, mask)
    return once_for_batch(ids, mask, "ids", lambda table: inside_documents(documents(table), mask))


def _without_padding(mask: Mask) -> Mask:
    """The mask for rows without padding, as packed ones are: `_read_chunks` cannot see that a tensor on a GPU holds zeros."""
    if isinstance(mask, Shifted) and isinstance(mask.mask, Chunked):
        return mask.mask
    if isinstance(mask, (And, Or)):
        return type(mask)(tuple(map(_without_padding, mask.parts)))
    return mask


def _conjuncts(mask: Mask) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, And) else ()


def _cells(function: Any) -> dict[str, Any]:
    """What a closure holds, by name."""
    values = [cell.cell_contents for cell in function.__closure__ or ()]
    return dict(zip(function.__code__.co_freevars, values, strict=True))


def _read_all(functions: tuple[MaskFunction, ...]) -> list[Mask] | None:
    masks = [read_mask_function(function) for function in functions]
    return None if any(mask is None for mask in masks) else [mask for mask in masks if mask is not None]


def _read_and(mask_functions: tuple[MaskFunction, ...]) -> Mask | None:
    packed = _read_packed(mask_functions)
    if packed is not None:
        return packed
    size = _window_size(mask_functions)
    if size is not None:
        return sliding(size) if size > 0 else ~everything
    masks = _read_all(mask_functions)
    return None if masks is None else and_masks(*masks)


def _read_or(mask_functions: tuple[MaskFunction, ...]) -> Mask | None:
    masks = _read_all(mask_functions)
    return None if masks is None else or_masks(*masks)


def _window_size(functions: tuple[MaskFunction, ...]) -> int | None:
    """The size of ``and_masks(sliding_window_overlay(size), causal)``; None for other functions."""
    if len(functions) != 2 or functions[1] is not masking_utils.causal_mask_function:
        return None
    return _cells(functions[0])["sliding_window"] if _is_made_by(functions[0], _OVERLAY) else None


def _read_packed(functions: tuple[MaskFunction, ...]) -> Mask | None:
    """Packed documents, whose positions restart: one function for the documents, and one for the mask in each.

    The second also restarts positions, or (transformers before 5.18) leaves that out. It comes first, but not in 5.18 to 5.23.
    """
    by_ids = [function for function in functions if _is_made_by(function, _PACKED)]
    others = [function for function in functions if not _is_made_by(function, _PACKED)]
    if len(by_ids) != 1 or len(others) != 1:
        return None
    if _is_made_by(others[0], _REMAPPED):
        inner = _cells(others[0])
        mask = read_mask_function(inner["mask_function"])
        return None if mask is None else inside_counted(inner["position_ids"], mask)
    mask = read_mask_function(others[0])
    return None if mask is None else _inside_ids(_cells(by_ids[0])["packed_sequence_mask"], mask)


def _read_overlay(sliding_window: int) -> Mask | None:
    return window(back=sliding_window - 1) | anticausal if sliding_window > 0 else None


def _read_overlay_both_ways(sliding_window: int) -> Mask | None:
    return window_both_ways(sliding_window) if sliding_window > 0 else None


def _read_chunks(chunk_size: int, left_padding: Tensor) -> Mask | None:
    if chunk_size < 1:
        return None
    if readable(left_padding) and not bool(left_padding.any()):
        return chunked(chunk_size)
    return shifted(chunked(chunk_size), q_offset=-left_padding, kv_offset=-left_padding)


def _read_groups(block_sequence_ids: Tensor) -> Mask:
    return documents(block_sequence_ids)


def _code(name: str, *arguments: Any) -> Any:
    """The code of the functions that a factory of transformers makes; None where this version has no such factory."""
    factory = getattr(masking_utils, name, None)
    return None if factory is None else factory(*arguments).__code__


def _is_made_by(function: Any, *codes: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and any(code is each for each in codes)


_TABLE = torch.zeros(1, 1, dtype=torch.int64)
_OVERLAY = _code("sliding_window_overlay", 1)
_PACKED = _code("packed_sequence_mask_function", _TABLE)
_REMAPPED = _code("remap_positions_for_packed_sequence", masking_utils.causal_mask_function, _TABLE)
_JOINED = _code("and_masks"), _code("or_masks")
_READERS: dict[Any, Callable[..., Mask | None]] = {
    _JOINED[0]: _read_and,
    _JOINED[1]: _read_or,
    _OVERLAY: _read_overlay,
    _code("sliding_window_bidirectional_overlay", 1): _read_overlay_both_ways,
    _code("chunked_overlay", 1, _TABLE): _read_chunks,
    _code("blockwise_overlay", _TABLE): _read_groups,
}
_READERS.pop(None, None)  # what this version has not
