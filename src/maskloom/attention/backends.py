"""The ways to run attention, and the rule that chooses one.

| backend   | what it is                                                        | where it is chosen                      |
|-----------|-------------------------------------------------------------------|-----------------------------------------|
| triton    | FlexAttention, compiled; skips the tiles that the mask hides      | GPUs, in float32, bfloat16 and float16  |
| sdpa      | torch's scaled_dot_product_attention with the mask as a table     | the CPU, without score_mod              |
| reference | the specification, dense                                          | float64 on a GPU; score_mod on the CPU  |
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.compiled import fused_attention, shares_heads
from maskloom.attention.kept import Kept
from maskloom.attention.reference import ScoreMod, reference
from maskloom.blocks.build import block_mask as build_block_mask
from maskloom.blocks.tables import dense_of
from maskloom.masks import captured
from maskloom.masks.dense import MaskMod, dense, needed_sizes

Backend = Literal["triton", "sdpa", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST_FUSED_HEAD_DIM = 16

_kept = Kept()


@dataclass(frozen=True)
class Choice:
    """A backend and why it was chosen."""

    backend: Backend
    reason: str


def choose(query: Tensor, score_mod: ScoreMod | None, backend: Backend | Literal["auto"]) -> Choice:
    """Which backend runs, by device, dtype and score_mod.

    Raises:
        ValueError: ``backend`` is not known, or cannot do this.
    """
    on_cpu = query.device.type == "cpu"
    if backend == "auto":
        if on_cpu:
            if score_mod is None:
                return Choice("sdpa", "FlexAttention has no backward on the CPU; the mask goes in as a table")
            return Choice("reference", "score_mod on the CPU: FlexAttention has no backward there")
        if query.dtype not in _FUSED_DTYPES:
            return Choice("reference", f"the fused kernel has no {str(query.dtype).removeprefix('torch.')}")
        return Choice("triton", "FlexAttention, compiled: hidden tiles are skipped")
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(('auto', *BACKENDS))}; got {backend!r}")
    if backend == "triton" and on_cpu:
        raise ValueError("backend 'triton' needs a GPU; the tensors are on the CPU (sdpa and reference run there)")
    if backend == "triton" and query.dtype not in _FUSED_DTYPES:
        raise ValueError(f"backend 'triton' runs in float32, bfloat16 and float16; the tensors are {query.dtype}")
    if backend == "sdpa" and score_mod is not None:
        raise ValueError("backend 'sdpa' has no score_mod; 'triton' and 'reference' have")
    return Choice(backend, "asked for")


def run(
    backend: Backend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | None,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    kernel_options: dict[str, Any] | None,
) -> Tensor:
    """Attention on one backend. Arguments are checked already; see `maskloom.attend`."""
    if backend == "triton":
        blocks = _as_block_mask(query, key, mask)
        return _run_triton(query, key, value, blocks, score_mod=score_mod, scale=scale, kernel_options=kernel_options)
    table = _as_table(query, key, mask)
    if backend == "reference":
        return reference(query, key, value, table, score_mod=score_mod, scale=scale)[0]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=table, scale=scale, enable_gqa=shares_heads(query, key)
    )


def _run_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    kernel_options: dict[str, Any] | None,
) -> Tensor:
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    if head_dim < _SMALLEST_FUSED_HEAD_DIM or value_dim < _SMALLEST_FUSED_HEAD_DIM:  # zeros change no score
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (_widened(tensor) for tensor in (query, key, value))
    out = fused_attention(
        query, key, value, block_mask, score_mod=score_mod, scale=scale, kernel_options=kernel_options
    )
    return out[..., :value_dim]


def _widened(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, max(0, _SMALLEST_FUSED_HEAD_DIM - tensor.shape[-1])))


def _as_block_mask(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> BlockMask:
    from maskloom.masks.algebra import everything

    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[-2]
    device = query.device
    if isinstance(mask, BlockMask):
        _check_tables_are_shared_rightly(mask, batch, heads)
        return mask
    source = everything if mask is None else mask

    def build() -> BlockMask:
        rows, columns = needed_sizes(source, q_len, kv_len, batch=batch, heads=heads, device=device)
        return build_block_mask(source, q_len, kv_len, batch=rows, heads=columns, device=device)

    return _keep(source, ("blocks", batch, heads, q_len, kv_len, device), build)


def _as_table(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> Tensor | None:
    if mask is None:
        return None
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[-2]
    device = query.device

    def build() -> Tensor:
        if isinstance(mask, BlockMask):
            return dense_of(mask, batch, heads)
        rows, columns = needed_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=device)
        return dense(mask, q_len, kv_len, batch=rows, heads=columns, device=device)

    return _keep(mask, ("table", batch, heads, q_len, kv_len, device), build)


def _check_tables_are_shared_rightly(block_mask: BlockMask, batch: int, heads: int) -> None:
    """Refuse tables of one batch row or head that stand for all, where the mask differs between them."""

    def check() -> bool:
        q_len, kv_len = block_mask.seq_lengths
        needed = needed_sizes(
            block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=block_mask.kv_indices.device
        )
        for given, size, letter in zip(block_mask.kv_indices.shape[:2], needed, "BH", strict=True):
            if given == 1 and size > 1:
                raise ValueError(
                    f"the block mask was built with {letter}=None, and its mask differs from one to another of {size}: "
                    f"its tables hold only the first; build it with {letter}={size}, or with maskloom.block_mask"
                )
        return True

    _keep(block_mask, ("checked", batch, heads), check)


def _keep(source: Any, key: tuple[Any, ...], compute: Any) -> Any:
    if torch.compiler.is_dynamo_compiling():
        return compute()
    tensors = captured.tensors(source)
    if isinstance(source, BlockMask):
        tensors = [*captured.tensors(source.mask_mod), source.kv_num_blocks, source.kv_indices]
        tensors += [t for t in (source.full_kv_num_blocks, source.full_kv_indices) if t is not None]
    return _kept.get(source, tensors, key, compute)
