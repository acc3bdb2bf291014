"""torch's attention for packed sequences (FlashAttention 2), where a mask is proven to be of its kind.

`packed` looks at which masks are combined, never at values: documents given by offsets, alone or with ``causal`` or one
window. Source of the kernel: Dao, FlashAttention-2 (arXiv 2307.08691), ``torch.nn.attention.varlen``.
"""

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import HALF, Backend, nondeterministic
from maskloom.attention.derivatives import with_first_only
from maskloom.attention.request import Attended, Request
from maskloom.attention.zeros import zeros_both_ways
from maskloom.masks.algebra import And
from maskloom.masks.patterns.packed.segments import PackedDocuments
from maskloom.masks.patterns.relative import Causal, Window
from maskloom.program.program import MaskMod


class Packed(NamedTuple):
    """Documents one behind the other, and how far a query sees inside its own: keys back and ahead, -1 for all."""

    documents: PackedDocuments
    back: int
    ahead: int


def packed(mask: BlockMask | MaskMod | None) -> Packed | None:
    """What this mask is in those terms; None if it is not proven to be that.

    A BlockMask's tables may hide more than its mask says: it is never proven.
    """
    parts = mask.parts if isinstance(mask, And) else (mask,)
    documents = [part for part in parts if isinstance(part, PackedDocuments) and part.ids.ndim == 1]
    windows = [part for part in parts if isinstance(part, Window)]
    causals = [part for part in parts if isinstance(part, Causal)]
    if len(documents) != 1 or len(parts) != 1 + len(windows) + len(causals):
        return None
    ahead = min([cast(int, window.ahead) for window in windows] + [0] * len(causals), default=-1)
    return Packed(documents[0], min((cast(int, window.back) for window in windows), default=-1), ahead)


def varlen(request: Request) -> Attended:
    """Attention by ``varlen_attn``: every batch row holds the same documents; what lies behind them gives 0."""
    # imported here: it registers operators, which takes time
    from torch.nn.attention import varlen as torchs

    attention: Any = torchs.varlen_attn
    found = packed(request.mask)
    assert found is not None
    batch, _, length, _ = request.sizes
    rows = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (request.query, request.key, request.value)]
    ends = _ends(found.documents.offsets, batch, length)
    out = attention(
        *rows, ends, ends, length, length,
        scale=request.scale, window_size=(found.back, found.ahead), **_grouped(request, attention),
    )  # fmt: skip
    out = with_first_only(out, "varlen").unflatten(0, (batch, length)).transpose(1, 2)
    # what lies behind the documents was attended to as one more: the kernel leaves what belongs to none unwritten
    return Attended(zeros_both_ways(out, (found.documents.ids < 0)[:length, None]), None)


def _ends(offsets: Tensor, batch: int, length: int) -> Tensor:
    """Where each document begins in all rows together, and the end: int32 (batch · documents + 1,)."""
    starts = torch.arange(batch, device=offsets.device)[:, None] * length + offsets.long().clamp(max=length)
    return torch.nn.functional.pad(starts.flatten(), (0, 1), value=batch * length).to(torch.int32)


def _grouped(request: Request, attention: Any) -> dict[str, bool]:
    takes = "enable_gqa" in inspect.signature(attention).parameters  # 2.11 takes fewer key heads as they are
    return {"enable_gqa": True} if takes and request.query.shape[1] != request.key.shape[1] else {}


class Varlen(Backend):
    """torch's attention for packed sequences."""

    name = "varlen"
    what = "torch's FlashAttention 2 for packed documents, with causal or a window"
    where = "GPUs, half types"
    why = "packed documents: FlashAttention 2 attends inside each"
    skipped = "what documents, causal or a window hide"

    def refuse(self, request: Request) -> str | None:
        if request.device.type != "cuda":
            return f"it needs a GPU; the tensors are on {request.device}"
        found = packed(request.mask)
        if found is None:
            return "it needs a mask that is documents(offsets=...), alone or joined with causal or a window by &"
        if request.query.dtype not in HALF:
            return f"it runs in bfloat16 and float16; the tensors are {request.query.dtype}"
        head_dim, value_dim = request.query.shape[-1], request.value.shape[-1]
        if head_dim != value_dim or head_dim % 8 or head_dim > 256:
            return f"it has head dims up to 256 that are multiples of 8, the same for keys and values; got {head_dim} and {value_dim}"
        if request.query.shape[2] != request.key.shape[2]:
            return "it has as many queries as keys"
        if found.documents.ids.shape[0] < request.query.shape[2]:
            return f"the mask reads a table with {found.documents.ids.shape[0]} positions, and there are {request.query.shape[2]} queries"
        if request.score_mod is not None:
            return "it has no score_mod"
        if request.wants_lse:
            return "it gives no log-sum-exp, and so no sinks"
        return nondeterministic(request)

    def refuse_in_graph(self, request: Request) -> str | None:
        return "inside torch.compile its kernel is an operator of its own, and Triton's is part of the graph"

    def run(self, request: Request) -> Attended:
        return varlen(request)
