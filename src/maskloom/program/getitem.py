"""How ``table[index]`` works for scalar tensors without a value: while a mask_mod is recorded, and under `torch.vmap`.

For ``table[q_idx]`` with a tensor without dimensions, torch asks for the tensor's value. These modes use one gather
instead, `aten.index`.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maskloom.program.program import leaves

_aten = torch.ops.aten
GETITEM = (Tensor.__getitem__, operator.getitem)  # modes get the second under strict export, the first elsewhere
_POSITIONS = (torch.int64, torch.int32, torch.int16, torch.int8)
_MOST_IN_A_LIST = 31  # maximum length of a list that torch takes as a tuple of indices


class IndexByTensors(TorchFunctionMode):
    """``table[b, 3]`` as one gather, as torch does in a mask_mod (its TransformGetItemToIndex, without autograd)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GETITEM:
            table, items = args[0], list(leaves(args[1], object))
            if all(isinstance(leaf, (Tensor, int)) for leaf in items):
                return _gathered(table, items)
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_scalar, places)) and all(map(_keeps_order, places)):
                return _read_beside_slices(table, places)
        return func(*args, **(kwargs or {}))


class IndexByScalars(TorchFunctionMode):
    """``table[..., q_idx]`` as plain torch reads it at a number, with the same gradients; torch does everything else.

    The gather is an ordinary operation, also for a table that vmap has batched. torch's TransformGetItemToIndex, which
    makes operators for a kernel, gives wrong gradients for such tables (2.11 to 2.15).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GETITEM:
            places = places_of(args[1])
            if any(isinstance(place, Tensor) and place.dtype == torch.uint8 for place in places):
                raise TypeError("torch takes an index of uint8 for a mask; in a score_mod write table[index.long()]")
            if any(map(_is_scalar, places)):
                return _read(args[0], places)
        elif func in (torch.select, Tensor.select):
            return _selected(func, *args, **(kwargs or {}))
        elif func is F.embedding:
            return _embedded(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def sums_in_float32(table: Tensor) -> bool:
    """Whether a table is read in float32: the gradient of an entry is the sum over all scores that read it, and a sum of so many in
    half precision comes to a halt."""
    return table.dtype in (torch.bfloat16, torch.float16) and table.requires_grad and torch.is_grad_enabled()


def _embedded(input: Tensor, weight: Tensor, *options: Any, scale_grad_by_freq: bool = False, **named: Any) -> Tensor:
    """`F.embedding`. scale_grad_by_freq would count an index over the whole batch; a scalar call has each index once."""
    frequency = 3  # position of scale_grad_by_freq in the options
    if scale_grad_by_freq or any(options[frequency : frequency + 1]):
        if input.ndim:
            raise TypeError(
                "in a score_mod an embedding with scale_grad_by_freq=True takes one index, without dimensions"
            )
        options = tuple(False if place == frequency else option for place, option in enumerate(options))
    renorms = named.get("max_norm") is not None or any(option is not None for option in options[1:2])
    if sums_in_float32(weight) and not (renorms or named.get("sparse") or any(options[4:])):
        return F.embedding(input, weight.float(), *options, **named).to(weight.dtype)
    return F.embedding(input, weight, *options, **named)


def _selected(select: Any, input: Tensor, dim: int, index: Any) -> Tensor:
    """``torch.select`` by an index that may be a scalar tensor without a value."""
    if not _is_scalar(index):
        return select(input, dim, index)
    return _read(input, (slice(None),) * (dim % input.ndim) + (index,))


def places_of(index: Any) -> tuple[Any, ...]:
    """The parts of an index. A list that holds more than numbers is a tuple of indices, as in torch."""
    if isinstance(index, list) and len(index) <= _MOST_IN_A_LIST:
        several = any(
            item is None or item is Ellipsis or isinstance(item, (Tensor, slice, list, tuple)) for item in index
        )
        return tuple(index) if several else (index,)
    return index if isinstance(index, tuple) else (index,)


def _read(table: Tensor, places: tuple[Any, ...]) -> Tensor:
    """``table[places]`` where some places are scalar tensors. They act like numbers, before index tensors."""
    if sums_in_float32(table):
        return _read(table.float(), places).to(table.dtype)
    places = tuple(place.long() if _is_scalar(place) else place for place in places)  # aten.index rejects narrow ints
    if all(_is_scalar(place) or type(place) is int for place in places):
        return _gathered(table, places)
    read = _read_beside_slices(table, tuple(_one_for_each_dim(places)))
    if all(map(_keeps_order, places)):
        return read
    left = (slice(None) if place is None or type(place) is slice else place for place in places)
    return read[tuple(place for place in left if not (_is_scalar(place) or type(place) is int))]


def _one_for_each_dim(places: tuple[Any, ...]) -> Iterator[Any]:
    """The places, each for one dimension of the table or for none. A bool tensor is for as many dimensions as it has."""
    for place in places:
        table = None if _keeps_order(place) else torch.as_tensor(place)
        if table is not None and table.dtype == torch.bool:
            yield from (slice(None),) * table.ndim
        else:
            yield place if table is None else slice(None)


def _gathered(table: Tensor, indices: Any) -> Tensor:
    device = table.device
    return _aten.index(table, [i if isinstance(i, Tensor) else torch.tensor(int(i), device=device) for i in indices])


def _is_scalar(place: Any) -> bool:
    return isinstance(place, Tensor) and not place.ndim and place.dtype in _POSITIONS


def _keeps_order(place: Any) -> bool:
    """Whether the dimensions that remain after this part of an index keep the order of the table."""
    return place is None or place is Ellipsis or type(place) in (int, slice) or _is_scalar(place)


def _read_beside_slices(table: Tensor, places: tuple[Any, ...]) -> Tensor:
    """``table[:, kv_idx]``: a view by all other places, the dimensions of scalars moved first, then one gather."""
    axis, read = 0, []
    rest = table.ndim - sum(place is not None and place is not Ellipsis for place in places)
    for place in places:
        if _is_scalar(place):
            read.append(axis)
        axis += rest if place is Ellipsis else type(place) is not int
    view = table[tuple(slice(None) if _is_scalar(place) else place for place in places)]
    others = [axis for axis in range(view.ndim) if axis not in read]
    return _aten.index(view.permute(*read, *others), [place for place in places if _is_scalar(place)])
