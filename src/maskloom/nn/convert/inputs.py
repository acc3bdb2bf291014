"""The inputs of nn.MultiheadAttention: their checks, and where their batch axis is."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskloom.core.symbols import is_one_of
from maskloom.core.torch_state import autocast_to
from maskloom.core.words import brief, what_it_is


class Layout(NamedTuple):
    """The sizes of a call, and the order of its axes.

    Attributes:
        batch, q_len, kv_len: B, L, S; B is 1 for inputs without a batch axis.
        is_batched: whether inputs have a batch axis. batch_first: whether it is their first, or there is none.
    """

    batch: int
    q_len: int
    kv_len: int
    is_batched: bool
    batch_first: bool

    def in_heads(self, projected: Tensor, heads: int) -> Tensor:
        """(B, H, L, D) of a projection."""
        split = projected.unflatten(-1, (heads, -1))
        split = split if self.is_batched else split[None]
        return split.permute(0, 2, 1, 3) if self.batch_first else split.permute(1, 2, 0, 3)

    def out_of_heads(self, attended: Tensor) -> Tensor:
        """The inverse of `in_heads`; contiguous, as torch's."""
        side_by_side = attended.permute(0, 2, 1, 3) if self.batch_first else attended.permute(2, 0, 1, 3)
        return self.unbatched(side_by_side.flatten(2))

    def unbatched(self, result: Tensor) -> Tensor:
        """Without the batch axis, where the inputs have none."""
        return result if self.is_batched else result[0]

    def of_rows(self, pads: Tensor) -> Tensor:
        """A flag for each key (B, S), in the order of the inputs and with an axis for features."""
        return self.unbatched(pads if self.batch_first else pads.T)[..., None]


def checked_layout(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Layout:
    """The layout of query, key and value.

    Raises:
        TypeError, ValueError: what are no inputs of this module.
    """
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        _check_plain(name, tensor)
    if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
        raise ValueError(
            "query, key and value all have three dimensions, or all two for one sequence without a batch axis; "
            f"got {_shapes(named)}"
        )
    _check_are_alike(named, module.out_proj.weight)
    batch_first = module.batch_first or query.ndim == 2
    for (name, tensor), width in zip(named.items(), (module.embed_dim, module.kdim, module.vdim), strict=True):
        if tensor.shape[-1] != width:
            raise ValueError(
                f"{name} has shape {_letters(query.ndim, batch_first, name, width)}; got {tuple(tensor.shape)}"
            )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"key and value have the same batch size and length; got {_shapes(named)}")
    batch_axis, axis = (0, -2) if batch_first else (1, 0)
    if query.ndim == 3 and query.shape[batch_axis] != key.shape[batch_axis]:
        order = "batch_first=True: (N, L, E)" if batch_first else "batch_first=False: (L, N, E)"
        raise ValueError(f"query, key and value have one batch size, N; with {order}; got {_shapes(named)}")
    batch = query.shape[batch_axis] if query.ndim == 3 else 1
    return Layout(batch, query.shape[axis], key.shape[axis], query.ndim == 3, batch_first)


def _check_plain(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a tensor; got {brief(tensor)}")
    if tensor.is_nested:
        raise TypeError(
            f"{name} is a nested tensor, which this module does not take: give a padded one and key_padding_mask. "
            "nn.TransformerEncoder makes nested tensors in eval: call replace_attention on the whole encoder, or make it "
            "with enable_nested_tensor=False"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} is a tensor of layout {tensor.layout}; this module takes dense ones: {name}.to_dense()"
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{name} is floating point; got {tensor.dtype}")


def _check_are_alike(named: dict[str, Tensor], weight: Tensor) -> None:
    """Raise a ValueError for inputs of other dtypes, or on other devices, than the module's parameters."""
    for name, tensor in named.items():
        if tensor.device != weight.device:
            raise ValueError(f"{name} is on {tensor.device}, and the module's parameters are on {weight.device}")
        if tensor.dtype != weight.dtype and autocast_to(tensor.device) is None:
            raise ValueError(
                f"{name} is {tensor.dtype}, and the module's parameters are {weight.dtype}: cast one of them"
            )


def _letters(ndim: int, batch_first: bool, name: str, width: int) -> str:
    length = "L" if name == "query" else "S"
    if ndim == 2:
        return f"({length}, {width})"
    return f"(N, {length}, {width})" if batch_first else f"({length}, N, {width})"


def _shapes(named: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())


def checked_padding(key_padding_mask: Tensor | None, layout: Layout, device: torch.device) -> Tensor | None:
    """key_padding_mask as (B, S).

    Raises:
        TypeError, ValueError: neither bool nor floating point, of another shape, or on another device.
    """
    if key_padding_mask is None:
        return None
    _check_mask("key_padding_mask", key_padding_mask, device, "ignored", "~is_real.bool()")
    shape = (layout.batch, layout.kv_len) if layout.is_batched else (layout.kv_len,)
    if tuple(key_padding_mask.shape) != shape:
        letters = "(N, S)" if layout.is_batched else "(S,)"
        raise ValueError(f"key_padding_mask has shape {letters} = {shape}; got {tuple(key_padding_mask.shape)}")
    return key_padding_mask if layout.is_batched else key_padding_mask[None]


def check_attn_mask(
    attn_mask: Tensor | None, layout: Layout, heads: int, is_causal: bool, device: torch.device
) -> None:
    """Raise a TypeError or ValueError for an attn_mask that is none, and for the hint is_causal without one."""
    if attn_mask is None:
        if is_causal:
            raise ValueError(
                "is_causal=True is a hint that attn_mask is the causal one, and attn_mask is None: give both, "
                "nn.Transformer.generate_square_subsequent_mask(L) say"
            )
        return
    _check_mask("attn_mask", attn_mask, device, "hidden", "~may_attend.bool()")
    lengths = layout.q_len, layout.kv_len
    if not is_one_of(tuple(attn_mask.shape), lengths, (layout.batch * heads, *lengths)):
        letters = "(N·H, L, S)" if layout.is_batched else "(H, L, S)"
        raise ValueError(
            f"attn_mask has shape (L, S) = {lengths}, or {letters} = {(layout.batch * heads, *lengths)}; "
            f"got {tuple(attn_mask.shape)}"
        )


def _check_mask(name: str, mask: object, device: torch.device, true_means: str, hint: str) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(
            f"{name} is a tensor, bool (True = {true_means}) or floating point (added to scores); got {what_it_is(mask)}. "
            f"Of a table where 1 means the opposite give {hint}"
        )
    if mask.device != device:
        raise ValueError(f"{name} is on {mask.device} and query on {device}")
