"""A mask's program as instructions of the page: operations on values with dimensions become operations on numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskloom.program.batched import batched, common_dtype, results_in
from maskloom.program.program import Op, Program, Value, leaves
from maskloom.show.explorer.instructions import Instructions, NotInThePageError, distinct, name_of, plain

_B, _H = 0, 1  # slots

MOST_ENTRIES = 1 << 12
"""Maximum number of entries of a value that is no table read by an index."""


@dataclass(frozen=True)
class Slots:
    """A value: the slot of each of its entries, int64 in its own shape."""

    slots: Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class Table:
    """A value that a table holds: ``table`` has a dimension for each of ``indices`` (slots), then those of the value."""

    table: Tensor
    indices: tuple[int, ...] = ()


Entry = Slots | Table


class Lowering:
    """Adds a program to the instructions of a page.

    Args:
        rows, heads: the batch rows and heads that the page has; other rows of tables are left out.
    """

    def __init__(self, out: Instructions, program: Program, rows: set[int], heads: set[int]) -> None:
        self.out, self.program, self.kept = out, program, {_B: rows, _H: heads}
        self.values: dict[Value, Entry] = {Value(slot): Slots(torch.tensor(slot), torch.int64) for slot in range(4)}

    def entry(self, leaf: Value | Tensor) -> Entry:
        """A value of the program, or a constant tensor."""
        return self.values[leaf] if isinstance(leaf, Value) else Table(leaf.detach().cpu())

    def is_as_recorded(self, out: Tensor, result: Value, lead: int) -> bool:
        """Whether a result has the dtype and shape that the recorded run had."""
        meta = self.program.meta(result)
        return (out.dtype, tuple(out.shape[lead:])) == (meta.dtype, meta.shape)

    # -- slots ---------------------------------------------------------------------------------------------------------

    def slots(self, leaf: Any, dtype: torch.dtype | None = None) -> Slots:
        """A value, a tensor or a Python number as slots, in a dtype if one is given."""
        if not isinstance(leaf, (Value, Tensor)):
            return self._number(leaf, dtype)
        found = self.entry(leaf)
        if isinstance(found, Table):
            found = self.read(found)
        return found if dtype is None else self.cast(found, dtype)

    def _number(self, number: Any, dtype: torch.dtype | None) -> Slots:
        if dtype is None or type(number) not in (bool, int, float):
            raise NotInThePageError(f"it takes {type(number).__name__} {number!r} as a value")
        held = torch.tensor(number).to(dtype)
        if dtype in (torch.float16, torch.bfloat16) and held.item() != number:
            raise NotInThePageError(f"{number} is not a number of {name_of(dtype)}")
        return Slots(torch.tensor(self.out.constant(held.item(), dtype)), dtype)

    def read(self, entry: Table) -> Slots:
        """One instruction for each entry of the value."""
        own = entry.table.shape[len(entry.indices) :]
        if own.numel() > MOST_ENTRIES:
            raise NotInThePageError(f"it computes with all of a table of shape {tuple(own)} for one pair")
        dtype = entry.table.dtype
        if not entry.indices:
            found = [self.out.constant(number, dtype) for number in plain(entry.table).flatten().tolist()]
        else:
            found = self._reads_of(entry, own.numel(), dtype)
        return Slots(torch.tensor(found, dtype=torch.int64).reshape(own), dtype)

    def _reads_of(self, entry: Table, own: int, dtype: torch.dtype) -> list[int]:
        table, indices = self._without_repeats(plain(entry.table), entry.indices)
        number, inner = self.out.table(table), tuple(table.shape[: len(indices)])
        layout = [part for pair in zip(indices, inner, strict=True) for part in pair]
        return [self.out.emit("read", dtype, number, own, place, *layout) for place in range(own)]

    def _without_repeats(self, table: Tensor, indices: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """The table with equal rows of the batch or of heads once, and those only that the page has."""
        for axis, index in enumerate(indices):
            if index not in self.kept or table.numel() <= 4 * table.shape[axis]:
                continue
            moved = table.movedim(axis, 0).contiguous()
            kept = [row for row in sorted(self.kept[index]) if row < len(moved)]
            rows, which = distinct(moved[kept])
            if len(rows) == len(moved):
                continue
            number = torch.zeros(len(moved), dtype=torch.int64)
            number[kept] = which
            at = self.out.emit("read", torch.int64, self.out.table(number), 1, 0, index, len(number))
            table = rows.movedim(0, axis).contiguous()
            indices = (*indices[:axis], at, *indices[axis + 1 :])
        return table, indices

    def cast(self, value: Slots, dtype: torch.dtype) -> Slots:
        """The value in another dtype."""
        return value if value.dtype == dtype else self.each("cast", dtype, value, result=dtype)

    def each(self, operation: str, dtype: torch.dtype, *values: Slots, result: torch.dtype) -> Slots:
        """An operation on each entry; values broadcast."""
        shaped = torch.broadcast_tensors(*(value.slots for value in values))
        if shaped[0].numel() > MOST_ENTRIES:
            raise NotInThePageError(f"it computes {shaped[0].numel()} values for one pair")
        columns = (slots.flatten().tolist() for slots in shaped)
        found = [self.out.emit(operation, dtype, *entries) for entries in zip(*columns, strict=True)]
        return Slots(torch.tensor(found, dtype=torch.int64).reshape(shaped[0].shape), result)

    def common(self, arguments: tuple[Any, ...], *, wide: bool) -> torch.dtype:
        """The dtype that torch.vmap computes in for these values and numbers."""
        metas = [self.program.meta(leaf) for leaf in arguments if isinstance(leaf, (Value, Tensor))]
        numbers = [leaf for leaf in arguments if isinstance(leaf, (bool, int, float))]
        tensors = [torch.empty((0,) * len(meta.shape), dtype=meta.dtype) for meta in metas]
        if len({meta.dtype for meta in metas}) == 1:
            return torch.result_type(torch.empty(1, dtype=metas[0].dtype), numbers[0]) if numbers else metas[0].dtype
        return common_dtype(tensors, 0, *numbers, wide=wide)


Rule = Callable[[Lowering, Op], list[Entry]]


def of_tables(low: Lowering, step: Op) -> list[Entry] | None:
    """An operation on tables alone, all read by the same indices, is run here, for all their entries; else None."""
    given = (step.args, *step.kwargs.values())
    found: list[Value | Tensor] = [*leaves(given, Value), *leaves(given, Tensor)]
    entries = list(map(low.entry, found))
    tables = [entry for entry in entries if isinstance(entry, Table)]
    reads = {table.indices for table in tables if table.indices}
    if len(reads) > 1 or len(tables) < len(entries):
        return None
    read = next(iter(reads), ())
    sizes = next((table.table.shape[: len(read)] for table in tables if table.indices), torch.Size())

    def aligned(leaf: Any) -> Any:
        if not isinstance(leaf, (Value, Tensor)):
            return leaf
        entry = low.entry(leaf)
        assert isinstance(entry, Table)
        return entry.table if entry.indices else entry.table.reshape((1,) * len(read) + entry.table.shape)

    args, kwargs = step.filled(aligned)
    results = results_in(batched(step.op, args, kwargs, len(read)), len(step.results))
    if results is None or not all(map(low.is_as_recorded, results, step.results, [len(read)] * len(results))):
        return None
    return [Table(out.expand(*sizes, *out.shape[len(read) :]), read) for out in results]


def shaped(low: Lowering, step: Op) -> list[Entry]:
    """An operation on shapes moves slots as it would move numbers."""
    dtype = low.program.meta(step.results[0]).dtype

    def moved(leaf: Any) -> Any:
        return low.slots(leaf, dtype).slots if isinstance(leaf, (Value, Tensor)) else leaf

    args, kwargs = step.filled(moved)
    results = results_in(step.op(*args, **kwargs), len(step.results))
    if results is None:
        raise NotInThePageError(f"{step.op.overloadpacket.__name__} gives another number of results")
    return [Slots(slots, dtype) for slots in results]
