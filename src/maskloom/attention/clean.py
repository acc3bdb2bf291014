"""Padding that never leaks: what lies in padded positions replaced by zeros, on the way in and on the way back.

A hidden key has probability 0, but 0 · NaN is NaN, in the forward pass (values) and in the backward pass (queries, and the
incoming gradient, at hidden queries). So hidden keys, values and queries become 0, and so does the gradient that comes in at
hidden queries. From then on all is finite there, and 0 times it is 0: what every backend gives for hidden positions, 0
for output and gradients and -inf for the log-sum-exp, needs no filling. Each tensor is written once, in one direction:

|                       | forward              | backward             |
|-----------------------|----------------------|----------------------|
| query, key, value     | zeros at its padding | as it comes          |
| output, log-sum-exp   | as they come         | zeros at the padding |

Where gradients of hidden positions are not known to be 0, they are filled too: where a score_mod may have an infinite
derivative there and the reference runs, which multiplies 0 by it (Triton's kernel masks the product), and where no padding is
known among the queries (key_padding), so that NaN in a query that sees nothing reaches keys that nobody sees. (NaN at a
real position shows in the gradients of its batch row, those of its padding too.)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.kept import keep
from maskloom.attention.request import Attended, Request
from maskloom.masks.dense import table_sizes
from maskloom.masks.modes import inside_transform
from maskloom.masks.padding import known_hidden_queries, known_padding

_WIDE = torch.int64


class Hidden(NamedTuple):
    """Where a mask is known to hide. keys: bool (B or 1, K); queries: bool (B or 1, Q), None if it hides none."""

    keys: Tensor
    queries: Tensor | None


def known_hidden(request: Request) -> Hidden:
    """Where the request's mask hides.

    Raises:
        ValueError: no padding is known in the mask, or that of an attention of other sizes.
    """
    batch, heads, q_len, kv_len = request.sizes
    mask, device = request.mask_mod, request.device
    if mask is not None and not isinstance(request.mask, BlockMask):

        def fits() -> object:
            return table_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=device)

        keep(mask, ("fits", batch, heads, q_len, kv_len, device), fits)
    keys = None if mask is None else known_padding(mask, kv_len)
    if mask is None or keys is None:
        raise ValueError(
            "clean_padding needs a mask that says where padding is: lengths, real, padding, key_padding or documents, alone or "
            f"joined to others with &, and with no offset of positions; got {mask!r}"
        )
    queries = known_hidden_queries(mask, q_len)
    for rows, length in ((keys, kv_len), (queries, q_len)):
        if rows is not None and (rows.shape[0] not in (1, batch) or rows.shape[1] != length):
            raise ValueError(
                f"the attention has (batch, length) = {(batch, length)}, and its mask knows padding for {tuple(rows.shape)}"
            )
    return Hidden(keys, queries)


def cleaned(request: Request, hidden: Hidden, *, by_reference: bool) -> Request:
    """The request with zeros where its mask hides.

    Args:
        by_reference: whether the reference may run it.
    """
    bent = by_reference and request.score_mod is not None
    clean = zeros_both_ways if bent or hidden.queries is None else _zeros_forward
    keys = hidden.keys[:, None, :, None]
    request = request._replace(key=clean(request.key, keys), value=clean(request.value, keys))
    if hidden.queries is None:
        return request
    return request._replace(query=clean(request.query, hidden.queries[:, None, :, None]))


def stopped(attended: Attended, hidden: Hidden) -> Attended:
    """The same, but no gradient passes at hidden queries: a NaN there would reach what all queries share."""
    if hidden.queries is None:
        return attended
    rows, lse = hidden.queries[:, None], attended.lse
    return Attended(_zeros_backward(attended.out, rows[..., None]), None if lse is None else _zeros_backward(lse, rows))


def zeros_both_ways(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zeros at some positions, in the tensor and in its gradient. rows: bool, broadcasts to the tensor."""
    return _zeros_backward(_zeros_forward(tensor, rows), rows)


def _zeros_forward(tensor: Tensor, rows: Tensor) -> Tensor:
    return _zeroed(tensor, rows) if _is_transformed() else _ZerosForward.apply(tensor, rows)


def _zeros_backward(tensor: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows, tensor.detach(), tensor) if _is_transformed() else _ZerosBackward.apply(tensor, rows)


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: both want plain operations, which copy more."""
    return inside_transform() or forward_ad._current_level >= 0


class _ZerosForward(torch.autograd.Function):
    """Zeros at ``rows``, of which the gradient is known to be 0 there."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _zeroed(tensor, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return gradient, None
        return _ZerosBackward.apply(gradient, *ctx.saved_tensors), None


class _ZerosBackward(torch.autograd.Function):
    """The tensor itself, not copied, of which the gradient becomes 0 at ``rows``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return tensor.detach()  # in-place operations are noticed in it, and allowed, as in the tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return (_ZerosForward.apply(gradient, rows) if torch.is_grad_enabled() else _zeroed(gradient, rows)), None


def _zeroed(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zeros at ``rows``, chosen eight bytes at a time where the elements allow it: a GPU then needs no longer than for a copy."""
    if not _is_wide(tensor):
        return torch.where(rows, 0.0, tensor)
    return torch.where(rows, 0, tensor.view(_WIDE)).view(tensor.dtype)


def _is_wide(tensor: Tensor) -> bool:
    """Whether the elements can be viewed as words of eight bytes, and nothing but their bits counts."""
    if torch.compiler.is_compiling() or _is_transformed() or tensor.is_neg():
        return False
    many = _WIDE.itemsize // tensor.element_size()
    steps = (tensor.shape[-1], tensor.storage_offset(), *tensor.stride()[:-1])
    return tensor.stride(-1) == 1 and all(step % many == 0 for step in steps)
