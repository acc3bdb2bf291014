"""Attention some rows of queries at a time, so that no table of Q × K is ever whole, in the backward neither.

Each query is attended for by itself, so rows of queries can be cut apart anywhere. What a chunk makes on its way is not
saved for the backward but made again there (Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maskloom.core.torch_state import is_transformed

RowsAttention = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, ...]]
"""``(query rows, key, value, position of the first) -> tensors``, each with those queries as its dimension 2."""


def in_chunks(
    attention: RowsAttention, query: Tensor, key: Tensor, value: Tensor, *, most: int, reads: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """``attention`` of all queries, in chunks that have at most ``most`` scores each, or one query.

    In one piece where that is enough, and while torch compiles, which has ways of its own to save memory.
    Under the transforms of torch.func, and forward-mode differentiation, every chunk is kept: they allow no recomputation.

    Args:
        query, key, value: (B, H, Q, D), (B, Hkv, K, D), (B, Hkv, K, E).
        most: B × H × queries × K of one chunk.
        reads: what else ``attention`` reads, to be sure that the backward reads the same.

    Raises:
        RuntimeError: in the backward, if one of these tensors has been written to since the forward.
    """
    batch, heads, q_len, _ = query.shape
    if torch.compiler.is_compiling():
        return attention(query, key, value, 0)
    rows = max(1, most // max(1, batch * heads * key.shape[-2]))
    if rows >= q_len:
        return attention(query, key, value, 0)
    if torch.is_grad_enabled() and not is_transformed():
        attention = _recomputed(attention, reads)
    chunks = zip(query.split(rows, dim=2), range(0, q_len, rows), strict=True)
    parts = [attention(chunk, key, value, first) for chunk, first in chunks]
    return tuple(torch.cat(part, dim=2) for part in zip(*parts, strict=True))


def _recomputed(attention: RowsAttention, reads: Sequence[Tensor]) -> RowsAttention:
    """The same attention, of which the backward keeps only what goes in."""
    unwritten = Unwritten(reads)

    def unchanged(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, ...]:
        unwritten.check()  # torch looks only at query, key and value
        return attention(query, key, value, first)

    def run(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, ...]:
        guarded = _Guarded(unchanged)
        # nothing here is random, so there is no generator to rewind
        made = checkpoint(guarded, query, key, value, first, use_reentrant=False, preserve_rng_state=False)
        guarded.raise_error()
        return _Together.apply(*made)

    return run


class _Guarded:
    """A function of which an error comes out of torch's checkpoint by its end, in the forward.

    In torch 2.11 the hooks of a checkpoint that an error leaves stay in force for as long as the error is kept, in a traceback
    say, and whatever else is differentiated meanwhile goes wrong.
    """

    def __init__(self, function: RowsAttention) -> None:
        self.function = function
        self.error: Exception | None = None
        self.is_forward = True

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, ...]:
        if not self.is_forward:
            return self.function(query, key, value, first)
        try:
            return self.function(query, key, value, first)
        except Exception as error:
            self.error = error
            return (query,)

    def raise_error(self) -> None:
        """What the forward raised; from now on errors come out as they are."""
        self.is_forward = False
        error, self.error = self.error, None
        if error is not None:
            raise error


class _Together(torch.autograd.Function):
    """The same tensors, of which all get a gradient, zeros at least, if one does.

    What is computed again for the backward lives until each step of it has been taken: a step that no gradient comes to
    (the log-sum-exp's, where the loss is made of outputs only) would keep its chunk until the last.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients  # torch has put zeros where there were none


class Unwritten:
    """Tensors that the backward needs as they are now."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor for tensor in tensors if not tensor.is_inference()]  # those count no writes
        self._versions = [tensor._version for tensor in self._tensors]

    def check(self) -> None:
        """Raise a RuntimeError if one of them was written to."""
        if [tensor._version for tensor in self._tensors] != self._versions:
            raise RuntimeError(
                "a tensor of the mask or score_mod was written to after the forward, and the backward needs it as it was"
            )
