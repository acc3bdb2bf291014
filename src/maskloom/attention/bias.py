"""A mask and a score_mod that only adds as one float table, which torch's own attention adds to the scores."""

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.request import Request
from maskloom.attention.tables import kept_table, table_sizes_of, visibility
from maskloom.blocks.dense import rows_of
from maskloom.program.program import MaskMod
from maskloom.scores.lifted import added

MOST_BYTES = 2**25
"""The largest such table, in bytes: 32 MiB. It is made at every call, and two are there at one time while it is made."""


def refused_bias(request: Request) -> str | None:
    """Why there is no such table of a request with a score_mod; None where there is one."""
    reading = request.reading
    if reading is None or not reading.adds:
        return "score_mod is not known to only add to the score, by what does not depend on it"
    if reading.learned:
        return "score_mod learns, and torch's own attention is slow where its table gets a gradient"
    nbytes = math.prod(_sizes(request)) * _dtype(request).itemsize
    if nbytes > MOST_BYTES:
        return f"what score_mod adds is a table of {nbytes / 2**20:.0f} MiB; it takes {MOST_BYTES / 2**20:.0f} at most"
    return None


def bias_of(request: Request) -> Tensor:
    """What is added to the scores, -inf where the mask hides: (B or 1, H or 1, Q, K), float32 at least."""
    bias = _added(request, request.sizes)
    if request.mask is None or visibility(request.mask) == "everything":
        return _from_zero(bias.expand(*bias.shape[:2], *request.sizes[2:]).contiguous())
    return _from_zero(bias.masked_fill(~_table(request, request.mask), -math.inf))


def _from_zero(bias: Tensor) -> Tensor:
    """The table, written over, with 0 for the largest of each row, which changes no softmax.

    torch's kernel keeps the log-sum-exp, and in float32 one of 600 says less than the weights.
    """
    most = bias.amax(-1, keepdim=True)
    return bias.sub_(most.masked_fill_(most == -math.inf, 0))


def _dtype(request: Request) -> torch.dtype:
    return torch.promote_types(request.query.dtype, torch.float32)


def _table(request: Request, mask: BlockMask | MaskMod) -> Tensor:
    table = kept_table(request.query, request.key, mask)
    if table is not None:
        return table
    (rows, heads), (_, _, q_len, kv_len) = table_sizes_of(request.query, request.key, mask), request.sizes
    return rows_of(mask, 0, q_len, batch=rows, heads=heads, kv_len=kv_len, device=request.device)


def _sizes(request: Request) -> tuple[int, int, int, int]:
    batch, heads, q_len, kv_len = request.sizes
    of_bias = _added(request, (batch, heads, 1, 1)).shape
    of_mask = (1, 1) if request.mask is None else table_sizes_of(request.query, request.key, request.mask)
    return max(of_bias[0], of_mask[0]), max(of_bias[1], of_mask[1]), q_len, kv_len


def _added(request: Request, sizes: tuple[int, int, int, int]) -> Tensor:
    assert request.score_mod is not None
    zero = request.query.new_zeros((), dtype=_dtype(request))
    with torch.no_grad():
        return added(request.score_mod, sizes, (0, 0, 0, 0), zero)
