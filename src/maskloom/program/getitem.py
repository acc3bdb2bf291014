"""How scalar indices read a table where they have no value: while a mask_mod is recorded, and under `torch.vmap`.

torch reads ``table[q_idx]`` at a tensor without dimensions by asking for its value. These modes read it by one lookup,
`aten.index`, in its place.
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
GETITEM = (Tensor.__getitem__, operator.getitem)  # a strict export passes the second to modes, all else the first
_POSITIONS = (torch.int64, torch.int32, torch.int16, torch.int8)
_MOST_IN_A_LIST = 31  # items of a list that torch takes as a tuple of indices, at most


class IndexByTensors(TorchFunctionMode):
    """``table[b, 3]`` as one lookup, as torch reads it in a mask_mod (its TransformGetItemToIndex, without autograd)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GETITEM:
            table, items = args[0], list(leaves(args[1], object))
            if all(isinstance(leaf, (Tensor, int)) for leaf in items):
                return _looked_up(table, items)
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_scalar, places)) and all(map(_keeps_order, places)):
                return _read_beside_slices(table, places)
        return func(*args, **(kwargs or {}))


class IndexByScalars(TorchFunctionMode):
    """``table[..., q_idx]`` as plain torch reads it at a number, with the gradients of that; all else is left to torch.

    Its lookup is an operation like any other, also of a table that vmap has batched. torch's TransformGetItemToIndex, which
    makes operators for a kernel, gives such tables wrong gradients (2.11 to 2.15).
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


def _embedded(input: Tensor, weight: Tensor, *options: Any, scale_grad_by_freq: bool = False, **named: Any) -> Tensor:
    """`F.embedding`, whose gradient would be scaled by how often an index is in the whole batch: alone, each is there once."""
    frequency = 3  # where scale_grad_by_freq stands among the options
    if scale_grad_by_freq or any(options[frequency : frequency + 1]):
        if input.ndim:
            raise TypeError(
                "in a score_mod an embedding with scale_grad_by_freq=True takes one index, without dimensions"
            )
        options = tuple(False if place == frequency else option for place, option in enumerate(options))
    return F.embedding(input, weight, *options, **named)


def _selected(select: Any, input: Tensor, dim: int, index: Any) -> Tensor:
    """``torch.select``, by an index that may be a scalar without a value."""
    if not _is_scalar(index):
        return select(input, dim, index)
    return _read(input, (slice(None),) * (dim % input.ndim) + (index,))


def places_of(index: Any) -> tuple[Any, ...]:
    """What an index consists of. A list that holds more than numbers is a tuple of indices, as torch has it."""
    if isinstance(index, list) and len(index) <= _MOST_IN_A_LIST:
        several = any(
            item is None or item is Ellipsis or isinstance(item, (Tensor, slice, list, tuple)) for item in index
        )
        return tuple(index) if several else (index,)
    return index if isinstance(index, tuple) else (index,)


def _read(table: Tensor, places: tuple[Any, ...]) -> Tensor:
    """``table[places]``, of which some are scalars; these take part as numbers do, before index tensors."""
    places = tuple(place.long() if _is_scalar(place) else place for place in places)  # aten.index takes no narrow ones
    if all(_is_scalar(place) or type(place) is int for place in places):
        return _looked_up(table, places)
    read = _read_beside_slices(table, tuple(_one_for_each_dim(places)))
    if all(map(_keeps_order, places)):
        return read
    left = (slice(None) if place is None or type(place) is slice else place for place in places)
    return read[tuple(place for place in left if not (_is_scalar(place) or type(place) is int))]


def _one_for_each_dim(places: tuple[Any, ...]) -> Iterator[Any]:
    """The places, each for one dimension of the table or for none. A table of bools is for as many as it has."""
    for place in places:
        table = None if _keeps_order(place) else torch.as_tensor(place)
        if table is not None and table.dtype == torch.bool:
            yield from (slice(None),) * table.ndim
        else:
            yield place if table is None else slice(None)


def _looked_up(table: Tensor, indices: Any) -> Tensor:
    device = table.device
    return _aten.index(table, [i if isinstance(i, Tensor) else torch.tensor(int(i), device=device) for i in indices])


def _is_scalar(place: Any) -> bool:
    return isinstance(place, Tensor) and not place.ndim and place.dtype in _POSITIONS


def _keeps_order(place: Any) -> bool:
    """Whether what an index leaves of a table lies in the order of the table."""
    return place is None or place is Ellipsis or type(place) in (int, slice) or _is_scalar(place)


def _read_beside_slices(table: Tensor, places: tuple[Any, ...]) -> Tensor:
    """``table[:, kv_idx]``: a view by all else, of which the dimensions that scalars read come first, and one lookup."""
    axis, read = 0, []
    rest = table.ndim - sum(place is not None and place is not Ellipsis for place in places)
    for place in places:
        if _is_scalar(place):
            read.append(axis)
        axis += rest if place is Ellipsis else type(place) is not int
    view = table[tuple(slice(None) if _is_scalar(place) else place for place in places)]
    others = [axis for axis in range(view.ndim) if axis not in read]
    return _aten.index(view.permute(*read, *others), [place for place in places if _is_scalar(place)])
