"""How a mask_mod or a score_mod uses its indices, found while torch traces: no program can be recorded then.

The function is run once on scalars, in the graph that is being traced. The results are not used, so the compiler drops
them.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maskloom.core.torch_state import is_in_operator
from maskloom.program.answers import check_answer
from maskloom.program.getitem import GETITEM
from maskloom.program.ops import Fact, names_of
from maskloom.program.program import INDICES, Index


def sizes_read(mask_mod: Any, device: torch.device | str) -> dict[Index, list[int]]:
    """For each index, the sizes of the table dimensions that it reads directly, one entry per read.

    Reads by a value computed from an index (also by a cast) are not found; no reads are found where no mode can be
    entered.
    """
    if is_in_operator():
        return {index: [] for index in INDICES}
    reads = _SizesRead([torch.zeros((), dtype=torch.int64, device=device) for _ in INDICES])
    with reads:
        answer = mask_mod(*reads.indices)
    check_answer(mask_mod, answer)
    return dict(zip(INDICES, reads.sizes, strict=True))


def divides(function: Any, *scalars: Tensor, check: Callable[[Any, object], None] | None = None) -> bool:
    """Whether the function divides or takes a remainder on these scalars; True where no mode can be entered.

    Args:
        check: called with the function and its answer; it raises if the answer is not valid.
    """
    if is_in_operator():
        return True
    watch = _Divisions()
    with watch:
        answer = function(*scalars)
    if check is not None:
        check(function, answer)
    return watch.seen


class _Divisions(TorchFunctionMode):
    """Notes whether a division happens."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in _DIVISIONS or named.get("rounding_mode"):
            self.seen = True
        return _first_entry(*args) if func in GETITEM else func(*args, **named)


def _every_form() -> Iterator[Any]:
    """All forms of division: operators, methods and functions, in place or not, and aten's overloads."""
    for name in ("__floordiv__", "__rfloordiv__", "__ifloordiv__", "__mod__", "__rmod__", "__imod__"):
        yield getattr(Tensor, name)
    yield from (operator.floordiv, operator.mod, operator.ifloordiv, operator.imod)  # used by strict export
    yield torch.unravel_index
    for name in sorted(names_of(Fact.DIVIDES) - {"div"}):  # div also divides floats; see rounding_mode above
        yield getattr(torch, name)
        for form in (name, f"{name}_"):
            packet = getattr(torch.ops.aten, form)
            yield from (getattr(Tensor, form), packet, *(getattr(packet, overload) for overload in packet.overloads()))


_DIVISIONS = tuple(_every_form())  # functions and not names: torch.compile can compare functions


class _SizesRead(TorchFunctionMode):
    """Notes the sizes of the dimensions that its indices read."""

    def __init__(self, indices: list[Tensor]) -> None:
        super().__init__()
        self.indices = indices
        self.sizes: list[list[int]] = [[] for _ in indices]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in GETITEM:
            return func(*args, **(kwargs or {}))
        table, given = args
        places = _places(given)
        axis, rest = 0, table.ndim - sum([_axes(place) for place in places])
        for place in places:
            for index, sizes in zip(self.indices, self.sizes, strict=True):
                if place is index:
                    sizes.append(table.shape[axis])
            axis += rest if place is Ellipsis else _axes(place)
        return _first_entry(table, given)


def _first_entry(table: Tensor, given: Any) -> Tensor:
    """The entry at 0 for every scalar index, from a table of zeros: a trace has no values, and only the shape matters.

    In inference mode a graph may not view a tensor that was made outside.
    """
    zeros = table.new_zeros(()).expand(table.shape)
    return zeros[tuple([0 if _is_number(place) else place for place in _places(given)])]


def _places(given: Any) -> list[Any]:
    """The parts of an index. torch takes a list of numbers, ``table[[b, kv_idx]]``, as a tuple."""
    places = given if isinstance(given, (tuple, list)) else (given,)
    inner = [place for item in places for place in (item if isinstance(item, (tuple, list)) else (item,))]
    others = [place for place in inner if not isinstance(place, (Tensor, int))]
    return list(places) if others else inner


def _axes(place: Any) -> int:
    """The number of table dimensions that this part indexes; 0 for an ellipsis, which takes the remaining ones."""
    if place is None or place is Ellipsis or isinstance(place, bool):
        return 0
    return place.ndim if isinstance(place, Tensor) and place.dtype == torch.bool else 1


def _is_number(place: Any) -> bool:
    return isinstance(place, Tensor) and not place.ndim and place.dtype != torch.bool
