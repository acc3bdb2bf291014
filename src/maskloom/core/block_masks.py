"""torch's BlockMask as a container of parts; the set of parts differs between torch versions."""

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core.symbols import is_dynamic
from maskloom.core.words import brief

_PARTS = tuple(inspect.signature(BlockMask).parameters)  # newer torch has more of them

TABLES = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip
"""The names of its tables: for each query tile, and for each key tile."""


def rebuilt(block_mask: BlockMask, **changes: Any) -> BlockMask:
    """A new BlockMask that differs in ``changes``. Works while torch compiles too, where nothing can be copied."""
    return BlockMask(**{part: changes[part] if part in changes else getattr(block_mask, part) for part in _PARTS})


def copied_tables(block_mask: BlockMask, **changes: Any) -> BlockMask:
    """A new BlockMask whose tables are copies; it differs in ``changes`` too."""
    parts = {part: changes[part] if part in changes else getattr(block_mask, part) for part in _PARTS}
    copies: dict[str, Any] = {part: held.clone() if isinstance(held, Tensor) else held for part, held in parts.items()}
    return BlockMask(**copies)


def emptied(block_mask: BlockMask) -> BlockMask:
    """A BlockMask without tables, which hides nothing, of which only the sizes may be asked."""
    empty = rebuilt(block_mask, mask_mod=flex.noop_mask)
    for name, held in vars(empty).items():
        if isinstance(held, Tensor):
            setattr(empty, name, None)
    return empty


def with_write_order(built: BlockMask, dq_kv_order: bool) -> BlockMask:
    """The same BlockMask, to which torch's order of writes for a deterministic backward is added."""
    if not isinstance(dq_kv_order, bool):
        raise ValueError(f"dq_kv_order is a bool here; got {brief(dq_kv_order)}")
    orders = flex._compute_dq_write_order_from_block_mask(built, dq_kv_order=dq_kv_order)
    built.dq_write_order, built.dq_write_order_full = orders
    built.dq_kv_order, built.dq_kv_order_spt = None, dq_kv_order
    return built


def checked_block_mask(value: object) -> BlockMask:
    """The BlockMask itself; a TypeError names the value if it is something else."""
    if not isinstance(value, BlockMask):
        raise TypeError(
            f"a BlockMask, as block_mask(mask, q_len, kv_len) builds one; got {type(value).__name__}: {brief(value)}"
        )
    return value


class _Made:
    """What a BlockMask held when its tables were made of its mask_mod. It stands in the BlockMask, where torch.compile finds it too.

    A deep or pickled copy of the BlockMask, which has other tables, has nothing of use in its place: an empty dictionary, which
    torch.load takes with ``weights_only``.

    Attributes:
        mask_mod, tables: what it held.
        versions: how often each table had been written into.
        writes: how often all of them had.
    """

    def __init__(self, mask_mod: object, tables: tuple[Tensor, ...]) -> None:
        self.mask_mod, self.tables, self.versions = mask_mod, tables, tuple(map(_version, tables))
        self.writes = sum(self.versions)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ()


_MADE = "_maskloom_made"
_tables: Callable[[Any], tuple[Tensor, ...]] = operator.itemgetter(*TABLES)
_version = operator.attrgetter("_version")


def made_of_mask(block_mask: BlockMask) -> BlockMask:
    """The BlockMask itself, of which is noted that its tables say the same as its mask_mod."""
    if block_mask.full_kv_indices is not None:
        tables = _tables(vars(block_mask))
        if not any(map(Tensor.is_inference, tables)):  # in which no writes are counted
            setattr(block_mask, _MADE, _Made(block_mask.mask_mod, tables))
    return block_mask


def says_its_mask(block_mask: BlockMask) -> bool:
    """Whether its tables are known to say the same as its mask_mod: it was made so, with full tables, and nobody changed it.

    While torch compiles, this sees other tables and another mask_mod, but no write into a table, not even an earlier one. `unwritten`
    sees writes when the graph runs.
    """
    made = getattr(block_mask, _MADE, None)
    if not isinstance(made, _Made) or made.mask_mod is not block_mask.mask_mod:
        return False
    if torch.compiler.is_dynamo_compiling():
        return all(getattr(block_mask, name) is table for name, table in zip(TABLES, made.tables, strict=True))
    tables = _tables(vars(block_mask))
    return all(map(operator.is_, tables, made.tables)) and tuple(map(_version, tables)) == made.versions


def laid_out(block_mask: BlockMask) -> BlockMask:
    """The BlockMask, while torch compiles, with tables that lie as torch's kernels read them.

    They take it that one batch row's table lies right behind the other's. Of a table that a graph computes, whose sizes are
    constants, Inductor may leave room between them (``comprehensive_padding``; torch 2.11). So such tables are copied: those of a
    BlockMask of maskloom's are made outside, or by an operator.
    """
    made = getattr(block_mask, _MADE, None)
    tables = {name: table for name in TABLES if (table := getattr(block_mask, name)) is not None}
    if made is not None or not any(map(_may_be_padded, tables.values())):
        return block_mask
    return rebuilt(block_mask, **dict(zip(tables, _copies([*tables.values()]), strict=True)))


def _may_be_padded(table: Tensor) -> bool:
    """Whether Inductor, if a graph computed this table, may have left room between its batch rows."""
    if table.device.type == "cpu" or any(map(is_dynamic, table.shape)):
        return False
    steps, step = [], 1
    for size in reversed(table.shape[1:]):
        step *= size
        steps.append(step)
    return table.shape[0] > 1 and any(step > _LEAST_PADDED and step % _ALIGNED for step in steps)


_LEAST_PADDED = 1024
_ALIGNED = 32
"""Elements of four bytes: what torch._inductor.config calls padding_stride_threshold and padding_alignment_bytes."""


@torch.library.custom_op("maskloom::copies", mutates_args=())
def _copies(tables: Sequence[Tensor]) -> list[Tensor]:
    return [table.clone(memory_format=torch.contiguous_format) for table in tables]


@_copies.register_fake
def _like(tables: Sequence[Tensor]) -> list[Tensor]:
    return [table.new_empty(table.shape) for table in tables]


def unwritten(block_mask: BlockMask, table: Tensor, writes: int, number: int) -> Tensor:
    """A number as int64 (1,), for a graph that relies on `says_its_mask`: the graph looks for writes each time that it makes it.

    Args:
        table: of the BlockMask's mask.
        writes: how often somebody may have written into that.

    Raises:
        RuntimeError: when the graph runs, if somebody has written into the BlockMask's tables since they were made, or into ``table``
            since. The host finds out, without waiting for a device.
    """
    made = getattr(block_mask, _MADE)
    return _unwritten([*made.tables, table], made.writes + writes, number)


@torch.library.custom_op("maskloom::unwritten", mutates_args=())
def _unwritten(tables: Sequence[Tensor], writes: int, number: int) -> Tensor:
    if sum(map(_version, tables)) != writes:
        raise RuntimeError(
            "the tables of a block mask, or a tensor of its mask, were written to after maskloom made it, and a compiled graph that packs "
            "tokens goes by the mask alone: build it again; or, if its tables are to count, give a copy.deepcopy of it"
        )
    return torch.full((1,), number, dtype=torch.int64, device=tables[0].device)


@_unwritten.register_fake
def _number(tables: Sequence[Tensor], writes: int, number: int) -> Tensor:
    return tables[0].new_empty(1, dtype=torch.int64)
