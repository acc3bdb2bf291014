"""A tensor in place of a mask: a table for exactly these queries and keys, as in scaled_dot_product_attention."""

from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.core.cache import keep_beside
from maskloom.core.torch_state import can_cache
from maskloom.masks.algebra import Mask
from maskloom.masks.dense_tables import check_kind, what_may
from maskloom.masks.patterns.from_tables import FromDense

_NAME = "the mask"


class Sizes(NamedTuple):
    """The sizes that a table must have; B or H is None if any size is allowed."""

    batch: int | None
    heads: int | None
    q_len: int
    kv_len: int

    def __str__(self) -> str:
        return ", ".join(f"{letter} = {size}" for letter, size in zip("BHQK", self, strict=True) if size is not None)


def mask_of_table(table: Tensor, sizes: Sizes) -> FromDense:
    """The mask of a table (Q, K), (B, Q, K) or (B, H, Q, K), bool or additive as in `from_dense`.

    B or H of size 1 is for all. With a batch dimension, Q or K of size 1 is for all too, as torch broadcasts.

    Raises:
        TypeError: the errors of `from_dense`. ValueError: a table for other sizes, or without values.
    """
    check_kind(_NAME, table, additive=True)
    if table.device.type == "meta":
        raise ValueError("the mask is on the meta device, where there are no values")
    _check_shape(table, sizes)
    checked = what_may(_NAME, table)
    letters = _letters(table.ndim)
    if checked.shape[-2:] == (1, 1):  # keeps one dimension
        checked = checked.expand(*checked.shape[:-1], sizes.kv_len)
    for_all = "bh" + ("q" if sizes.q_len != 1 else "") + ("k" if sizes.kv_len != 1 else "")
    ones = [axis for axis, size in enumerate(checked.shape) if size == 1 and letters[axis] in for_all]
    left = "".join([letter for axis, letter in enumerate(letters) if axis not in ones])
    return FromDense(checked.squeeze(ones) if ones else checked, left)


def _letters(dimensions: int) -> str:
    return "bqk" if dimensions == 3 else "bhqk"[4 - dimensions :]


def _check_shape(table: Tensor, sizes: Sizes) -> None:
    if 2 <= table.ndim <= 4:
        needed = [sizes["bhqk".index(letter)] for letter in _letters(table.ndim)]
        broadcasts = table.ndim > 2  # (1, K) could be the padding of one batch row instead
        pairs = zip(table.shape, needed, strict=True)
        fits = [need is None or size == need or (size == 1 and broadcasts) for size, need in pairs]
        if all(fits):
            return
    raise ValueError(
        f"a tensor in place of a mask has shape (Q, K), (B, Q, K) or (B, H, Q, K), B and H of 1 for all; "
        f"here {sizes}; got {tuple(table.shape)}{_hint(tuple(table.shape), sizes)}"
    )


def _hint(shape: tuple[int, ...], sizes: Sizes) -> str:
    """A hint what a table of another shape may be, and what to write for it."""
    batch, heads, q_len, kv_len = sizes
    if len(shape) == 1 or (len(shape) == 2 and shape[1] in (q_len, kv_len) and shape[0] in (1, batch)):
        return (
            ". A flag for each position, (B, L), is padding(t), or key_padding(t) for keys alone, True = padding; or real(t), "
            "True = a real token"
        )
    if len(shape) not in (2, 3, 4):
        return ""
    if len(shape) == 3 and batch and heads and shape == (batch * heads, q_len, kv_len):
        return f". One of shape (B·H, Q, K) goes in as table.view({batch}, {heads}, {q_len}, {kv_len})"
    if len(shape) == 3 and shape == (heads, q_len, kv_len):
        return ". One table for each head goes in as table[None]"
    if shape[-2] >= q_len and shape[-1] >= kv_len and shape[-2:] != (q_len, kv_len):
        return f". Of a larger table give the rows and columns that are meant: table[..., :{q_len}, :{kv_len}], say"
    return ""


def as_mask_of(table: Tensor, sizes: Sizes) -> Mask:
    """The mask of a tensor in place of a mask; cached with the tensor, as the results from a mask are with the mask.

    An equal view (``table[..., :kv_len]`` in each layer) of the same tensor gets the same mask.

    Raises:
        TypeError, ValueError: a tensor that is not a mask, or a table for other sizes.
    """
    if torch.compiler.is_dynamo_compiling() or not can_cache():
        return mask_of_table(table, sizes)
    check_kind("the mask", table, additive=True)
    owner = table if table._base is None else table._base
    place = table.dtype, table.storage_offset(), table.shape, table.stride(), sizes
    # detached: a result that is cached with a tensor must not hold it
    return keep_beside(owner, place, lambda: mask_of_table(table.detach(), sizes))
