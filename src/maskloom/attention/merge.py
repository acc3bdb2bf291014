"""Softmax over more keys, from the results over fewer: attention in parts.

An output and the log-sum-exp of its scores say all about the keys that they were computed from. Source: online softmax
(Milakov and Gimelshein 2018), as in FlashAttention (Dao et al. 2022, section 3.1), ring attention (Liu et al. 2023) and
split-KV decoding (Flash-Decoding, Dao et al. 2023).
"""

import math
from typing import Any

import torch
from torch import Tensor

from maskloom.core.torch_state import inside_transform, is_exporting


def merge(out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to the keys of two parts together, from the attention to each part.

    ::

        whole = reference(query, key, value)
        first = reference(query, key[:, :, :n], value[:, :, :n])
        rest = reference(query, key[:, :, n:], value[:, :, n:])
        merge(*first, *rest)                                    # equals whole

    It is associative and symmetric, so any number of parts may be merged in any order. Gradients flow to all four
    tensors. Half types are computed in float32.

    Args:
        out1, out2: (B, H, Q, E), floating point.
        lse1, lse2: (B, H, Q), the natural logarithm of the sum of exp(score) over the part's keys; -inf where the query
            sees none of them (what ``out`` holds there is not read).

    Returns:
        The output (B, H, Q, E) and its log-sum-exp (B, H, Q), in the dtypes that they came in. A query that sees
        nothing in either part has output 0, log-sum-exp -inf, and gradients 0.

    Raises:
        TypeError: what is no floating point tensor, or dtypes that differ between the parts.
        ValueError: shapes that do not fit each other.

    Source: FlashAttention, Dao et al. 2022, section 3.1; ring attention, Liu et al. 2023.
    """
    _check_part("out1", out1, "lse1", lse1)
    _check_part("out2", out2, "lse2", lse2)
    for name, first, second in (("out", out1, out2), ("lse", lse1, lse2)):
        if first.shape != second.shape:
            raise ValueError(f"{name}1 and {name}2 have one shape; got {tuple(first.shape)} and {tuple(second.shape)}")
        if first.dtype != second.dtype:
            raise TypeError(f"{name}1 and {name}2 have one dtype; got {first.dtype} and {second.dtype}")
    wide = _wide(out1, lse1)
    share1, share2, lse = shares_of_both(lse1.to(wide), lse2.to(wide))
    out = rows_times(_seen(out1, lse1).to(wide), share1) + rows_times(_seen(out2, lse2).to(wide), share2)
    return out.to(out1.dtype), lse.to(lse1.dtype)


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with one more score in each row's softmax, a learned one for each head, whose weight goes nowhere.

    ``out * sigmoid(lse - sink)`` and ``logaddexp(lse, sink)``: a merge with a key whose value is 0.

    Args:
        out: (B, H, Q, E). lse: (B, H, Q), natural logarithm.
        sinks: (H,), floating point, scores as they stand in the softmax: neither scaled nor bent by a score_mod. -inf is
            no sink.

    Returns:
        Output and log-sum-exp in the dtypes that they came in. A query that sees no key has output 0 and the sink for
        log-sum-exp, and gives no gradient but that of its log-sum-exp to the sink.

    Raises:
        TypeError: sinks that are no floating point tensor. ValueError: not one for each head.

    Source: gpt-oss (OpenAI 2025), ``sinks``; softmax with a learned offset, Miller 2023, "Attention is off by one".
    """
    _check_part("out", out, "lse", lse)
    check_sinks(sinks, out.shape[1])
    wide = _wide(out, lse, sinks)
    sink = sinks.to(wide)[:, None].expand(lse.shape)
    share, _, total = shares_of_both(lse.to(wide), sink)
    return rows_times(_seen(out, lse).to(wide), share).to(out.dtype), total.to(lse.dtype)


def check_sinks(sinks: Tensor, heads: int) -> None:
    """Raise a TypeError or ValueError unless there is one floating point sink for each head."""
    if not isinstance(sinks, Tensor) or not sinks.is_floating_point():
        what = sinks.dtype if isinstance(sinks, Tensor) else type(sinks).__name__
        raise TypeError(f"sinks is a floating point tensor (H,), a score for each head; got {what}")
    if tuple(sinks.shape) != (heads,):
        raise ValueError(f"sinks has shape (H,) = ({heads},), a score for each head; got {tuple(sinks.shape)}")


def shares_of_both(lse1: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which share of the softmax each part has, and the log-sum-exp of both; one of two hidden parts has any share."""
    hidden = (lse1 == -math.inf) & (lse2 == -math.inf)
    lse1, lse2 = lse1.masked_fill(hidden, 0.0), lse2.masked_fill(hidden, 0.0)  # -inf less -inf is NaN
    lse = torch.logaddexp(lse1, lse2).masked_fill(hidden, -math.inf)
    return torch.sigmoid(lse1 - lse2), torch.sigmoid(lse2 - lse1), lse


def rows_times(out: Tensor, share: Tensor) -> Tensor:
    """``out * share[..., None]`` of (B, H, Q, E) and (B, H, Q)."""
    if torch.compiler.is_dynamo_compiling() and not (is_exporting() or inside_transform()):
        return _RowsTimes.apply(out, share)
    return out * share[..., None]


class _RowsTimes(torch.autograd.Function):
    """`rows_times`, whose gradient of the share is a sum over the features alone.

    Autograd makes a sum that keeps its dimension, and squeezes it. For lengths above 1,024 that are constants of the graph, and
    no multiples of 32, Inductor (torch 2.11) then reads the sum in rows of another length than it has written.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(out, share)
        return out * share[..., None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        out, share = ctx.saved_tensors
        return (gradient * share[..., None]).to(out.dtype), (gradient * out).sum(-1).to(share.dtype)


def _seen(out: Tensor, lse: Tensor) -> Tensor:
    """``out``, 0 where nothing is seen: a NaN there would outlive a share of 0."""
    return out.masked_fill((lse == -math.inf)[..., None], 0.0)


def _wide(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: the widest given, float32 at least."""
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    return wide


def _check_part(out_name: str, out: Tensor, lse_name: str, lse: Tensor) -> None:
    for name, tensor, letters in ((out_name, out, "B, H, Q, E"), (lse_name, lse, "B, H, Q")):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} is a floating point tensor ({letters}); got {what}")
    if out.ndim != 4 or lse.shape != out.shape[:-1]:
        raise ValueError(
            f"{out_name} has shape (B, H, Q, E) and {lse_name} (B, H, Q); got {tuple(out.shape)} and {tuple(lse.shape)}"
        )
