"""Expand a mask to a table of its answers for every query and key.

This is the reference: everything else that maskloom makes from a mask is tested against it.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from maskloom.core import captures
from maskloom.core.checks import as_int, checked_length, end_of, position_offset
from maskloom.core.forks import load_vmap
from maskloom.core.symbols import is_int, known
from maskloom.core.torch_state import NOT_LIFTED, is_in_operator, is_tracing
from maskloom.core.values import FrozenValue, holds_function, undecorated
from maskloom.masks.signed import Signed
from maskloom.program.answers import ask
from maskloom.program.getitem import IndexByTensors
from maskloom.program.mask_program import dependence_on, program_of, table_of
from maskloom.program.program import MaskMod


def dense(
    mask_mod: MaskMod,
    q_len: int,
    kv_len: int,
    *,
    batch: int | None = None,
    heads: int | None = None,
    device: torch.device | str | None = None,
    q_offset: int | Tensor = 0,
) -> Tensor:
    """A mask_mod as a table; each element is evaluated as a scalar under ``torch.vmap``.

    Args:
        mask_mod: a `Mask` or any ``(b, h, q_idx, kv_idx) -> bool``.
        q_len, kv_len: Q and K, in positions.
        batch, heads: B and H; by default the smallest that the mask needs, 1 if its answer is the same for all.
        device: the device of the table; by default the device of the mask's tensors, else the CPU.
        q_offset: the position of the first query, an int or an integer tensor without dimensions.

    Returns:
        bool, (B or 1, H or 1, Q, K), True = may attend.

    Raises:
        TypeError: a Mask of a class that is not decorated, or a device that is none.
        ValueError: a length below 1; a device that torch does not have here; a batch size or head count that does not fit the
            tables that the mask reads, or that is missing although the mask computes with the index instead of reading a table.
    """
    if isinstance(mask_mod, FrozenValue) and not mask_mod.is_decorated:
        raise undecorated(mask_mod)
    q_len, kv_len, batch, heads = map(as_int, (q_len, kv_len, batch, heads))
    checked_length("q_len", q_len)
    checked_length("kv_len", kv_len)
    q_offset = position_offset("q_offset", q_offset)
    if is_int(q_offset) and known(q_offset < 0):
        raise ValueError(f"q_offset is the position of the first query, at least 0; got {q_offset}")
    if isinstance(q_offset, Tensor) and q_offset.ndim:
        raise ValueError(
            f"q_offset is one position for all batch rows; got shape {tuple(q_offset.shape)}: "
            f"for one in each row, build from shifted(mask, q_offset=...)"
        )
    device = (
        captures.checked_device(device) if device is not None else captures.device_of(mask_mod) or torch.device("cpu")
    )
    batch, heads = table_sizes(mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device, q_offset=q_offset)

    signed = getattr(mask_mod, "signed", None) if isinstance(q_offset, Tensor) else None

    def from_offset(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if signed is not None:  # a tensor's value is not read, and may be negative
            return signed(b, h, q_idx + q_offset, kv_idx, Signed(True, False))
        return mask_mod(b, h, q_idx + q_offset, kv_idx)

    if known(batch == 0):
        return torch.zeros(batch, heads, q_len, kv_len, dtype=torch.bool, device=device)
    if torch.compiler.is_compiling():
        broadcasts = not holds_function(mask_mod) or (isinstance(mask_mod, FrozenValue) and is_in_operator())
        return _traced(from_offset, (batch, heads, q_len, kv_len), device, broadcasts=broadcasts)
    load_vmap()
    return create_mask(from_offset, batch, heads, q_len, kv_len, device=device)


def _traced(mask_mod: MaskMod, sizes: tuple[int, int, int, int], device: torch.device, *, broadcasts: bool) -> Tensor:
    """The table while torch traces. A Mask broadcasts, and needs no vmap; a plain function is batched by vmap.

    torch's own ``create_mask`` cannot index tables under export: a strict export hides the indexing from it.
    """
    indices = [torch.arange(size, device=device) for size in sizes]
    if broadcasts:
        shaped = [index.view(*(-1 if dim == axis else 1 for dim in range(4))) for axis, index in enumerate(indices)]
        return ask(mask_mod, *shaped).expand(sizes)
    if is_in_operator():
        raise TypeError(NOT_LIFTED)
    batched: MaskMod = mask_mod
    for axis in (3, 2, 1, 0):
        batched = torch.vmap(batched, in_dims=tuple(0 if dim == axis else None for dim in range(4)))
    with IndexByTensors():
        return ask(batched, *indices)


GIVE_SIZES = "while torch.compile or torch.export traces, give the batch size and the number of heads, or build outside"


def table_sizes(
    mask_mod: MaskMod,
    q_len: int,
    kv_len: int,
    *,
    batch: int | None,
    heads: int | None,
    device: torch.device | str,
    q_offset: int | Tensor = 0,
) -> tuple[int, int]:
    """B and H of a table that holds every answer of a mask: the given sizes, or the smallest that it needs.

    While torch compiles, B and H must be given.

    Raises:
        ValueError: the given sizes do not fit the tables that the mask reads.
    """
    if torch.compiler.is_compiling() and (batch is None or heads is None):
        raise ValueError(GIVE_SIZES)
    return dependence_on(mask_mod, device).sizes_for(batch, heads, end_of(q_len, q_offset), kv_len)


def needed_sizes(
    mask_mod: MaskMod, q_len: int, kv_len: int, *, batch: int, heads: int, device: torch.device | str
) -> tuple[int, int]:
    """The smallest B and H with which a table of the mask broadcasts to ``batch`` rows and ``heads`` heads.

    While torch compiles, the dependence is unknown, and the result is ``batch`` and ``heads``.
    """
    table_sizes(mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
    if torch.compiler.is_compiling():
        return batch, heads
    marks = dependence_on(mask_mod, device).marks
    return (batch if "b" in marks else 1), (heads if "h" in marks else 1)


def table(
    mask_mod: MaskMod,
    q_len: int,
    kv_len: int,
    *,
    batch: int,
    heads: int,
    device: torch.device,
    q_offset: int | Tensor = 0,
) -> Tensor:
    """The table of `dense`, computed by the mask's recorded program unless torch traces."""
    if is_tracing() or isinstance(q_offset, Tensor) or batch == 0:  # a tensor's value is not read, and may be negative
        return dense(mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device, q_offset=q_offset)
    table_sizes(mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device, q_offset=q_offset)
    return table_of(program_of(mask_mod, device), (batch, heads, q_len, kv_len), q_offset)
