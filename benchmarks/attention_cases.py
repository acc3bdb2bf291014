"""A padded batch, its true attention and its useful work: what attention benchmarks check against and divide by."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import maskloom as loom
from maskloom.masks.algebra import Mask

QUERIES = 1024
"""Queries whose scores are held at once: 1 GiB in float32 for 16 heads and 16384 keys."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Query, key, value and incoming gradient, (B, H, N, D), of which row ``b`` is real up to ``lens[b]``.

    The incoming gradient is 0 at padding: what attention gives there reaches no gradient.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor
    lens: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return [self.query, self.key, self.value]

    def real(self, tensor: Tensor) -> Tensor:
        """The real positions of (B, H, N, D), row behind row: (T, H, D)."""
        return tensor.transpose(1, 2)[_is_real(self.lens, tensor.shape[2])]


def make_batch(
    batch: int, heads: int, length: int, head_dim: int, *, real: float, device: str, dtype: torch.dtype
) -> Batch:
    """A random batch of which the share ``real``, at least a half, is real: lengths spread evenly up to the whole."""
    generator = torch.Generator(device).manual_seed(0)
    lens = (torch.linspace(2 * real - 1, 1, batch) * length).round().long().clamp(min=1).to(device)
    shape = (batch, heads, length, head_dim)
    query, key, value, grad = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(4))
    return Batch(query, key, value, grad * _is_real(lens, length)[:, None, :, None], lens)


def _is_real(lens: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lens.device) < lens[:, None]


def visible_pairs(mask: Mask, batch: Batch) -> int:
    """How many (query, key) pairs of all batch rows the mask lets through, in one head."""
    return sum(int(table.sum()) for _, table in _tables(mask, batch))


def flops(pairs: int, heads: int, head_dim: int) -> tuple[int, int]:
    """Floating-point operations of the visible pairs, forward and backward.

    Two matrix products forward, five backward (scores again, and the gradients of value, weights, query and key), each of
    a multiplication and an addition.
    """
    product = 2 * head_dim * heads * pairs
    return 2 * product, 5 * product


@functools.lru_cache(maxsize=2)  # masks that mean the same follow each other, on two shapes in turn
def truth(mask: Mask, batch: Batch) -> list[Tensor]:
    """Output and the gradients of query, key and value at real positions, (T, H, D), by the reference in float32."""
    leaves = [tensor.detach().to(torch.float32, copy=True).requires_grad_() for tensor in batch.inputs]
    out = torch.empty_like(leaves[0], requires_grad=False)
    for first, table in _tables(mask, batch):
        for row in range(len(batch.lens)):
            here = slice(row, row + 1), slice(None), slice(first, first + table.shape[2])
            query, key, value = leaves[0][here], leaves[1][here[:1]], leaves[2][here[:1]]
            part, _ = loom.reference(query, key, value, table[here[:1]])
            part.backward(batch.grad[here].float())
            out[here] = part.detach()
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [batch.real(tensor) for tensor in (out, *grads)]


def _tables(mask: Mask, batch: Batch) -> Iterator[tuple[int, Tensor]]:
    """The mask in bands of queries: the first of them, and bool (B, 1, queries, N)."""
    rows, _, length, _ = batch.query.shape
    for first in range(0, length, QUERIES):
        table = mask.dense(
            min(QUERIES, length - first), length, batch=rows, heads=1, device=batch.query.device, q_offset=first
        )
        yield first, table


def worst_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error, each over a whole tensor; infinite where something is not a number."""
    errors = [
        float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, expected, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)
