"""How queries, keys and values lie in memory, as far as a compiled kernel must know it to read them fast.

Queries, keys and values are often parts of one projection: views that begin somewhere in its output, whose tokens are (H + 2 Hkv) · D apart.
Sizes, strides and offsets are dynamic in our graphs. torch's compiler knows that a product of sizes is a multiple of 16, but not that
this step and these offsets are. Triton then reads the tensors in small pieces, and takes 1.6 times as long, as torch's own compiled
FlexAttention shows (benchmarks/results/fused_projection.csv). So the graph is told, by a guard, that a view begins at such a multiple. The
step between tokens becomes a constant in it, because Inductor 2.11 does not find a guard on that again. Models have few such steps.
"""

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from maskloom.core.cache import LRU


class Layout(NamedTuple):
    """How three tensors lie, as far as their graph is told.

    Attributes:
        steps: from token to token, where that is a constant of the graph; None elsewhere.
        aligned: whether it begins at a multiple of 16 bytes, and its strides are multiples of 16 elements.
        inside: whether it begins somewhere inside of its memory.
    """

    steps: tuple[int | None, ...]
    aligned: tuple[bool, ...]
    inside: tuple[bool, ...]

    @property
    def told(self) -> "Told":
        """What the graph is told of each: flags, which are constants of a graph."""
        flags = zip(self.steps, self.aligned, self.inside, strict=True)
        return tuple([(step is not None, aligned, inside) for step, aligned, inside in flags])


Told = tuple[tuple[bool, bool, bool], ...]
"""Of each tensor: whether its step is a constant, whether it is known to be aligned, whether it begins inside of its memory."""

USUAL = Layout((None, None, None), (True, True, True), (False, False, False))
"""That of tensors of their own, as torch makes them."""

UNTOLD = Layout((None, None, None), (False, False, False), (False, False, False))
"""That of which the graph is told nothing: nothing is known, or too many others were told before."""

_DEVICES = ("cuda",)
_ALIGNED = 16
"""Bytes that a kernel reads at once. Of numbers of elements too Inductor asks whether they are multiples of 16, whatever the dtype."""

_MOST = 4
"""Maximum number of layouts of one kind of attention that are told, beside the usual one. Each has a graph of its own; one more is for
all others."""

_known: LRU[Hashable, set[Layout]] = LRU(256)


def is_told(query: Tensor) -> bool:
    """Whether kernels on this device are told how tensors lie."""
    return query.device.type in _DEVICES


def layout_of(kind: Hashable, query: Tensor, key: Tensor, value: Tensor) -> Layout:
    """What the graph for these tensors is told, of this kind of attention."""
    tensors = query, key, value
    found = Layout(tuple(map(_own_step, tensors)), tuple(map(_is_aligned, tensors)), tuple(map(_is_inside, tensors)))
    if found == USUAL:
        return USUAL
    known = _known.get(kind)
    if known is None:
        known = set()
        _known.put(kind, known)
    if found not in known and len(known) >= _MOST:
        return UNTOLD
    known.add(found)
    return found


def _own_step(tensor: Tensor) -> int | None:
    """The step from token to token, if it is a multiple of 16 that does not follow from sizes."""
    shape, strides = tensor.shape, tensor.stride()
    step = strides[2]
    if step % _ALIGNED or strides[3] != 1 or shape[2] == 1 or step == shape[3]:
        return None
    return None if step in (shape[0] * strides[0], shape[1] * strides[1]) else step


def _is_inside(tensor: Tensor) -> bool:
    return tensor.storage_offset() != 0


def _is_aligned(tensor: Tensor) -> bool:
    return _begins_aligned(tensor) and _steps_are_aligned(tensor)


def _begins_aligned(tensor: Tensor) -> bool:
    return tensor.storage_offset() * tensor.dtype.itemsize % _ALIGNED == 0


def _steps_are_aligned(tensor: Tensor) -> bool:
    return all(tensor.shape[dim] == 1 or tensor.stride(dim) % _ALIGNED == 0 for dim in (2, 1, 0))


def learn(tensors: tuple[Tensor, ...], told: Told) -> None:
    """While torch compiles with dynamic sizes: let the compiler know what the graph is told."""
    for tensor, (_, aligned, inside) in zip(tensors, told, strict=True):
        # conditions become guards, which the compiler remembers; Dynamo cannot ask for an offset that is a constant (2.11, 2.13)
        if aligned and not (_steps_are_aligned(tensor) and (not inside or _begins_aligned(tensor))):
            raise AssertionError("tensors that lie otherwise have another graph")
    for tensor, (has_step, _, _) in zip(tensors, told, strict=True):  # last: an offset may share the symbol of a step
        if has_step:
            len(range(tensor.stride(2)))  # Dynamo takes the length of a range as a constant
