"""Few queries, many keys: a step of decoding, on a GPU."""

import functools
import importlib.util
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import HALF, Backend, Prepared
from maskloom.attention.request import Attended, Request
from maskloom.attention.tables import kept_table, table_sizes_of
from maskloom.blocks.dense import rows_of
from maskloom.core.torch_state import is_exporting
from maskloom.masks.algebra import Everything
from maskloom.program.program import MaskMod

FEW = 16
"""Queries up to which "auto" takes it."""

_MOST_ROWS = 128  # queries times query heads of a group, in one program
_MOST_DIM = 256
_DTYPES = (torch.float32, *HALF)


def has_triton() -> bool:
    """Whether Triton is installed. It is not imported for that."""
    return _HAS_TRITON


_HAS_TRITON = importlib.util.find_spec("triton") is not None


@torch.library.custom_op("maskloom::decode", mutates_args=())
def _operator(query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`decode_kernel.decode` for graphs, which do not look into it."""
    return _kernel()(query, key, value, table, scale, in_graph=True)


@_operator.register_fake
def _shapes(query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows = query.shape[:3]
    return query.new_empty(*rows, value.shape[3]), query.new_empty(rows, dtype=torch.float32)


@functools.cache
def _kernel() -> Callable[..., tuple[Tensor, Tensor]]:
    # imported here: not every torch comes with Triton
    from maskloom.attention.kernels.decode_kernel import decode

    return cast(Callable[..., tuple[Tensor, Tensor]], decode)


def is_few(query: Tensor, key: Tensor) -> bool:
    """Whether these are few queries for the kernel, by shape alone."""
    return query.shape[2] <= FEW and query.shape[1] // max(key.shape[1], 1) * query.shape[2] <= _MOST_ROWS


class Decode(Backend):
    """Triton kernels for few queries: parts of the keys, and the sum of the parts."""

    name = "decode"
    what = "Triton kernels for few queries, which share the keys among the GPU; the mask goes in as a table"
    where = f"GPUs, up to {FEW} queries without gradients"
    why = "few queries: the keys are shared among the whole GPU, and read once for all heads of a group"
    takes_tables = True
    hides_scores = True
    skipped = "the keys before the first and after the last that are visible, in blocks of 64"

    def refuse(self, request: Request) -> str | None:
        if request.device.type != "cuda":
            return f"it needs a GPU; the tensors are on {request.device}"
        if not has_triton():
            return "it needs Triton: pip install triton"
        if request.needs_gradients:
            return "it has no backward, and query, key or value requires a gradient"
        if request.score_mod is not None:
            return "it has no score_mod"
        if request.query.dtype not in _DTYPES:
            return f"it runs in float32, bfloat16 and float16; the tensors are {request.query.dtype}"
        group, q_len = request.query.shape[1] // request.key.shape[1], request.query.shape[2]
        if group * q_len > _MOST_ROWS:
            return f"it takes {_MOST_ROWS} queries, times the heads that share keys; got {q_len} times {group}"
        sizes = request.query.shape[3], request.value.shape[3]
        if max(sizes) > _MOST_DIM:
            return f"it has head dims up to {_MOST_DIM}; got {sizes[0]} and {sizes[1]}"
        return None

    def refuse_in_graph(self, request: Request) -> str | None:
        if is_exporting():
            return "an exported program holds no operator of maskloom's"
        return "a block mask stays one in a graph" if isinstance(request.mask, BlockMask) else None

    def passed_over(self) -> str:
        return f"with more than {FEW} queries kernels that skip hidden tiles are faster"

    def run(self, request: Request) -> Attended:
        query, key, value = request.query, request.key, request.value
        return self.with_table(query, key, value, _table(query, key, request.mask), request.scale)

    def prepare(self, request: Request) -> Prepared:
        table, scale = _table(request.query, request.key, request.mask), request.scale
        return Prepared(
            lambda query, key, value, score_mod: self.with_table(query, key, value, table, scale), table.nbytes
        )

    def with_table(self, query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float | None) -> Attended:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        run = _operator if torch.compiler.is_compiling() else _kernel()
        return Attended(*run(query, key, value, table, scale))


def _table(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> Tensor:
    """The mask as a table: bool, broadcasts to (B, H, Q, K)."""
    if mask is None or isinstance(mask, Everything):
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=query.device)
    table = kept_table(query, key, mask)
    if table is None:  # larger than what is kept
        batch, heads = table_sizes_of(query, key, mask)
        q_len, kv_len = query.shape[2], key.shape[2]
        table = rows_of(mask, 0, q_len, batch=batch, heads=heads, kv_len=kv_len, device=query.device)
    return table[:, :1] if table.stride(1) == 0 else table  # while torch traces, one table for all heads is expanded
