"""Where the inputs of the module are known to be padding, by its mask or its cache."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.checks import check_mask_fits, row_beyond, told_of
from maskloom.attention.zeros import zeros_both_ways
from maskloom.core.cache import cached_with
from maskloom.core.symbols import is_one_of
from maskloom.masks.in_place import Sizes, as_mask_of
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.masks.patterns.shift import shifted
from maskloom.nn.call import AttendOptions
from maskloom.nn.packing import Packing, Tokens
from maskloom.program.program import MaskMod


class Hidden(NamedTuple):
    """Padding in the inputs.

    Attributes:
        x, context: bool (B or 1, L, 1) and (B or 1, K, 1), True = padding; None where none is known.
    """

    x: Tensor | None
    context: Tensor | None = None

    def cleaned(self, x: Tensor, context: Tensor | None, packing: Packing) -> tuple[Tensor, Tensor | None]:
        """The inputs without what lies in padding: their tokens where they are packed, else zeros there, in gradients too."""
        x = _cleaned(x, self.x, packing.queries)
        return x, None if context is None else _cleaned(context, self.context, packing.keys)


def _cleaned(x: Tensor, pads: Tensor | None, tokens: Tokens | None) -> Tensor:
    if tokens is not None:
        return tokens.taken(x)
    return x if pads is None else zeros_both_ways(x, pads)


def hidden_by_mask(
    x: Tensor, context: Tensor | None, given: BlockMask | MaskMod | Tensor | None, heads: int, options: AttendOptions
) -> Hidden:
    """What the mask is known to hide.

    Args:
        x: (B, L, d_in). context: (B, K, d_context), or None where x attends to itself.

    Raises:
        TypeError, ValueError: a mask that does not fit x and context.
    """
    batch, length, _ = x.shape
    kv_len = length if context is None else context.shape[1]
    sizes = Sizes(batch, heads, length, kv_len)
    mask = as_mask_of(given, sizes) if isinstance(given, Tensor) else given
    if options.get("q_offset") is None:
        _check_rows_fit(mask, length, kv_len)
    check_mask_fits(mask, batch, heads, length, kv_len, x.device)
    mask = mask if isinstance(given, Tensor) else moved(mask, options)
    if mask is None:
        return Hidden(None)
    mask_mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    if context is None:
        return Hidden(_pads_of("x", x, mask, lambda: known_padding(mask_mod, length, of_one_sequence=True)))
    return Hidden(
        _pads_of("x", x, mask, lambda: known_hidden_queries(mask_mod, length), "as queries"),
        _pads_of("context", context, mask, lambda: known_padding(mask_mod, kv_len), "as keys"),
    )


def moved(mask: BlockMask | MaskMod | None, options: AttendOptions) -> BlockMask | MaskMod | None:
    """The mask that `attend` uses with these options; a BlockMask has its offsets already."""
    q_offset, h_offset = options.get("q_offset"), options.get("h_offset")
    if mask is None or isinstance(mask, BlockMask) or (q_offset is None and h_offset is None):
        return mask
    return shifted(mask, q_offset=0 if q_offset is None else q_offset, h_offset=h_offset)


def _check_rows_fit(mask: BlockMask | MaskMod | None, length: int, kv_len: int) -> None:
    beyond = row_beyond(mask, length, kv_len)
    if beyond is not None:
        raise ValueError(f"{told_of(beyond)}; x has {length}. For the first positions of longer rows give q_offset=0")


def _pads_of(
    name: str,
    x: Tensor,
    mask: BlockMask | MaskMod,
    find: Callable[[], Tensor | None],
    side: str = "of one sequence",
) -> Tensor | None:
    """Where x is known to be padding: bool (B or 1, L, 1); None if unknown. x: (B, L, ...)."""
    pads = cached_with(mask, ("pads", side, x.shape[1]), find)
    if pads is None:
        return None
    if not is_one_of(pads.shape[0], 1, x.shape[0]) or pads.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} has (batch, length) = {tuple(x.shape[:2])}, and its mask knows padding for {tuple(pads.shape)}"
        )
    return pads[..., None]
