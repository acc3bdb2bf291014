"""One aten operation of a scalar program, run for many indices at once.

A value of shape ``own`` in the scalar function is stored as ``lead + own``. The leading dims are the batch dims (tiles,
or elements of tiles), with size 1 where the value does not vary. The event dims (``own``) are the dims that the
mask_mod sees. torch.vmap does the same; here the batch dims come first and stay factored: a value of the query alone
stays a column.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskloom.program.ops import Fact, having
from maskloom.program.program import Op, Program, Value, leaves

_aten = torch.ops.aten

_COMPARISONS = having(Fact.COMPARES)
_ARITHMETIC = having(Fact.COMPUTES)
_PROMOTING = having(Fact.PROMOTES)
_ONE_BY_ONE = having(Fact.KEEPS_VALUE) | _PROMOTING
_REDUCTIONS = having(Fact.REDUCES)


def results_of(step: Op, program: Program, run: Callable[[], Any]) -> tuple[Any, ...] | None:
    """The results of a step that ``run`` gives for a batch of values; None if it is not known that vmap gives the same."""
    return None if ambiguous(step, program) else results_in(run(), len(step.results))


def results_in(out: Any, count: int) -> tuple[Any, ...] | None:
    """The results of an operation, as many as its step has; None if it gave others."""
    found = tuple(leaf for leaf in leaves(out, object) if leaf is not None)
    return found if len(found) == count else None


def batched(op: Any, args: list[Any], kwargs: dict[str, Any], lead: int) -> Any:
    """Run ``op`` for a batch of values: a tensor, a tuple of several results, or None if it cannot be batched here.

    Args:
        op: an aten overload.
        args, kwargs: as in the scalar program; every tensor has shape ``lead + own``.
        lead: number of leading dims.
    """
    packet = op.overloadpacket
    if packet is _aten.index:
        return batched_index(args[0], args[1], lead)
    if packet in _SHAPES:
        return _SHAPES[packet](lead, *args, **kwargs)
    if packet in _REDUCTIONS:
        return _reduced(op, lead, *args, **kwargs)
    if packet in _ONE_BY_ONE or torch.Tag.pointwise in op.tags:
        return _pointwise(op, args, kwargs, lead)
    return None


def ambiguous(step: Op, program: Program) -> bool:
    """Whether torch.vmap promotes its dtypes differently from the scalar function, in a way that is not known here.

    vmap's comparisons promote by the full dtype of an index (``uint8_table[b] <= q_idx`` does not wrap q_idx around, as
    the scalar function would), but not by that of a constant without dims. Its arithmetic promotes like scalars. For
    other operations nothing is assumed.
    """
    packet = step.op.overloadpacket
    if packet not in _PROMOTING or packet in _ARITHMETIC:
        return False
    values = [argument for argument in step.args if isinstance(argument, (Value, Tensor))]
    values = values[1:] if packet is _aten.where else values
    metas = [program.meta(value) for value in values]
    if len({meta.dtype for meta in metas}) <= 1:
        return False
    scalars = [meta for value, meta in zip(values, metas, strict=True) if isinstance(value, Tensor) and not meta.shape]
    if packet in _COMPARISONS:
        widest = functools.reduce(torch.promote_types, [meta.dtype for meta in metas if meta not in scalars])
        return any(torch.promote_types(widest, scalar.dtype) != widest for scalar in scalars)
    return bool(scalars) or len({bool(meta.shape) for meta in metas}) > 1


def aligned(tensors: list[Tensor], lead: int) -> list[Tensor]:
    """The same tensors with event dims of size 1 put in front, so that all ranks are equal and they broadcast."""
    rank = max(tensor.ndim for tensor in tensors)
    return [padded(tensor, rank, lead) for tensor in tensors]


def common_dtype(tensors: list[Tensor], lead: int, *numbers: Any, wide: bool = False) -> torch.dtype:
    """The dtype that the scalar function promotes these values to: values without event dims do not widen the others.

    With ``wide`` they do, as in vmap's comparisons.
    """
    dtype = tensors[0].dtype
    if all(tensor.dtype == dtype for tensor in tensors) and all(_adopts(dtype, number) for number in numbers):
        return dtype
    common: Any = torch.empty(1, dtype=_widest(tensors)) if wide else None
    for dimensioned in () if wide else (True, False):
        dtypes = [tensor.dtype for tensor in tensors if (tensor.ndim > lead) == dimensioned]
        if dtypes:
            found = torch.empty((1,) * dimensioned, dtype=functools.reduce(torch.promote_types, dtypes))
            common = found if common is None else torch.empty(1, dtype=torch.result_type(common, found))
    for number in numbers:
        common = torch.empty(common.shape, dtype=torch.result_type(common, number))
    return common.dtype


def _adopts(dtype: torch.dtype, number: Any) -> bool:
    """Whether a Python number beside a tensor of ``dtype`` leaves the dtype as it is."""
    return dtype.is_floating_point or type(number) is bool or (type(number) is int and dtype != torch.bool)


def _widest(tensors: list[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])


def padded(tensor: Tensor, rank: int, lead: int) -> Tensor:
    """The tensor with ``rank`` dims: event dims of size 1 are put in front of its event dims."""
    if tensor.ndim == rank:
        return tensor
    return tensor.reshape(*tensor.shape[:lead], *(1,) * (rank - tensor.ndim), *tensor.shape[lead:])


def _pointwise(op: Any, args: list[Any], kwargs: dict[str, Any], lead: int) -> Tensor | None:
    at = [place for place, argument in enumerate(args) if isinstance(argument, Tensor)]
    if any(isinstance(value, Tensor) for value in kwargs.values()) or any(isinstance(a, list) for a in args):
        return None
    new = list(args)
    for place, tensor in zip(at, aligned([args[place] for place in at], lead), strict=True):
        new[place] = tensor
    promoted = at[1:] if op.overloadpacket is _aten.where else at
    if len({args[place].dtype for place in promoted}) > 1:
        if op.overloadpacket not in _PROMOTING:
            return None
        dtype = common_dtype([args[place] for place in promoted], lead, wide=op.overloadpacket in _COMPARISONS)
        for place in promoted:
            new[place] = new[place].to(dtype)
    return op(*new, **kwargs)


# -- reductions over event dims ----------------------------------------------------------------------------------------


def _reduced(op: Any, lead: int, value: Tensor, dim: Any = None, *rest: Any, **kwargs: Any) -> Any:
    own = value.ndim - lead
    if isinstance(dim, Tensor):  # max(a, b) of two tensors
        return _pointwise(op, [value, dim], kwargs, lead)
    if dim is None or dim == []:
        flat = value.reshape(*value.shape[:lead], math.prod(value.shape[lead:]))
        return _whole(op, flat, *rest, **kwargs) if not rest else None
    if own == 0:
        return None
    dims = [d - own if d >= 0 else d for d in dim] if isinstance(dim, list) else dim - own if dim >= 0 else dim
    return op(value, dims, *rest, **kwargs)


def _whole(op: Any, flat: Tensor, **kwargs: Any) -> Tensor | None:
    """The reduction over all event dims, which are flattened into the last dim."""
    name = op.overloadpacket.__name__
    if name in ("max", "min"):
        return getattr(torch, f"a{name}")(flat, -1)
    if kwargs.get("keepdim") or name == "cumsum":
        return None
    return getattr(torch, name)(flat, -1, **{key: item for key, item in kwargs.items() if item is not None})


# -- operations on shapes ----------------------------------------------------------------------------------------------


def _own_dim(dim: int, own: int, lead: int) -> int:
    return lead + (dim + own if dim < 0 else dim)


def _on_dim(op: Any) -> Callable[..., Any]:
    def run(lead: int, value: Tensor, dim: int = 0, *rest: Any) -> Any:
        return op(value, _own_dim(dim, value.ndim - lead, lead), *rest)

    return run


def _split(lead: int, value: Tensor, size: Any, dim: int = 0) -> Any:
    return value.split(size, _own_dim(dim, value.ndim - lead, lead))


def _unsqueeze(lead: int, value: Tensor, dim: int) -> Tensor:
    return value.unsqueeze(_own_dim(dim, value.ndim - lead + 1, lead))


def _squeeze(lead: int, value: Tensor, dims: Any = None) -> Tensor:
    own = value.ndim - lead
    wanted = range(own) if dims is None else [dims] if isinstance(dims, int) else dims
    places = [_own_dim(dim, own, lead) for dim in wanted] if own else []
    return value.squeeze(tuple(place for place in places if value.shape[place] == 1))


def _view(lead: int, value: Tensor, shape: Any) -> Tensor | None:
    if not isinstance(shape, (list, tuple)):  # view(dtype)
        return None
    return value.reshape(*value.shape[:lead], *shape)


def _expand(lead: int, value: Tensor, shape: list[int], *, implicit: bool = False) -> Tensor:
    return padded(value, lead + len(shape), lead).expand(*value.shape[:lead], *shape)


def _permute(lead: int, value: Tensor, dims: list[int]) -> Tensor:
    return value.permute(*range(lead), *(_own_dim(dim, value.ndim - lead, lead) for dim in dims))


def _transpose(lead: int, value: Tensor, first: int = 0, second: int = 1) -> Tensor:
    own = value.ndim - lead
    return value.transpose(_own_dim(first, own, lead), _own_dim(second, own, lead)) if own > 1 else value


def _cat(lead: int, values: list[Tensor], dim: int = 0) -> Tensor:
    own = values[0].ndim - lead
    return _concatenated(torch.cat, values, lead, _own_dim(dim, own, lead))


def _stack(lead: int, values: list[Tensor], dim: int = 0) -> Tensor:
    own = values[0].ndim - lead + 1
    return _concatenated(torch.stack, values, lead, _own_dim(dim, own, lead))


def _concatenated(join: Any, values: list[Tensor], lead: int, dim: int) -> Tensor:
    # not torch.broadcast_shapes, whose first call loads sympy
    shape = [
        max(sizes, key=lambda size: size != 1) for sizes in zip(*(value.shape[:lead] for value in values), strict=True)
    ]
    dtype = common_dtype(values, lead)
    return join([value.expand(*shape, *value.shape[lead:]).to(dtype) for value in values], dim)


_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.unsqueeze: _unsqueeze,
    _aten.squeeze: _squeeze,
    _aten.view: _view,
    _aten._unsafe_view: _view,
    _aten.reshape: _view,
    _aten.expand: _expand,
    _aten.permute: _permute,
    _aten.transpose: _transpose,
    _aten.t: _transpose,
    _aten.cat: _cat,
    _aten.stack: _stack,
    _aten.select: _on_dim(_aten.select.int),
    _aten.slice: _on_dim(_aten.slice.Tensor),
    _aten.unbind: _on_dim(_aten.unbind.int),
    _aten.split: _split,
    _aten.split_with_sizes: _split,
}
SHAPES = frozenset(_SHAPES)


# -- reading a table ---------------------------------------------------------------------------------------------------


def batched_index(table: Tensor, indices: list[Tensor | None], lead: int) -> Tensor | None:
    """``table[i, j, ...]`` for integer indices, None for an unindexed dim; every tensor has shape ``lead + own``.

    The table may vary along leading dims: each batch element then reads its own entry.
    """
    own = table.ndim - lead
    indices = [*indices, *[None] * (own - len(indices))]
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return None
    given = aligned(given, lead)
    rank = given[0].ndim
    where_varies = [_positions(table, dim, rank) for dim in range(lead)]
    unindexed = [dim for dim, index in enumerate(indices) if index is None]
    read = [dim for dim, index in enumerate(indices) if index is not None]
    order = [*range(lead), *(lead + dim for dim in read), *(lead + dim for dim in unindexed)]
    out = table.permute(order)[(*where_varies, *given)]
    return _placed(out, read, rank, lead)


def _positions(table: Tensor, dim: int, rank: int) -> Tensor | int:
    if table.shape[dim] == 1:
        return 0
    return torch.arange(table.shape[dim], device=table.device).view(*(-1 if d == dim else 1 for d in range(rank)))


def _placed(out: Tensor, read: list[int], rank: int, lead: int) -> Tensor:
    """Move the unindexed dims that came before the indexed dims back to the front, as advanced indexing does."""
    before = read[0] if read == list(range(read[0], read[-1] + 1)) else 0
    if before == 0 or rank == lead:
        return out
    return out.movedim(tuple(range(rank, rank + before)), tuple(range(lead, lead + before)))
