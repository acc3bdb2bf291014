"""Padding that never leaks: what lies in padded positions replaced by zeros, on the way in and on the way back.

A hidden key has probability 0, but 0 · NaN is NaN, in the forward pass (values) and in the backward pass (queries, and the
incoming gradient, at hidden queries). So hidden keys and values become 0, hidden queries too, and the output is filled
with 0 at hidden queries, whose backward stops the gradient that comes in there.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.kept import keep
from maskloom.attention.request import Attended, Request
from maskloom.masks.dense import table_sizes
from maskloom.masks.padding import known_hidden_queries, known_padding


def cleaned(request: Request) -> tuple[Request, Tensor | None]:
    """The request with zeros where its mask is known to hide, and which queries it hides: bool (B or 1, Q), or None.

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
    key, value = (_zeroed(tensor, keys) for tensor in (request.key, request.value))
    query = request.query if queries is None else _zeroed(request.query, queries)
    return request._replace(query=query, key=key, value=value), queries


def hidden(attended: Attended, queries: Tensor | None) -> Attended:
    """What was attended, with output 0 and log-sum-exp -inf at hidden queries, whatever gradient comes in there."""
    if queries is None:
        return attended
    lse = attended.lse
    lse = None if lse is None else lse.masked_fill(queries[:, None], -torch.inf)
    return Attended(_zeroed(attended.out, queries), lse)


def stopped(attended: Attended, queries: Tensor | None) -> Attended:
    """The same, but no gradient passes at hidden queries: a NaN there would reach what all queries share."""
    if queries is None or attended.lse is None:
        return attended
    out, lse, rows = attended.out, attended.lse, queries[:, None]
    return Attended(torch.where(rows[..., None], out.detach(), out), torch.where(rows, lse.detach(), lse))


def _zeroed(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zeros at some positions. tensor: (B, H, L, D), rows: bool (B or 1, L)."""
    batch, _, length, _ = tensor.shape
    if rows.shape[0] not in (1, batch) or rows.shape[1] != length:
        raise ValueError(
            f"the attention has (batch, length) = {(batch, length)}, and its mask knows padding for {tuple(rows.shape)}"
        )
    return tensor.masked_fill(rows[:, None, :, None], 0.0)
