"""Masks of other positions: the same mask, looked at from elsewhere."""

from collections.abc import Sequence

from torch import Tensor

from maskloom.core.checks import head_offset, is_zero, may_be_negative, position_offsets
from maskloom.masks.algebra import Mask, as_mask, mask_dataclass, shown
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
        if not is_zero(self.q_offset):  # an index plus 0 is no index any more, whose tables' sizes are checked
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
    """The mask for queries, keys or heads that do not begin at 0: for decoding, prefill in chunks, some of the heads.

    ::

        causal          k0 k1 k2 k3        shifted(causal, q_offset=2)   k0 k1 k2 k3
                    q0   x                                           q0   x  x  x
                    q1   x  x                                        q1   x  x  x  x

    What lies before position 0 is padding: masks of padding and of segments hide it, and tables have no entry for it. So
    ``shifted(mask, q_offset=-pads, kv_offset=-pads)`` is a mask for batches that are padded on the left, by ``pads`` (B,).
    (`causal`, windows, `prefix` and `sinks` compare positions, whatever those are: join them to a mask of padding.)

    Rows of a batch that stand at different positions (decoding after prompts of different lengths, padding on the left) have an
    offset each. A tensor-parallel rank that holds heads 4 to 7 of 8 has ``h_offset=4``: its head h is head h + 4 of the mask.
    How many heads the rank holds no table says, so `block_mask` and ``dense`` must be told where the mask differs from head
    to head: ``block_mask(shifted(per_head(masks), h_offset=4), q_len, kv_len, heads=4)``. `attend` sees it from the query.

    Args:
        mask: a Mask or a mask_mod.
        q_offset: the position of the first query: an int, an int32 or int64 tensor without dimensions, or integers
            (B,), one for each batch row. A tensor may change from step to step without a compilation.
        kv_offset: the position of the first key, likewise.
        h_offset: the first head, an int from 0 on (0 too: there may be more heads than these), or an int32 or int64 tensor
            without dimensions. None: these heads are all.

    Raises:
        TypeError, ValueError: an offset that is none of these.
    """
    offsets = position_offsets(q_offset, kv_offset)
    heads = None if h_offset is None else head_offset(h_offset)
    inner = as_mask(mask)
    return inner if heads is None and all(map(is_zero, offsets)) else Shifted(inner, *offsets, heads)
