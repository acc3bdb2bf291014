"""Masks at other positions: a mask with offsets for queries, keys and heads."""

from collections.abc import Sequence

from torch import Tensor

from maskloom.core.checks import head_offset, is_zero, may_be_negative, position_offsets
from maskloom.masks.algebra import Mask, Placing, as_mask, mask_dataclass, shown
from maskloom.masks.lookups import of_row
from maskloom.masks.signed import Signed
from maskloom.program.program import MaskMod

__all__ = ["shifted"]


@mask_dataclass
class Shifted(Mask):
    """See `shifted`."""

    mask: Mask
    q_offset: int | Tensor
    kv_offset: int | Tensor
    h_offset: int | Tensor | None

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.signed(b, h, q_idx, kv_idx, Signed(False, False))

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        if not is_zero(self.q_offset):  # index + 0 is a computed value: its table sizes are not checked
            q_idx = q_idx + of_row(self.q_offset, b)
        if not is_zero(self.kv_offset):
            kv_idx = kv_idx + of_row(self.kv_offset, b)
        h = h if self.h_offset is None else h + self.h_offset
        signed = Signed(signed.q or may_be_negative(self.q_offset), signed.kv or may_be_negative(self.kv_offset))
        return self.mask.signed(b, h, q_idx, kv_idx, signed) if any(signed) else self.mask(b, h, q_idx, kv_idx)

    def __repr__(self) -> str:
        heads = "" if self.h_offset is None else f", h_offset={shown(self.h_offset)}"
        return f"shifted({self.mask!r}, q_offset={shown(self.q_offset)}, kv_offset={shown(self.kv_offset)}{heads})"


def shifted(
    mask: MaskMod,
    *,
    q_offset: int | Tensor | Sequence[int] = 0,
    kv_offset: int | Tensor | Sequence[int] = 0,
    h_offset: int | Tensor | None = None,
) -> Mask:
    """The mask for queries, keys or heads that do not start at 0: for decoding, prefill in chunks, some heads.

    ::

        causal          k0 k1 k2 k3        shifted(causal, q_offset=2)   k0 k1 k2 k3
                    q0   x                                           q0   x  x  x
                    q1   x  x                                        q1   x  x  x  x

    Positions before 0 are padding: masks of padding and of segments hide them, and tables have no entry for them. So
    ``shifted(mask, q_offset=-pads, kv_offset=-pads)`` is a mask for batches that are padded on the left, by ``pads``
    (B,). (`causal`, windows, `prefix` and `sinks` only compare positions: combine them with a padding mask.)

    Batch rows at different positions (decoding after prompts of different lengths, padding on the left) need one offset
    each. A tensor-parallel rank that holds heads 4 to 7 of 8 uses ``h_offset=4``: its head h is head h + 4 of the mask.
    If the mask differs between heads, pass heads= to `block_mask` and ``dense``; it cannot be inferred here:
    ``block_mask(shifted(per_head(masks), h_offset=4), q_len, kv_len, heads=4)``. `attend` takes it from the query.

    Args:
        mask: a Mask or a mask_mod.
        q_offset: the position of the first query: an int, an int32 or int64 tensor without dimensions, or integers
            (B,), one for each batch row. A tensor may change between steps without recompilation.
        kv_offset: the position of the first key, in the same forms.
        h_offset: the first head, an int from 0 on, or an int32 or int64 tensor without dimensions. None: these are all
            heads. (0 says that there may be more heads than these.)

    Raises:
        TypeError, ValueError: an offset of another type or shape, or offsets for the mask of a cache.
    """
    offsets = position_offsets(q_offset, kv_offset)
    heads = None if h_offset is None else head_offset(h_offset)
    inner = as_mask(mask)
    if isinstance(inner, Placing) and not all(map(is_zero, offsets)):
        raise TypeError("the mask of a cache knows the positions of queries and keys: give no q_offset or kv_offset")
    return inner if heads is None and all(map(is_zero, offsets)) else Shifted(inner, *offsets, heads)
