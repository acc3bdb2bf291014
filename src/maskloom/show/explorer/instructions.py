"""Programs for the page: scalar instructions with explicit types, which its JavaScript interprets.

Values of a mask's program may have dimensions of their own; here each entry of them is a slot, so that the page knows numbers
and tables alone. Equal instructions share a slot, also those of different operands.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskloom.program.program import INDICES

MOST_INSTRUCTIONS = 1 << 14
"""Maximum number of instructions of a page: more would take the browser too long."""

Instruction = tuple[Any, ...]
"""An operation, the dtype that it computes in, and its arguments: slots, or numbers as the operation says.

Slots 0 to 3 are b, h, q_idx and kv_idx; each instruction adds one. ``("add", "int64", 2, 4)`` adds two slots."""


class NotInThePageError(Exception):
    """A mask that the page cannot run exactly; the message says why, to come after "because"."""


def name_of(dtype: torch.dtype) -> str:
    """A dtype as instructions name it."""
    return str(dtype).removeprefix("torch.")


@dataclass
class Instructions:
    """The instructions of a page, and the tables that they read."""

    code: list[Instruction] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)
    _slots: dict[Instruction, int] = field(default_factory=dict)
    _tables: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def emit(self, operation: str, dtype: torch.dtype, *arguments: Any) -> int:
        """The slot of an instruction."""
        instruction = (operation, name_of(dtype), *arguments)
        found = self._slots.get(instruction)
        if found is None:
            if len(self.code) >= MOST_INSTRUCTIONS:
                raise NotInThePageError(f"it takes more than {MOST_INSTRUCTIONS} operations for one pair")
            found = len(INDICES) + len(self.code)
            self.code.append(instruction)
            self._slots[instruction] = found
        return found

    def constant(self, number: Any, dtype: torch.dtype) -> int:
        """The slot of a number."""
        return self.emit("const", dtype, written(number))

    def table(self, table: Tensor) -> int:
        """The number of a table in the page; equal tables are one."""
        key = (table.dtype, tuple(table.shape), hashlib.sha256(table.numpy().tobytes()).digest())
        if key not in self._tables:
            self._tables[key] = len(self.tables)
            self.tables.append(table)
        return self._tables[key]

    def mark(self) -> tuple[int, int]:
        """The place that it has come to, for `back`."""
        return len(self.code), len(self.tables)

    def back(self, mark: tuple[int, int]) -> None:
        """Forget what came after a mark."""
        for instruction in self.code[mark[0] :]:
            del self._slots[instruction]
        del self.code[mark[0] :], self.tables[mark[1] :]
        self._tables = {key: place for key, place in self._tables.items() if place < mark[1]}


def written(number: bool | int | float) -> int | float | str:
    """A number as JSON has it: text where a JavaScript number would not hold it."""
    if isinstance(number, int):
        return int(number) if abs(number) <= 1 << 53 else str(number)
    return float(number) if math.isfinite(number) else str(number)


def plain(table: Tensor) -> Tensor:
    """A table on the CPU, one entry after another; half precision as float32, which holds it."""
    table = table.detach().cpu()
    if table.dtype in (torch.float16, torch.bfloat16):
        table = table.float()
    return table.contiguous()


def distinct(table: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that differ, (n, ...), and for each row of (B, ...) which of them it is, int64 (B,)."""
    seen: dict[bytes, int] = {}
    which = [seen.setdefault(row.numpy().tobytes(), len(seen)) for row in table]
    first = [which.index(place) for place in range(len(seen))]
    return table[first], torch.from_numpy(np.array(which, dtype=np.int64))
