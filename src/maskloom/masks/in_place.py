"""A tensor in place of a mask: a table for exactly these queries and keys, as in scaled_dot_product_attention."""

import torch
from torch import Tensor

from maskloom.core.cache import keep_beside
from maskloom.core.torch_state import can_cache
from maskloom.masks.algebra import Mask
from maskloom.masks.dense_tables import Sizes as Sizes
from maskloom.masks.dense_tables import check_kind, letters_of, table_in_place
from maskloom.masks.patterns.from_tables import FromDense


def mask_of_table(table: Tensor, sizes: Sizes) -> FromDense:
    """The mask of a table (Q, K), (B, Q, K) or (B, H, Q, K), bool or additive as in `from_dense`.

    B or H of size 1 is for all. With a batch dimension, Q or K of size 1 is for all too, as torch broadcasts.

    Raises:
        TypeError: the errors of `from_dense`. ValueError: a table for other sizes, or without values.
    """
    checked = table_in_place(table, sizes)
    letters = letters_of(table.ndim)
    if checked.shape[-2:] == (1, 1):  # keeps one dimension
        checked = checked.expand(*checked.shape[:-1], sizes.kv_len)
    for_all = "bh" + ("q" if sizes.q_len != 1 else "") + ("k" if sizes.kv_len != 1 else "")
    ones = [axis for axis, size in enumerate(checked.shape) if size == 1 and letters[axis] in for_all]
    left = "".join([letter for axis, letter in enumerate(letters) if axis not in ones])
    return FromDense(checked.squeeze(ones) if ones else checked, left)


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
