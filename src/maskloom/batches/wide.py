"""Tensors seen as wider words: a GPU moves elements of two bytes one by one no faster than words of eight or sixteen."""

import torch
from torch import Tensor

from maskloom.core.torch_state import is_transformed

EIGHT = torch.int64
SIXTEEN = torch.complex128  # its size alone counts


def fits(tensor: Tensor, word: torch.dtype) -> bool:
    """Whether ``tensor.view(word)`` is possible: then nothing but the bits of its elements counts."""
    if torch.compiler.is_compiling() or is_transformed() or has_no_memory(tensor):
        return False
    if tensor.is_neg() or tensor.is_conj():
        return False
    if not tensor.ndim or tensor.stride(-1) != 1 or word.itemsize % tensor.element_size():
        return False
    many = word.itemsize // tensor.element_size()
    steps = (tensor.shape[-1], tensor.storage_offset(), *tensor.stride()[:-1])
    for step in steps:
        if step % many:
            return False
    return tensor.data_ptr() % word.itemsize == 0  # memory of others, by DLPack say, may begin anywhere


def has_no_memory(tensor: Tensor) -> bool:
    """Whether it has no memory of its own, or torch.jit.trace follows what is done with it, or torch's older vmap."""
    plain = type(tensor) in _PLAIN and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    return not plain or torch._C._get_tracing_state() is not None


_PLAIN = (Tensor, torch.nn.Parameter)
