"""Multi-head self-attention under any mask; values in padded positions cannot affect real positions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.attend import attend
from maskloom.attention.checks import check_mask_fits, row_beyond, told_of
from maskloom.attention.zeros import zeros_backward, zeros_both_ways
from maskloom.core.cache import cached_with
from maskloom.core.checks import as_int, is_number
from maskloom.core.words import brief
from maskloom.masks.in_place import Sizes, as_mask_of
from maskloom.masks.known_padding import known_padding
from maskloom.masks.patterns.shift import shifted
from maskloom.program.program import MaskMod


class MultiheadOutput(NamedTuple):
    """The result of `MultiheadFlexAttention`; it unpacks into ``out, queries, keys``.

    Attributes:
        out: (B, L, d_out).
        queries, keys: (B, n_heads, L, d_out / n_heads), for `maskloom.visualize_attention_scores`.
    """

    out: Tensor
    queries: Tensor
    keys: Tensor


class MultiheadFlexAttention(nn.Module):
    """Multi-head self-attention: one projection to queries, keys and values, `maskloom.attend`, one projection back.

    Values in padded positions, even NaN and infinity, change no output and no gradient at real positions: where the
    mask is known to hide a key from every query (a padding mask at the top level of a conjunction), x is set to zero.
    For a BlockMask, its mask_mod defines the padding; a hand-made BlockMask must not list tiles of padding as full. An
    incoming gradient at padded outputs counts like any other, even NaN, unless ``clean_padding=True``. Attention
    returns zero for a fully masked query, so its output is the bias of ``out_proj``.

    Args:
        d_in: number of features of x.
        d_out: number of features of the output, a multiple of ``n_heads``.
        n_heads: number of heads, each ``d_out / n_heads`` wide.
        bias: whether ``in_proj`` has a bias; ``out_proj`` always has one.
        device, dtype: of the parameters.

    Raises:
        ValueError: sizes below 1, or d_out that n_heads does not divide.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        n_heads: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("d_in", d_in), ("d_out", d_out), ("n_heads", n_heads)):
            if not is_number(size) or size < 1:
                raise ValueError(f"{name} is an int, at least 1; got {brief(size)}")
        d_in, d_out, n_heads = map(as_int, (d_in, d_out, n_heads))
        if d_out % n_heads:
            raise ValueError(f"d_out is a multiple of n_heads; got d_out={d_out} and n_heads={n_heads}")
        self.d_in, self.d_out, self.n_heads = d_in, d_out, n_heads
        self.in_proj = nn.Linear(d_in, 3 * d_out, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_out, d_out, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, block_mask: BlockMask | MaskMod | Tensor | None = None, **attend_options: Any
    ) -> MultiheadOutput:
        """Attend from each position of x to the positions that the mask shows it.

        Args:
            x: (B, L, d_in).
            block_mask: a BlockMask, a Mask, a mask_mod, or None for everything, over L queries and L keys; or a table
                as in `attend`: (L, L), (B, L, L) or (B, H, L, L), True = may attend (in nn.MultiheadAttention True
                hides).
            attend_options: options of `maskloom.attend`, except return_aux. ``clean_padding=True`` sets the incoming
                gradient at padded positions to 0, whatever it was.

        Raises:
            TypeError: return_aux. ValueError: x of another width or rank; a mask for another length or batch size.
        """
        if attend_options.get("return_aux") is not None:
            raise TypeError(
                "MultiheadFlexAttention returns out, queries and keys, and no log-sum-exp; "
                "maskloom.attend(queries, keys, values, mask, return_aux=...) does"
            )
        if x.ndim != 3 or x.shape[-1] != self.d_in:
            raise ValueError(f"x has shape (batch, length, {self.d_in}); got {tuple(x.shape)}")
        batch, length, _ = x.shape
        sizes = Sizes(batch, self.n_heads, length, length)
        mask = as_mask_of(block_mask, sizes) if isinstance(block_mask, Tensor) else block_mask
        if attend_options.get("q_offset") is None:
            _check_rows_fit(mask, length)
        check_mask_fits(mask, batch, self.n_heads, length, length, x.device)
        pads = _pads_of(x, mask if isinstance(block_mask, Tensor) else _moved(mask, attend_options))
        if pads is not None:
            x = zeros_both_ways(x, pads)
        d_head = self.d_out // self.n_heads
        heads = self.in_proj(x).view(batch, length, 3, self.n_heads, d_head).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)
        attention = attend(queries, keys, values, block_mask, **attend_options)
        out = self.out_proj(attention.transpose(1, 2).reshape(batch, length, self.d_out))
        if pads is not None and attend_options.get("clean_padding"):
            out = zeros_backward(out, pads)
        return MultiheadOutput(out, queries, keys)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        bias = self.in_proj.bias is not None
        return f"d_in={self.d_in}, d_out={self.d_out}, n_heads={self.n_heads}, bias={bias}"


def _check_rows_fit(mask: BlockMask | MaskMod | None, length: int) -> None:
    beyond = row_beyond(mask, length, length)
    if beyond is not None:
        raise ValueError(f"{told_of(beyond)}; x has {length}. For the first positions of longer rows give q_offset=0")


def _moved(mask: BlockMask | MaskMod | None, options: dict[str, Any]) -> BlockMask | MaskMod | None:
    """The mask that `attend` uses with these options; a BlockMask has its offsets already."""
    q_offset, h_offset = options.get("q_offset"), options.get("h_offset")
    if mask is None or isinstance(mask, BlockMask) or (q_offset is None and h_offset is None):
        return mask
    return shifted(mask, q_offset=0 if q_offset is None else q_offset, h_offset=h_offset)


def _pads_of(x: Tensor, mask: BlockMask | MaskMod | None) -> Tensor | None:
    """Where x is known to be padding: bool (B or 1, L, 1); None if unknown. x: (B, L, d_in)."""
    if mask is None:
        return None
    mask_mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    length = x.shape[1]
    pads = cached_with(mask, ("pads", length), lambda: known_padding(mask_mod, length, of_one_sequence=True))
    if pads is None:
        return None
    if pads.shape[0] not in (1, x.shape[0]) or pads.shape[1] != x.shape[1]:
        raise ValueError(
            f"x has (batch, length) = {tuple(x.shape[:2])}, and its mask knows padding for {tuple(pads.shape)}"
        )
    return pads[..., None]
