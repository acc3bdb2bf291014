"""What goes into a call of the module beside tensors, and what comes out, typed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.attention.backends.base import Options, check_name
from maskloom.attention.checks import checked_scale
from maskloom.attention.dropout.options import checked_rate, checked_seed
from maskloom.scores.base import checked_score_mod


class AttendOptions(Options, total=False):
    """Options of `maskloom.attend`; ``return_aux`` is None only."""

    return_aux: None


_NAMES = tuple(AttendOptions.__annotations__)


def check_options(options: Mapping[str, Any], device: torch.device) -> None:
    """Raise a TypeError or ValueError for what `attend` would refuse whatever the tensors: a cache is not yet written to.

    That is a name that is no option, a log-sum-exp that is asked for, and what is no score_mod, scale, backend or dropout.
    """
    for name in options:
        if name not in _NAMES:
            raise TypeError(f"MultiheadFlexAttention.forward() got an unexpected keyword argument {name!r}")
    if options.get("return_aux") is not None:
        raise TypeError(
            "MultiheadFlexAttention returns out, queries and keys, and no log-sum-exp; "
            "maskloom.attend(queries, keys, values, mask, return_aux=...) does"
        )
    if options.get("score_mod") is not None:
        checked_score_mod(options["score_mod"])
    checked_scale(options.get("scale"))
    check_name(options.get("backend", "auto"))
    checked_rate(options.get("dropout", 0.0))
    if options.get("dropout_seed") is not None:
        checked_seed(1.0, options["dropout_seed"], device)


class MultiheadOutput(NamedTuple):
    """The result of `MultiheadFlexAttention`; it unpacks into ``out, queries, keys``.

    Attributes:
        out: (B, L, d_out).
        queries, keys: (B, n_heads, L, d_head) and (B, n_kv_heads, L or K, d_head), of this call, after norm and rotary;
            for `maskloom.visualize_attention_scores`.
    """

    out: Tensor
    queries: Tensor
    keys: Tensor


class MultiheadOutputWithWeights(NamedTuple):
    """The result with ``need_weights``: one field more.

    Attributes:
        out, queries, keys: as in `MultiheadOutput`.
        weights: (B, n_heads, L, K), or averaged over heads (B, L, K), as `maskloom.attention_weights` gives them.
    """

    out: Tensor
    queries: Tensor
    keys: Tensor
    weights: Tensor
