"""Masks of other positions: the same mask, looked at from elsewhere."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.masks.algebra import Mask, as_mask, mask_value, shown
from maskloom.masks.checks import integer, integers
from maskloom.masks.dense import MaskMod
from maskloom.masks.tables import of_row


@mask_value
class Shifted(Mask):
    """See `shifted`."""

    mask: Mask
    q_offset: int | Tensor
    kv_offset: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.mask(b, h, q_idx + of_row(self.q_offset, b), kv_idx + of_row(self.kv_offset, b))

    def __repr__(self) -> str:
        return f"shifted({self.mask!r}, q_offset={shown(self.q_offset)}, kv_offset={shown(self.kv_offset)})"


def shifted(
    mask: MaskMod, *, q_offset: int | Tensor | Sequence[int] = 0, kv_offset: int | Tensor | Sequence[int] = 0
) -> Mask:
    """The mask as queries and keys see it that begin at other positions than 0: decoding, and prefill in chunks.

    ::

        causal          k0 k1 k2 k3        shifted(causal, q_offset=2)   k0 k1 k2 k3
                    q0   x                                           q0   x  x  x
                    q1   x  x                                        q1   x  x  x  x

    Rows of a batch that stand at different positions (decoding after prompts of different lengths, padding on the left) have an
    offset each.

    Args:
        mask: a Mask or a mask_mod.
        q_offset: the position of the first query: an int, an int32 or int64 tensor without dimensions, or integers
            (B,), one for each batch row. A tensor may change from step to step without a compilation.
        kv_offset: the position of the first key, likewise.

    Raises:
        TypeError, ValueError: an offset that is none of these.
    """
    offsets = _checked_offset("q_offset", q_offset), _checked_offset("kv_offset", kv_offset)
    inner = as_mask(mask)
    return inner if all(map(_is_zero, offsets)) else Shifted(inner, *offsets)


def _checked_offset(name: str, offset: int | Tensor | Sequence[int]) -> int | Tensor:
    if isinstance(offset, int) and not isinstance(offset, bool):
        return integer(name, offset, "a position")
    if isinstance(offset, Sequence) and not isinstance(offset, str):
        offset = integers(name, offset)
    if not isinstance(offset, Tensor) or offset.dtype not in (torch.int32, torch.int64):
        what = offset.dtype if isinstance(offset, Tensor) else repr(offset)
        raise TypeError(f"{name} is a position, an int or int32 or int64 tensor; got {what}")
    if offset.ndim > 1 or offset.numel() == 0:
        raise ValueError(f"{name} is one position, or one for each batch row, (B,); got shape {tuple(offset.shape)}")
    return offset


def _is_zero(offset: int | Tensor) -> bool:
    return isinstance(offset, int) and offset == 0
