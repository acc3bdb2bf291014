"""Masks of other positions: the same mask, looked at from elsewhere."""

import torch
from torch import Tensor

from maskloom.masks.algebra import Mask, as_mask, mask_value, shown
from maskloom.masks.dense import MaskMod


@mask_value
class Shifted(Mask):
    """See `shifted`."""

    mask: Mask
    q_offset: int | Tensor
    kv_offset: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.mask.__call__(b, h, q_idx + self.q_offset, kv_idx + self.kv_offset)

    def __repr__(self) -> str:
        return f"shifted({self.mask!r}, q_offset={shown(self.q_offset)}, kv_offset={shown(self.kv_offset)})"


def shifted(mask: MaskMod, *, q_offset: int | Tensor = 0, kv_offset: int | Tensor = 0) -> Mask:
    """The mask as queries and keys see it that begin at other positions than 0: decoding, and prefill in chunks.

    ::

        causal          k0 k1 k2 k3        shifted(causal, q_offset=2)   k0 k1 k2 k3
                    q0   x                                           q0   x  x  x
                    q1   x  x                                        q1   x  x  x  x

    Args:
        mask: a Mask or a mask_mod.
        q_offset: the position of the first query, an int or an integer tensor without dimensions. A tensor may change
            from step to step without a compilation.
        kv_offset: the position of the first key.

    Raises:
        TypeError: an offset that is neither.
    """
    _check_offset("q_offset", q_offset)
    _check_offset("kv_offset", kv_offset)
    inner = as_mask(mask)
    if _is_zero(q_offset) and _is_zero(kv_offset):
        return inner
    return Shifted(inner, q_offset, kv_offset)


def _check_offset(name: str, offset: object) -> None:
    is_int = isinstance(offset, int) and not isinstance(offset, bool)
    is_scalar = isinstance(offset, Tensor) and offset.ndim == 0 and offset.dtype in (torch.int32, torch.int64)
    if not is_int and not is_scalar:
        what = f"{offset.dtype} of shape {tuple(offset.shape)}" if isinstance(offset, Tensor) else repr(offset)
        raise TypeError(f"{name} is a position, an int or an int32 or int64 tensor without dimensions; got {what}")


def _is_zero(offset: int | Tensor) -> bool:
    return isinstance(offset, int) and offset == 0
