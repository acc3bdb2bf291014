"""The tables of packed documents, from their offsets, by one Triton kernel.

torch needs ten launches. Of a batch that is ready on a GPU, launches are what its block mask costs.
"""

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from maskloom.core.launches import Launches, on_device_of

_POSITIONS = 256  # of one program


@triton.jit(do_not_specialize=["entries", "kept_entries", "halvings", "length", "blocks", "by_row", "by_entry"])
def _find(  # type: ignore[no-untyped-def]
    offsets, ids, starts, kept, entries, kept_entries, halvings, length, blocks, by_row, by_entry,
    POSITIONS: tl.constexpr, ALL: tl.constexpr,  # noqa: N803 - Triton's naming
):  # fmt: skip
    row = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    offsets += row * by_row
    least = tl.zeros((POSITIONS,), tl.int64)  # the number of documents that have begun is between the two
    most = tl.zeros((POSITIONS,), tl.int64) + entries
    for _ in range(halvings):
        middle = (least + most) // 2
        is_open = least < most
        offset = tl.load(offsets + middle * by_entry, mask=is_open, other=0).to(tl.int64)
        most = tl.where(is_open & (offset > position), middle, most)
        least = tl.where(is_open & (offset <= position), middle + 1, least)
    is_real = (least > 0) & (least < entries)  # behind the last document all offsets have begun
    here = row * length + position
    tl.store(ids + here, tl.where(is_real, least - 1, -1).to(tl.int32), mask=position < length)
    if ALL:
        start = tl.load(offsets + (least - 1) * by_entry, mask=is_real, other=0).to(tl.int64)
        tl.store(starts + here, tl.where(is_real, start, length).to(tl.int32), mask=position < length)
        offset = tl.load(offsets + tl.minimum(position, entries - 1) * by_entry, mask=position < kept_entries, other=0)
        tl.store(kept + position, offset, mask=position < kept_entries)


def ids_by_kernel(offsets: Tensor, length: int) -> Tensor:
    """What `maskloom.batches.documents.ids_from_offsets` gives: int32 (..., L).

    Args:
        offsets: integers (pieces + 1,) or (B, pieces + 1) on a GPU.
        length: L.
    """
    ids = torch.empty(*offsets.shape[:-1], length, dtype=torch.int32, device=offsets.device)
    _launched(offsets, ids, ids, None)
    return ids


def tables_by_kernel(offsets: Tensor, kept_entries: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `maskloom.batches.documents.packed_tables` gives.

    Args:
        offsets: integers (pieces + 1,) on a GPU.
        kept_entries: of the offsets that are kept: at least as many.
        length: L.
    """
    kept = torch.empty(kept_entries, dtype=offsets.dtype, device=offsets.device)
    ids, starts = (torch.empty(length, dtype=torch.int32, device=offsets.device) for _ in range(2))
    _launched(offsets, ids, starts, kept)
    return kept, ids, starts


def _launched(offsets: Tensor, ids: Tensor, starts: Tensor, kept: Tensor | None) -> None:
    entries, length = offsets.shape[-1], ids.shape[-1]
    kept_entries = 0 if kept is None else len(kept)
    blocks = (max(length, kept_entries) + _POSITIONS - 1) // _POSITIONS
    rows, by_row = (offsets.shape[0], offsets.stride(0)) if offsets.ndim > 1 else (1, 0)
    with on_device_of(offsets):
        _launch(
            (rows * blocks, 1, 1),
            (offsets, ids, starts, offsets if kept is None else kept),
            (entries, kept_entries, entries.bit_length(), length, blocks, by_row, offsets.stride(-1)),
            {"POSITIONS": _POSITIONS, "ALL": kept is not None, "num_warps": 4},
        )


_launch = Launches(_find)
