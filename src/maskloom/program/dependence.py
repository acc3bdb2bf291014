"""Which of its four indices a mask depends on, and the sizes of the tables that it reads.

`dependence_of` propagates marks through the recorded program of a mask_mod. A value is marked with the indices that can
change it. The result of an operation gets all marks of its inputs, with two exceptions:

- an index into a table dimension of size 1 adds no mark (there is only one entry), and
- an operation that uses only a tensor's dtype or shape (``b.new_ones(())``) adds no mark.

So a mark may be superfluous, but is never missing. Where an index itself (not a value computed from it) reads a
dimension of a table, the size of that dimension is stored: it is the number of batch rows, heads or positions that the
mask is made for.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskloom.core.checks import MOST_POSITIONS, as_int, is_beyond_all
from maskloom.core.symbols import is_int, known
from maskloom.core.words import brief
from maskloom.program.ops import Fact, having
from maskloom.program.program import INDICES, Index, Op, Program, Value

_WORDS = {"b": ("batch", "batch row", "B"), "h": ("heads", "head", "H")}

_aten = torch.ops.aten
_HOLDS_ANY_INDEX = (torch.int32, torch.int64)
_KEEPS_VALUE = having(Fact.KEEPS_VALUE)


@dataclass(frozen=True)
class Dependence:
    """The indices that a mask's answer depends on, and the sizes of the tables that they read.

    Attributes:
        marks: the indices that can change the answer.
        sizes: for each index, the sizes of the table dimensions that it reads directly.
        read_at: the indices that can change where a table is read, directly or by what is computed from them.
    """

    marks: frozenset[Index]
    sizes: Mapping[Index, Collection[int]]
    read_at: frozenset[Index]

    @classmethod
    def on_all(cls, sizes: Mapping[Index, Collection[int]]) -> "Dependence":
        """The dependence where no program can be recorded: the answer may depend on every index."""
        return cls(frozenset(INDICES), sizes, frozenset(INDICES))

    def sizes_for(self, batch: int | None, heads: int | None, q_end: int | None, kv_end: int) -> tuple[int, int]:
        """B and H of a table for these queries and keys: the given sizes, or the smallest that the mask needs.

        Args:
            q_end, kv_end: one more than the last position; None if it is not known.

        Raises:
            ValueError: a size does not fit the tables that the mask reads, or has to be given.
        """
        if q_end is not None:
            self.check_length("q_idx", q_end)
        self.check_length("kv_idx", kv_end)
        return self.size("b", batch), self.size("h", heads)

    def refuse_shared(self, batch: int | None, heads: int | None) -> None:
        """Raise a ValueError if B or H is None, so that one table is for all, and the answers differ."""
        given: dict[Index, int | None] = {"b": batch, "h": heads}
        for index, size in given.items():
            if size is None and index in self.marks:
                (_, item, letter), sizes = _WORDS[index], sorted(self.sizes[index])
                which = f"{letter}={sizes[0]}" if len(sizes) == 1 else f"{letter}= their number"
                raise ValueError(
                    f"{letter} is None, and the mask's answer can differ from one {item} to another: tables for all of "
                    f"them would hold only those of {item} 0; pass {which}"
                )

    def size(self, index: Literal["b", "h"], asked: int | None) -> int:
        """The size B or H of a table that holds every answer of the mask.

        Args:
            index: "b" or "h".
            asked: the caller's size, checked against the tables; None for the smallest size that the mask needs. 1
                always fits a mask that is the same for all, whatever tables it reads.
        """
        argument, item, letter = _WORDS[index]
        sizes, asked = list(self.sizes[index]), as_int(asked)
        if any(known(size != sizes[0]) for size in sizes):
            listed = " and ".join(map(str, sorted(set(sizes))))
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
        if isinstance(asked, Tensor) and torch._C._get_tracing_state() is not None:
            raise ValueError(
                "torch.jit.trace makes tensors of sizes, and a mask is made for numbers: use torch.export.export or torch.compile"
            )
        least = 0 if index == "b" else 1  # a batch may be empty
        if not is_int(asked) or known(asked < least):
            raise ValueError(f"{argument} ({letter}) is a number of {item}s, at least {least}; got {brief(asked)}")
        if is_beyond_all(asked):
            raise ValueError(
                f"{argument} ({letter}) is a number of {item}s, at most {MOST_POSITIONS}; got {brief(asked)}"
            )
        same_for_all = index not in self.marks and known(asked == 1)
        if sizes and known(sizes[0] != asked) and not same_for_all:
            raise ValueError(
                f"{argument} ({letter}) is {asked}, and the mask reads a table for {sizes[0]} {item}s; "
                f"pass {sizes[0]}, or make the mask from the rows that are meant{_of_each_head(index, sizes[0], asked)}"
            )
        return asked

    def check_length(self, index: Literal["q_idx", "kv_idx"], length: int) -> None:
        """Raise a ValueError if a table that the index reads has fewer than ``length`` positions."""
        if any(known(size < length) for size in self.sizes[index]):
            side = "queries" if index == "q_idx" else "keys"
            shortest = min(self.sizes[index])
            raise ValueError(f"the mask reads a table with {shortest} positions, and there are {length} {side}")


def _of_each_head(index: str, size: int, asked: int) -> str:
    """A hint for tables in the form of nn.MultiheadAttention, which have B·H rows."""
    if index != "b" or not asked or size % asked:
        return ""
    return f" (of B·H rows, one for each head: table.view({asked}, {size // asked}, Q, K))"


def dependence_of(program: Program) -> Dependence:
    """The indices and table sizes that the answer of a recorded mask_mod depends on."""
    walk = _Walk()
    for step in program.steps:
        walk.follow(step, program)
    sizes = {index: frozenset(walk.sizes[index]) for index in INDICES}
    if program.unsupported_reason is None:
        return Dependence(walk.marks_of(program.answer), sizes, walk.read_at)
    return Dependence(walk.seen, sizes, walk.seen)


class _Walk:
    """Propagates marks from value to value."""

    def __init__(self) -> None:
        self.sizes: dict[Index, set[int]] = {index: set() for index in INDICES}
        self.seen: frozenset[Index] = frozenset()
        self.read_at: frozenset[Index] = frozenset()
        self._marks: dict[Value, frozenset[Index]] = {Value(i): frozenset({index}) for i, index in enumerate(INDICES)}
        self._is_index: dict[Value, Index] = {
            Value(i): index for i, index in enumerate(INDICES)
        }  # values that equal an index

    def follow(self, step: Op, program: Program) -> None:
        operation = step.op.overloadpacket
        if operation is _aten.index:
            marks = self._marks_of_lookup(step, program)
        else:
            marks = frozenset().union(*map(self.marks_of, step.refs))
        self.seen |= frozenset().union(marks, *map(self.marks_of, step.refs))
        for result in step.results:
            self._marks[result] = marks
        if operation in _KEEPS_VALUE and program.meta(step.results[0]).dtype in _HOLDS_ANY_INDEX:
            first = step.args[0]
            if isinstance(first, Value) and first in self._is_index:
                self._is_index[step.results[0]] = self._is_index[first]

    def marks_of(self, value: Value | Tensor) -> frozenset[Index]:
        return self._marks[value] if isinstance(value, Value) else frozenset()

    def _marks_of_lookup(self, step: Op, program: Program) -> frozenset[Index]:
        table, indices = step.args
        marks = self.marks_of(table)
        for size, index in zip(program.meta(table).shape, indices, strict=False):
            if not isinstance(index, Value):
                continue
            if size != 1:
                marks |= self._marks[index]
                self.read_at |= self._marks[index]
            if index in self._is_index:
                self.sizes[self._is_index[index]].add(size)
        return marks
