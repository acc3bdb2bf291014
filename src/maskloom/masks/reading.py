"""Which of its four indices a mask depends on, and through tables of which size.

`read` runs the mask_mod once on marked scalars and follows the marks through every operation. A value is marked with
the indices that can change it: an operation's result with all marks of its inputs, except that

- reading a table whose indexed dimension has size 1 depends on nothing (there is one thing to read), and
- an operation that looks only at a tensor's dtype or shape (``b.new_ones(())``) reads no value.

So a mark may be there without need and is never missing. Where an index itself (not something computed from it) reads
a dimension of a table, that dimension's size is kept: it says how many batch rows, heads or positions the mask is for.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Index = Literal["b", "h", "q_idx", "kv_idx"]
INDICES: tuple[Index, ...] = ("b", "h", "q_idx", "kv_idx")
_WORDS = {"b": ("batch", "batch row", "B"), "h": ("heads", "head", "H")}

_aten = torch.ops.aten
_READS_NO_VALUE = {
    _aten.new_ones, _aten.new_zeros, _aten.new_full, _aten.new_empty, _aten.new_empty_strided,
    _aten.ones_like, _aten.zeros_like, _aten.full_like, _aten.empty_like,
}  # fmt: skip
_KEEPS_VALUE = {_aten._to_copy, _aten.clone, _aten.alias, _aten.detach, _aten.lift_fresh}


@dataclass(frozen=True)
class Reading:
    """What a mask's answer depends on.

    Attributes:
        marks: the indices that can change the answer.
        sizes: for each index, the sizes above 1 of the table dimensions that it reads directly.
    """

    marks: frozenset[Index]
    sizes: dict[Index, frozenset[int]]

    def size(self, index: Literal["b", "h"], asked: int | None) -> int:
        """B or H of a table that holds every answer of the mask.

        Args:
            index: which of the two.
            asked: what the caller wants, checked against the tables; None for the smallest that the mask needs.
        """
        argument, item, letter = _WORDS[index]
        sizes = sorted(self.sizes[index])
        if len(sizes) > 1:
            listed = " and ".join(map(str, sizes))
            raise ValueError(f"the mask reads tables for different numbers of {item}s: {listed}")
        if asked is None:
            if index not in self.marks:
                return 1
            if not sizes:
                raise ValueError(
                    f"the mask's answer can differ from one {item} to another, and no table says how many "
                    f"there are; pass {argument}= (their number, {letter})"
                )
            return sizes[0]
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise ValueError(f"{argument} ({letter}) is a number of {item}s, at least 1; got {asked!r}")
        if sizes and sizes[0] != asked:
            raise ValueError(
                f"{argument} ({letter}) is {asked}, and the mask reads a table for {sizes[0]} {item}s; "
                f"pass {sizes[0]}, or make the mask from the rows that are meant"
            )
        return asked

    def check_length(self, index: Literal["q_idx", "kv_idx"], length: int) -> None:
        """Raise a ValueError if positions up to ``length`` lie beyond a table that the index reads."""
        shortest = min(self.sizes[index], default=length)
        if shortest < length:
            side = "queries" if index == "q_idx" else "keys"
            raise ValueError(f"the mask reads a table with {shortest} positions, and there are {length} {side}")


def read(mask_mod: Any, device: torch.device | str) -> Reading:
    """Run ``mask_mod`` once on scalars and find out what its answer depends on.

    Args:
        mask_mod: ``(b, h, q_idx, kv_idx) -> bool``.
        device: where the mask's tensors are.

    Raises:
        TypeError: it does not answer with one bool.
    """
    # imported here: it loads torch's compiler, which `import maskloom` shall not
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    marking = _Marking()
    with torch.no_grad():
        scalars = [torch.zeros((), dtype=torch.int64, device=device) for _ in INDICES]
        for index, scalar in zip(INDICES, scalars, strict=True):
            marking.start(index, scalar)
        with marking, TransformGetItemToIndex():
            answer = mask_mod(*scalars)
    _check_answer(mask_mod, answer)
    marks = marking.marks_of(answer) | marking.decided_on
    return Reading(marks, {index: frozenset(marking.sizes[index]) for index in INDICES})


def _check_answer(mask_mod: Any, answer: object) -> None:
    what = None
    if not isinstance(answer, Tensor):
        what = f"{type(answer).__name__} {answer!r}"
    elif answer.dtype != torch.bool or answer.numel() != 1:
        what = f"{str(answer.dtype).removeprefix('torch.')} of shape {tuple(answer.shape)}"
    if what is not None:
        name = getattr(mask_mod, "__name__", repr(mask_mod))
        raise TypeError(f"a mask_mod answers with one bool for one (b, h, q_idx, kv_idx); {name} gave {what}")


class _Marking(TorchDispatchMode):
    """Follows marks from tensor to tensor. They belong to storages, so that views and in-place writes carry them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[Index, set[int]] = {index: set() for index in INDICES}
        self.decided_on: frozenset[Index] = frozenset()  # indices whose value Python itself has seen
        self._marks: dict[int, frozenset[Index]] = {}
        self._is_index: dict[int, Index] = {}  # storages that hold an index's own value
        self._alive: list[Tensor] = []  # a storage that dies could give its address to another

    def start(self, index: Index, scalar: Tensor) -> None:
        self._mark(scalar, frozenset({index}))
        self._is_index[_storage(scalar)] = index

    def marks_of(self, tensor: Tensor) -> frozenset[Index]:
        return self._marks.get(_storage(tensor), frozenset())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operation = func.overloadpacket
        if operation is _aten.index:
            marks = self._marks_of_lookup(args[0], args[1])
        elif operation in _READS_NO_VALUE:
            marks = frozenset()
        else:
            marks = frozenset().union(*map(self.marks_of, inputs))
        if operation is _aten._local_scalar_dense:
            self.decided_on |= marks
        for result in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            self._mark(result, marks)
            if operation in _KEEPS_VALUE and _storage(inputs[0]) in self._is_index:
                self._is_index[_storage(result)] = self._is_index[_storage(inputs[0])]
        if func._schema.is_mutable and inputs:
            self._is_index.pop(_storage(inputs[0]), None)
        return out

    def _marks_of_lookup(self, table: Tensor, indices: list[Tensor | None]) -> frozenset[Index]:
        marks = self.marks_of(table)
        for dim, index in enumerate(indices):
            if index is None or table.shape[dim] == 1:
                continue
            marks |= self.marks_of(index)
            itself = self._is_index.get(_storage(index))
            if itself is not None and index.numel() == 1:
                self.sizes[itself].add(table.shape[dim])
        return marks

    def _mark(self, tensor: Tensor, marks: frozenset[Index]) -> None:
        storage = _storage(tensor)
        self._marks[storage] = self._marks.get(storage, frozenset()) | marks
        self._alive.append(tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
