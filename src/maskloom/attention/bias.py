"""A mask and a score_mod that only adds as one float table, which torch's own attention adds to the scores."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.request import Request
from maskloom.attention.tables import kept_table, table_sizes_of, visibility
from maskloom.blocks.dense import rows_of
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod
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
    if not request.query.shape[0]:  # score_mod may read a table by the batch row, and cannot be asked without one
        return None
    nbytes = math.prod(_sizes(request)) * _dtype(request.query).itemsize
    if nbytes > MOST_BYTES:
        return f"what score_mod adds is a table of {nbytes / 2**20:.0f} MiB; it takes {MOST_BYTES / 2**20:.0f} at most"
    return None


class Bias(NamedTuple):
    """What mask and score_mod add to the scores, but for the tensors of score_mod.

    Attributes:
        sizes: B, H, Q, K of the attention.
        table: of the mask, bool (B or 1, H or 1, Q, K); None if it hides nothing.
    """

    sizes: tuple[int, int, int, int]
    table: Tensor | None

    def made(self, score_mod: ScoreMod, query: Tensor) -> Tensor:
        """What is added, -inf where the mask hides: (B or 1, H or 1, Q, K), float32 at least."""
        bias = _added(score_mod, query, self.sizes)
        if self.table is None:
            return _from_zero(bias.expand(*bias.shape[:2], *self.sizes[2:]).contiguous())
        return _from_zero(bias.masked_fill(~self.table, -math.inf))


def bias_of(request: Request) -> Bias:
    """How the float table of a request is made; it does not hold the request's mask."""
    hides = request.mask is not None and visibility(request.mask) != "everything"
    return Bias(request.sizes, _table(request, request.mask) if hides and request.mask is not None else None)


_MOST_MOVED = 4096.0


def _from_zero(bias: Tensor) -> Tensor:
    """The table, written over, with 0 for the largest of each row, which changes no softmax.

    torch's kernel keeps the log-sum-exp, and in float32 one of 600 says less than the weights. Rows of larger numbers stay: a
    score beside ``finfo.min`` is rounded away, and a row that holds nothing else gives the mean of all values.
    """
    most = bias.amax(-1, keepdim=True)
    return bias.sub_(most.masked_fill_(most.abs() > _MOST_MOVED, 0))


def _dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


def _table(request: Request, mask: BlockMask | MaskMod) -> Tensor:
    table = kept_table(request.query, request.key, mask)
    if table is not None:
        return table
    (rows, heads), (_, _, q_len, kv_len) = table_sizes_of(request.query, request.key, mask), request.sizes
    return rows_of(mask, 0, q_len, batch=rows, heads=heads, kv_len=kv_len, device=request.device)


def _sizes(request: Request) -> tuple[int, int, int, int]:
    batch, heads, q_len, kv_len = request.sizes
    assert request.score_mod is not None
    of_bias = _added(request.score_mod, request.query, (batch, heads, 1, 1)).shape
    of_mask = (1, 1) if request.mask is None else table_sizes_of(request.query, request.key, request.mask)
    return max(of_bias[0], of_mask[0]), max(of_bias[1], of_mask[1]), q_len, kv_len


def _added(score_mod: ScoreMod, query: Tensor, sizes: tuple[int, int, int, int]) -> Tensor:
    zero = query.new_zeros((), dtype=_dtype(query))
    with torch.no_grad():
        return added(score_mod, sizes, (0, 0, 0, 0), zero)
