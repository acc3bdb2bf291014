"""A copy of a tensor with zeros at some rows, by one Triton kernel, which does not read these rows.

torch.where reads both of what it chooses from. Padding is a quarter of many batches.
"""

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from maskloom.core.launches import Launches, on_device_of

_ELEMENTS = 1 << 13  # of one program


@triton.jit(do_not_specialize=["heads", "length", "blocks"])
def _copy(  # type: ignore[no-untyped-def]
    source, out, rows, heads, length, blocks,
    by_batch, by_head, by_row, out_by_batch, out_by_head, out_by_row, rows_by_batch, rows_by_row,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803 - Triton's naming
):  # fmt: skip
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = pair // heads, pair % heads
    row = (tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, WIDE)
    is_row, is_column = (row < length)[:, None], (column < WIDTH)[None, :]
    is_zero = tl.load(rows + b * rows_by_batch + row * rows_by_row, mask=row < length, other=1) != 0
    source += b * by_batch + h * by_head + row[:, None] * by_row + column[None, :]
    copied = tl.load(source, mask=is_row & is_column & (is_zero == 0)[:, None], other=0.0)
    out += b * out_by_batch + h * out_by_head + row[:, None] * out_by_row + column[None, :]
    tl.store(out, copied, mask=is_row & is_column)


def zeroed_copy(tensor: Tensor, rows: Tensor) -> Tensor | None:
    """A copy with zeros at some rows; None where this kernel has none.

    Args:
        tensor: (B, H, L, D) on a GPU.
        rows: bool, there too, with which the kernel does something if they are (B or 1, 1, L, 1).
    """
    if tensor.ndim != 4 or not tensor.numel() or tensor.stride(3) != 1:
        return None
    batch, heads, length, width = tensor.shape
    if rows.shape not in ((batch, 1, length, 1), (1, 1, length, 1)):
        return None
    out = torch.empty_like(tensor)
    if out.stride(3) != 1:
        return None
    wide = 1 << (width - 1).bit_length()
    in_block = max(1, _ELEMENTS // wide)
    blocks = (length + in_block - 1) // in_block
    with on_device_of(tensor):
        by_batch = rows.stride(0) if rows.shape[0] > 1 else 0
        _launch(
            (batch * heads * blocks, 1, 1),
            (tensor, out, rows),
            (heads, length, blocks, *tensor.stride()[:3], *out.stride()[:3], by_batch, rows.stride(2)),
            {"WIDTH": width, "WIDE": wide, "ROWS": in_block, "num_warps": 4},
        )
    return out


_launch = Launches(_copy)
