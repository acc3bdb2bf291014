"""The lengths Q and K of a mask that says them itself: by the tables that it reads, by its padding, or as a BlockMask."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core import captures
from maskloom.core.checks import as_int, checked_length, readable
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask
from maskloom.masks.padded import PaddingMask
from maskloom.program.mask_program import program_of


def lengths_of(mask: BlockMask | Mask | Tensor, q_len: int | None, kv_len: int | None) -> tuple[int, int]:
    """Q and K of a picture: those given, else those of the mask itself. One given length is for both sides.

    Raises:
        ValueError: a length below 1, one that is not the block mask's, or none at all.
    """
    for name, length in (("q_len", q_len), ("kv_len", kv_len)):
        if length is not None:
            checked_length(name, as_int(length))
    if isinstance(mask, BlockMask):
        return _of_block_mask(mask, q_len, kv_len)
    own_q, own_kv = own_lengths(mask)
    queries = next((as_int(length) for length in (q_len, own_q, kv_len, own_kv) if length is not None), None)
    if queries is None:
        raise ValueError(
            f"{brief(mask)} has no length of its own: give q_len, and kv_len if there are more keys or fewer"
        )
    if kv_len is None:  # a given q_len is for both sides, unless the mask says that they differ
        kv_len = queries if own_kv is None or (q_len is not None and own_q in (None, own_kv)) else own_kv
    return queries, as_int(kv_len)


def _of_block_mask(mask: BlockMask, q_len: int | None, kv_len: int | None) -> tuple[int, int]:
    own = tuple(map(int, mask.seq_lengths))
    for name, given, length in (("q_len", q_len, own[0]), ("kv_len", kv_len, own[1])):
        if given is not None and given != length:
            raise ValueError(f"{name} is that of the block mask, {length}, or left out; got {given}")
    return own[0], own[1]


def own_lengths(mask: Mask | Tensor) -> tuple[int | None, int | None]:
    """Q and K as the mask itself says them; None where it does not."""
    if isinstance(mask, Tensor):
        q_len, kv_len = mask.shape[-2:] if mask.ndim >= 2 else (None, None)
        return q_len, kv_len
    sizes = program_of(mask, captures.device_of(mask) or torch.device("cpu")).dependence.sizes
    ends = [end for leaf in _leaves(mask) if (end := _end_of(leaf)) is not None]
    longest = max(ends, default=0) or None
    return min(sizes["q_idx"], default=longest), min(sizes["kv_idx"], default=longest)


def _end_of(leaf: Mask) -> int | None:
    """The position after the last real one, if a mask of padding says it, and the host may read it."""
    if not isinstance(leaf, PaddingMask) or not all(readable(tensor) for tensor in captures.tensors(leaf)):
        return None
    ends = leaf.row_ends()
    return int(ends.max()) if ends is not None and ends.numel() else None


def _leaves(held: object) -> Iterator[Mask]:
    """A mask, and all masks inside it."""
    if isinstance(held, tuple):
        for item in held:
            yield from _leaves(item)
    elif isinstance(held, Mask):
        yield held
        for name in getattr(held, "__dataclass_fields__", ()):
            yield from _leaves(getattr(held, name))
