"""Exact dropout of probabilities by kernels that have none.

With p the probabilities, D the pairs that are kept and r the rate, the output is ``sum of p D v / (1 - r)``. It needs the
softmax over all pairs, and a sum over some of them. Two passes of a kernel with a log-sum-exp L give it: one over all pairs,
one in which those that are dropped have the score -inf, ``out = out_D * exp(L_D - L) / (1 - r)``. Both have gradients.
Without a log-sum-exp, one pass over each key twice gives it: once for the kept pairs, with their values, once for those that
are dropped, with 0.

Source: Srivastava et al. 2014 (dropout); Vaswani et al. 2017, as nn.MultiheadAttention drops probabilities.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maskloom.attention.merge import rows_times
from maskloom.attention.request import Attended, Dropout, Request
from maskloom.scores.base import ScoreReading
from maskloom.scores.compose import compose
from maskloom.scores.lifted import by_shape

IN_TWO_PASSES = "two passes forward and two backward: over all pairs, for the log-sum-exp, and over those that are kept"


def in_two_passes(run: Callable[[Request], Attended], request: Request) -> Attended:
    """What ``run`` gives of a request without dropout, and twice of one with it. The log-sum-exp is that of all pairs."""
    dropout = request.dropout
    if dropout is None:
        return run(request)
    whole = run(request._replace(dropout=None, wants_lse=True))
    kept = run(_of_kept(request, dropout))
    assert whole.lse is not None and kept.lse is not None
    share = _share(kept.lse, whole.lse) * dropout.factor
    out = rows_times(kept.out, share).to(kept.out.dtype)
    return Attended(out, whole.lse if request.wants_lse else None)


def _of_kept(request: Request, dropout: Dropout) -> Request:
    """Attention to the pairs that are kept."""
    score_mod, reading = dropout.score_mod, request.reading
    if request.score_mod is not None:
        score_mod = compose(request.score_mod, score_mod)
    elif request.device.type == "cpu":
        reading = ScoreReading(True, ())
    return request._replace(dropout=None, wants_lse=True, score_mod=score_mod, reading=reading)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``exp(part - whole)`` of two log-sum-exps; 0, with gradients 0, where the part has nothing."""
    empty = part == -math.inf
    return torch.exp(part.masked_fill(empty, 0.0) - whole.masked_fill(empty, 0.0)).masked_fill(empty, 0.0)


def kept_rows(dropout: Dropout, query: Tensor, kv_len: int, first: int) -> Tensor:
    """Which pairs of some rows of queries are kept: bool (B, H, Q, K).

    Args:
        query: (B, H, Q, D), the rows.
        first: the position of the first.
    """
    batch, heads, q_len, _ = query.shape
    score = torch.zeros(1, 1, 1, 1, device=query.device)
    return by_shape(dropout.score_mod, score, (batch, heads, q_len, kv_len), (0, 0, first, 0)) == 0
