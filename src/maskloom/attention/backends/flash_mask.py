"""Masks for FlashAttention 4: what it does not take of them, and the form in which it takes the rest.

torch (2.11) writes a mask into the kernel of flash-attn (4.0.0b4). All that is said here was seen on an H100:

- It reads tables at indices, not at a constant, ``table[0][kv_idx]``, nor a tensor without dimensions, which is read there
  too ("Expected TensorSSA, but got <class 'int'>").
- Of integers it knows signed ones.
- A table's last stride is a constant of the kernel where it is 1 or 0, and so is any stride of 0. Another one at a later
  call is an error ("Mismatched aux_tensors strides").
- Of a mask that is a constant it drops the tables (pytorch#188322): all is attended to.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.attention.backends.flash_limits import reads_scalars
from maskloom.attention.backends.table_reads import with_mended_reads
from maskloom.core import captures
from maskloom.core.cache import cached_with
from maskloom.core.symbols import is_dynamic, is_int
from maskloom.core.values import FrozenValue
from maskloom.masks.algebra import And, Mask, as_mask, mask_dataclass
from maskloom.masks.patterns.shift import Shifted
from maskloom.program.mask_program import known_of, program_of
from maskloom.program.ops import Fact, names_of
from maskloom.program.program import MaskMod, Op


def refused(mask: BlockMask | MaskMod | None, device: torch.device) -> str | None:
    """What it does not take of a mask, None where it takes it; kept with the mask. ``device`` is that of the attention."""
    if mask is None:
        return None
    mask_mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    others = cached_with(mask, ("for flash",), lambda: _others_of_kind(mask_mod, device))
    if not others:
        return None
    return (
        f"its masks are comparisons, logic, + - * and choices of tables read at indices; this has {', '.join(others)}"
    )


def _others_of_kind(mask_mod: MaskMod, device: torch.device) -> tuple[str, ...]:
    return known_of(mask_mod, device, "for flash", lambda: _others(mask_mod, device))


def _others(mask_mod: MaskMod, device: torch.device) -> tuple[str, ...]:
    program = program_of(_with_rows(as_mask(mask_mod), 2), device).program
    names = {_name_of(step) for step in program.steps} - names_of(Fact.IN_FLASH)
    if program.reads_scalar_tensor and not _scalars_are_read(mask_mod, device):
        names.add("a tensor without dimensions")
    elif program.uses_unindexed_capture:
        names.add("a table that is made, computed with, or read at a constant, before an index reads it")
    unknown = () if program.unsupported_reason is None else ("operations that cannot be followed",)
    return *unknown, *sorted(names)


def _scalars_are_read(mask_mod: MaskMod, device: torch.device) -> bool:
    """Whether this version reads all tensors without dimensions that a mask holds: those on the GPU."""
    held = captures.tensors(mask_mod)
    return reads_scalars() and all(tensor.ndim or tensor.device.type == device.type for tensor in held)


def _name_of(step: Op) -> str:
    name = step.op.overloadpacket.__name__
    if name == "_to_copy" and step.kwargs.get("dtype", torch.int64) not in _DTYPES:
        return f"a cast to {step.kwargs['dtype']}"
    if name != "index":
        return name
    table, indices = step.args
    if any(isinstance(index, Tensor) for index in indices):
        return "a table read at a constant"
    if isinstance(table, Tensor) and table.dtype not in _DTYPES:
        return f"a table of {table.dtype}"
    return name


_DTYPES = (
    torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def refused_in_graph(mask: BlockMask | MaskMod | None) -> str | None:
    """What it may not take of a mask inside the user's torch.compile, where the mask cannot be read; None where it takes it.

    What is known there is what the classes of masks say of themselves, and how their tables lie. A shifted mask is not
    taken: it may read tables at negative positions, and that is mended in a recorded program alone.
    """
    if mask is None or mask is noop_mask:
        return None
    found = _undeclared(mask.mask_mod if isinstance(mask, BlockMask) else mask)
    return None if found is None else f"inside torch.compile it takes Masks that are known to suit it; this has {found}"


def _undeclared(held: Any) -> str | None:
    """The first part of a mask, or of what it holds, that flash may not take. Dynamo traces this."""
    if isinstance(held, Tensor):
        is_read = held.ndim > 0 or (reads_scalars() and held.is_cuda)
        suits = is_read and held.dtype in _DTYPES and _lies_close(held)
        return None if suits else f"a tensor of {held.dtype} with {held.ndim} dimensions and strides {held.stride()}"
    if isinstance(held, tuple):
        return _first([_undeclared(item) for item in held])
    if isinstance(held, FrozenValue):
        value: Any = held
        if not (value.is_ours and getattr(value, "runs_in_flash", False)):
            return f"a {type(value).__qualname__}"
        return _first([_undeclared(getattr(value, field.name)) for field in dataclasses.fields(value)])
    if is_int(held):
        return "a number that changes from call to call" if is_dynamic(held) and not reads_scalars() else None
    return "a function" if callable(held) else None


def _first(found: list[str | None]) -> str | None:
    for words in found:
        if words is not None:
            return words
    return None


def for_flash(mask_mod: MaskMod, batch: int, device: torch.device) -> MaskMod:
    """An equal mask that flash takes, of one that is not `refused`."""
    if torch.compiler.is_dynamo_compiling():  # what a mask holds is not known then
        return And((as_mask(mask_mod), _every_key))
    if cached_with(mask_mod, ("flash takes it",), lambda: _is_taken(mask_mod, device)):
        return mask_mod
    mask = _with_rows(as_mask(mask_mod), batch)
    mended = with_mended_reads(
        captures.moved(mask, lambda table: table if _lies_close(table) else _copied(table)), device, narrow=True
    )
    return And((as_mask(mended), _every_key)) if _may_be_constant(mask_mod, device) else mended


def _is_taken(mask_mod: MaskMod, device: torch.device) -> bool:
    """Whether flash takes the mask as it is."""
    tensors = captures.tensors(mask_mod)
    as_it_is = all(tensor.ndim and _lies_close(tensor) for tensor in tensors) and not _may_be_constant(mask_mod, device)
    return as_it_is and with_mended_reads(mask_mod, device, narrow=True) is mask_mod


def _may_be_constant(mask_mod: MaskMod, device: torch.device) -> bool:
    """Whether its answer may be the same everywhere. What a function says is not asked for at every call."""
    return captures.holds_code(mask_mod) or isinstance(program_of(mask_mod, device).program.answer, Tensor)


def _copied(table: Tensor) -> Tensor:
    return table.clone(
        memory_format=torch.contiguous_format
    )  # contiguous() leaves strides of dimensions of 1 as they are


def _lies_close(table: Tensor) -> bool:
    """Whether its last dimension is contiguous and no dimension is expanded."""
    return table.stride()[-1:] in ((), (1,)) and 0 not in table.stride()


def _with_rows(mask: Mask, batch: int) -> Mask:
    """The mask with an offset for each batch row where it has one for all, in a tensor."""
    if all(tensor.ndim for tensor in captures.tensors(mask)):
        return mask

    def by_row(offset: int | Tensor) -> int | Tensor:
        return offset.repeat(batch) if isinstance(offset, Tensor) and not offset.ndim else offset

    return captures.moved(
        mask,
        lambda shift: dataclasses.replace(shift, q_offset=by_row(shift.q_offset), kv_offset=by_row(shift.kv_offset)),
        of=Shifted,
    )


@mask_dataclass
class EveryKey(Mask):
    """`everything`, said by a comparison, which torch does not see through."""

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx >= 0

    def __repr__(self) -> str:
        return "everything"


_every_key = EveryKey()
