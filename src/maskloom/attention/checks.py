"""What attention refuses, by name, before anything is launched."""

import sys
from collections.abc import Mapping
from math import isfinite
from numbers import Real

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from maskloom.attention.merge import check_sinks
from maskloom.core import captures
from maskloom.core.cache import cached_with
from maskloom.core.checks import position_offset
from maskloom.core.symbols import is_int, is_one_of, known
from maskloom.core.torch_state import autocast_to
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, Placing, as_mask
from maskloom.masks.declared import LongestRow, longest_row
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod, ScoreValue, checked_score_mod

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def checked_tensors(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of one attention, in autocast's dtype where it is on, or a TypeError or ValueError if they are not."""
    query, key, value = _checked({"query": query, "key": key, "value": value}, "query, key and value")
    return query, key, value


def checked_query_and_key(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The same of attention's scores, which need no value."""
    query, key = _checked({"query": query, "key": key}, "query and key")
    return query, key


def _checked(named: dict[str, Tensor], names: str) -> list[Tensor]:
    _check_each(named)
    query = named["query"]
    to = autocast_to(query.device)
    if to is not None:
        named = {name: _cast(tensor, to) for name, tensor in named.items()}
        query = named["query"]
    tensors = list(named.values())
    if any(tensor.dtype != query.dtype for tensor in tensors):
        float64 = "" if to is None else f" (autocast casts to {to}, but not float64)"
        raise ValueError(f"{names} have one dtype; got {_each(named, 'dtype')}{float64}")
    if any(tensor.device != query.device for tensor in tensors):
        raise ValueError(f"{names} are on one device; got {_each(named, 'device')}")
    if query.device.type == "meta":
        raise ValueError(f"{names} are on the meta device, where there are no values to attend to")
    _check_shapes(named, names)
    return tensors


def _check_each(named: dict[str, Tensor]) -> None:
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a tensor (batch, heads, length, head dim); got {type(tensor).__name__}")
        if hasattr(tensor, "device_mesh") and captures.is_dtensor(tensor):
            raise TypeError(
                f"{name} is a DTensor; give the part of this device, {name}.to_local(): rows of the batch, or heads with h_offset= "
                "the first of them"
            )
        check_is_dense(name, tensor)
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape (batch, heads, length, head dim); got {tuple(tensor.shape)}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{name} is float64, float32, bfloat16 or float16; got {tensor.dtype}")


def check_is_dense(name: str, tensor: Tensor) -> None:
    """Raise a TypeError for a nested or a sparse tensor."""
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor; pack its parts into one row, with a documents mask")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} is a tensor of layout {tensor.layout}; attention takes dense ones: {name}.to_dense()")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as autocast gives it to torch's own attention: float64 stays."""
    return tensor if tensor.dtype in (dtype, torch.float64) else tensor.to(dtype)


def _check_shapes(named: dict[str, Tensor], names: str) -> None:
    q_shape, k_shape = named["query"].shape, named["key"].shape
    v_shape = named["value"].shape if "value" in named else k_shape
    if not q_shape[0] == k_shape[0] == v_shape[0]:
        raise ValueError(f"{names} have one batch size; got {_each(named, 'shape')}")
    if k_shape[1:3] != v_shape[1:3]:
        raise ValueError(f"key and value have the same heads and length; got {_each(named, 'shape')}")
    if q_shape[3] != k_shape[3]:
        raise ValueError(f"query and key have the same head dim; got {_each(named, 'shape')}")
    if 0 in q_shape[1:] or 0 in k_shape[1:] or 0 in v_shape[1:]:
        raise ValueError(f"there is nothing to attend to in an empty tensor; got {_each(named, 'shape')}")
    if q_shape[1] % k_shape[1]:
        raise ValueError(f"the query heads are a multiple of the key heads; got {_each(named, 'shape')}")


def _each(named: dict[str, Tensor], what: str) -> str:
    values = {name: getattr(tensor, what) for name, tensor in named.items()}
    return ", ".join(f"{name} {tuple(value) if what == 'shape' else value}" for name, value in values.items())


def checked_scale(scale: float | None) -> float | None:
    """The scale, NumPy's numbers as Python's; a TypeError if it is no number, a ValueError if no float is as large."""
    if scale is None or (type(scale) is float and (torch.compiler.is_dynamo_compiling() or isfinite(scale))):
        return scale
    if isinstance(scale, Tensor):
        raise TypeError("scale is a number; by a tensor, a learned one too, multiply the query")
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale is a number, or None for 1 / sqrt(head dim); got {brief(scale)}")
    if isinstance(scale, int) and not torch.compiler.is_dynamo_compiling() and abs(scale) > sys.float_info.max:
        raise ValueError(f"scale is a number, at most {sys.float_info.max:.1e}; got {brief(scale)}")
    if type(scale) is not int and not isfinite(float(scale)):
        raise ValueError(f"scale is a finite number; got {float(scale)}")
    return scale if type(scale) is int else float(scale)


def check_options(
    query: Tensor,
    return_aux: AuxRequest | None,
    sinks: Tensor | None,
    kernel_options: Mapping[str, object] | None,
) -> None:
    """Raise a TypeError or ValueError if return_aux, sinks or kernel_options are none."""
    if kernel_options is not None and not isinstance(kernel_options, Mapping):
        raise TypeError(f"kernel_options is a dict, as flex_attention takes it; got {brief(kernel_options)}")
    for name, option in (kernel_options or {}).items():
        if not isinstance(name, str) or not isinstance(option, (int, float, str)):
            raise TypeError(f"kernel_options are numbers, bools and words by name; got {brief(name)}: {brief(option)}")
    if sinks is not None:
        if captures.is_dtensor(sinks):
            raise TypeError("sinks is a DTensor; give the sinks of the heads on this device, sinks.to_local()")
        check_sinks(sinks, query.shape[1])
        if sinks.device != query.device:
            raise ValueError(f"the sinks are on {sinks.device} and the attention on {query.device}")
    if return_aux is None:
        return
    if not isinstance(return_aux, AuxRequest):
        raise TypeError(f"return_aux is torch's AuxRequest(lse=True); got {brief(return_aux)}")
    if return_aux.max_scores:
        raise ValueError("attend returns no max_scores; AuxRequest(lse=True) is what it has")


def checked_q_offset(q_offset: int | Tensor, batch: int) -> int | Tensor:
    """A position for all batch rows, or one for each of ``batch``; a kernel would read beyond a shorter table."""
    checked = position_offset("q_offset", q_offset)
    if isinstance(checked, Tensor) and checked.ndim and checked.shape[0] != batch:
        raise ValueError(f"q_offset is for {checked.shape[0]} batch rows; the attention has {batch}")
    return checked


def row_beyond(mask: BlockMask | MaskMod | None, q_len: int, kv_len: int) -> LongestRow | None:
    """A row of the mask that is longer than queries and keys, which are equally many; looked at once, on the CPU only.

    Kept with the mask, so that a steady call looks at no tensor. A BlockMask is for the lengths that it says.
    """
    if mask is None or isinstance(mask, BlockMask) or torch.compiler.is_dynamo_compiling():
        return None
    if isinstance(q_len, torch.SymInt) or q_len != kv_len:
        return None
    longest = cached_with(mask, ("longest row",), lambda: longest_row(mask))
    return None if longest is None or longest.length <= q_len else longest


def check_rows_fit(mask: BlockMask | MaskMod | None, query: Tensor, key: Tensor) -> None:
    """Raise a ValueError if the mask declares rows longer than those of this attention, whose offset was not given."""
    beyond = row_beyond(mask, query.shape[2], key.shape[2])
    if beyond is not None:
        raise ValueError(
            f"{told_of(beyond)}; queries and keys have {query.shape[2]}. Are the tensors (batch, heads, length, head dim)? "
            f"query is {tuple(query.shape)}. For the first positions of longer rows, a chunk of a prefill say, give q_offset=0"
        )


def told_of(row: LongestRow) -> str:
    """The longest row of a mask, in words."""
    whose = "a row" if row.row is None else f"batch row {row.row}"
    return f"{whose} has {row.length} positions by the mask's {row.said_by}"


def check_offsets_fit(
    mask: MaskMod, q_offset: int | Tensor, h_offset: int | Tensor | None, q_len: int, heads: int, device: torch.device
) -> None:
    """Raise a ValueError if queries or heads from these offsets on lie beyond the tables that the mask reads.

    A tensor's value is not looked at.

    Args:
        mask: as it was before the offsets came into it.
    """
    if not any(map(is_int, (q_offset, h_offset))):
        return
    reading = dependence_on(mask, device)
    if is_int(q_offset):
        if known(q_offset < 0) and reading.sizes["q_idx"] and _reads_as_it_likes(mask):  # it would be read from its end
            raise ValueError(f"the mask reads a table of positions, from 0 on; q_offset is {q_offset}")
        reading.check_length("q_idx", q_offset + q_len)
    if is_int(h_offset):
        last = h_offset + heads - 1
        if any(known(size <= last) for size in reading.sizes["h"]):
            size = min(reading.sizes["h"])
            raise ValueError(f"the mask reads a table for {size} heads; heads up to number {last} are asked for")


def _reads_as_it_likes(mask: MaskMod) -> bool:
    """Whether a function reads tables in it, which does not look out for negative positions."""
    return not isinstance(mask, Mask) or (not torch.compiler.is_dynamo_compiling() and captures.holds_code(mask))


def check_mask_fits(
    mask: BlockMask | MaskMod | None, batch: int, heads: int, q_len: int, kv_len: int, device: torch.device
) -> None:
    """Raise a TypeError if ``mask`` is none, a ValueError if it is a BlockMask for an attention of other sizes.

    Args:
        batch, heads, q_len, kv_len, device: B, H, Q, K of the attention, and where it runs.
    """
    if mask is None:
        return
    if not isinstance(mask, BlockMask):
        as_mask(mask)  # raises if it is none
        held = _device_of(mask, device)
        if held not in (None, device):
            raise ValueError(
                f"the mask's tensors are on {held} and the attention on {device}; move them with mask.to, or let them move with "
                "a module that has the mask in a maskloom.nn.Holder"
            )
        return
    mask_mod = mask.mask_mod  # the name of a Mask is its repr
    if not isinstance(mask_mod, Mask) and getattr(mask_mod, "__name__", None) == "_sliced_mask_mod_error":
        raise ValueError("the block mask was sliced, and torch drops the mask of a sliced BlockMask; build it anew")
    if tuple(mask.seq_lengths) != (q_len, kv_len):
        raise ValueError(
            f"the block mask is for lengths (Q, K) = {tuple(mask.seq_lengths)}; the attention has {(q_len, kv_len)}"
        )
    for have, need, item in zip(mask.kv_indices.shape[:2], (batch, heads), ("batch rows", "heads"), strict=True):
        if not is_one_of(have, 1, need):
            raise ValueError(
                f"the block mask is for {have} {item}; the attention has {need} (1 would serve all). Build one for these "
                f"{item}, of a mask whose tables hold them alone"
            )
    if mask.kv_indices.device != device:
        raise ValueError(f"the block mask is on {mask.kv_indices.device} and the attention on {device}")


def _device_of(held: object, device: torch.device, what: str = "mask") -> torch.device | None:
    """The device of the tensors of a mask or score_mod, which is to be this one; while torch compiles, of those in fields alone."""
    if not torch.compiler.is_dynamo_compiling():
        return captures.device_of(held, what)
    if isinstance(held, (Mask, ScoreValue)):
        for tensor in captures.tensors_of_fields(held):
            if tensor.ndim and tensor.device != device:
                return tensor.device
    return None


def placed_beside(mask: BlockMask | MaskMod | Tensor | None, score_mod: ScoreMod) -> ScoreMod:
    """The score mod as it is beside a mask: beside that of a cache it is asked at true positions, as other masks are."""
    held = mask.mask_mod if isinstance(mask, BlockMask) else mask
    return held.placed(checked_score_mod(score_mod)) if isinstance(held, Placing) else score_mod


def check_score_mod_fits(score_mod: ScoreMod | None, heads: int, device: torch.device) -> None:
    """Raise a TypeError if this is no score_mod, a ValueError if it is for other heads or on another device."""
    if score_mod is None:
        return
    checked_score_mod(score_mod)
    if isinstance(score_mod, ScoreValue):
        score_mod.check_heads(heads)
        held = _device_of(score_mod, device, "score_mod")
        if held not in (None, device):
            raise ValueError(
                f"the score_mod's tensors are on {held} and the attention on {device}; move them with score_mod.to, or let "
                "them move with a module that has the score_mod in a maskloom.nn.Holder"
            )
