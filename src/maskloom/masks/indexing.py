"""How a mask_mod's indices read a table: as torch has it where a mask_mod is lifted, and beside slices too."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
_POSITIONS = (torch.int64, torch.int32, torch.int16, torch.int8)


class IndexByTensors(TorchFunctionMode):
    """``table[b, 3]`` as one lookup, as torch reads it in a mask_mod (its TransformGetItemToIndex, without autograd)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            table, leaves = args[0], list(_leaves_of(args[1]))
            if all(isinstance(leaf, (Tensor, int)) for leaf in leaves):
                device = table.device
                return _aten.index(
                    table, [i if isinstance(i, Tensor) else torch.tensor(int(i), device=device) for i in leaves]
                )
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(map(_is_scalar, places)) and all(map(_keeps_order, places)):
                return _read_beside_slices(table, places)
        return func(*args, **(kwargs or {}))


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


def _leaves_of(index: Any) -> Iterator[Any]:
    if isinstance(index, (tuple, list)):
        for item in index:
            yield from _leaves_of(item)
    else:
        yield index
