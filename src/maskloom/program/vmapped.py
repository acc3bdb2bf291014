"""Masks under torch.vmap, whose tensors hold many examples: how to get one example of such a mask."""

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch

from maskloom.core import captures
from maskloom.core.checks import check_has_values
from maskloom.core.torch_state import inside_transform

M = TypeVar("M")


def one_example(mask_mod: M) -> M:
    """The mask with plain tensors, those of the first example. Operations and sizes are the same for all."""
    return captures.moved(mask_mod, _plain) if inside_transform() else mask_mod


def example_of(mask_mod: M) -> tuple[M, bool]:
    """`one_example` of a mask, and whether it `is_mapped`."""
    if not inside_transform():
        return mask_mod, False
    held = captures.tensors(mask_mod)
    return captures.moved(mask_mod, _plain), any(map(_is_mapped, held))


def is_mapped(held: Any) -> bool:
    """Whether torch.vmap maps over a tensor in it, so that the tensor's values differ between examples."""
    return inside_transform() and any(map(_is_mapped, captures.tensors(held)))


def greatest(table: Tensor, otherwise: str) -> int:
    """The largest entry, or 0; reading it waits for a GPU. ``otherwise`` is the argument that avoids it."""
    if is_mapped(table):
        raise ValueError(f"torch.vmap maps over this table, and nothing can be read from it: give {otherwise}")
    if table.is_meta:
        check_has_values("the table", table, f": give {otherwise}")
    return int(table.max()) if table.numel() else 0


def _is_mapped(tensor: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def _plain(tensor: Tensor) -> Tensor:
    axes = []  # batch axes, of the innermost vmap first
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            axes.append(_functorch.maybe_get_bdim(tensor))
        tensor = _functorch.get_unwrapped(tensor)
    with torch._C._DisableFuncTorch():
        for axis in reversed(axes):
            tensor = tensor.select(axis, 0)
    return tensor
