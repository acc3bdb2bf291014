"""Tensors seen as wider words: a GPU moves elements of two bytes one by one no faster than words of eight or sixteen."""

import torch
from torch import Tensor

from maskloom.core.torch_state import is_transformed

EIGHT = torch.int64
SIXTEEN = torch.complex128  # its size alone counts


def fits(tensor: Tensor, word: torch.dtype) -> bool:
    """Whether ``tensor.view(word)`` is possible: then nothing but the bits of its elements counts."""
    if torch.compiler.is_compiling() or is_transformed() or type(tensor) not in _PLAIN:
        return False
    if tensor.is_neg() or tensor.is_conj():
        return False
    if not tensor.ndim or tensor.stride(-1) != 1 or word.itemsize % tensor.element_size():
        return False
    many = word.itemsize // tensor.element_size()
    steps = (tensor.shape[-1], tensor.storage_offset(), *tensor.stride()[:-1])
    if any(step % many for step in steps):
        return False
    return tensor.data_ptr() % word.itemsize == 0  # memory of others, by DLPack say, may begin anywhere


_PLAIN = (Tensor, torch.nn.Parameter)  # what others wrap has no memory of its own
