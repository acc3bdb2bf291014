"""The ways to run attention, and the rule that chooses one.

| backend   | what it is                                                        | where it is chosen                      |
|-----------|-------------------------------------------------------------------|-----------------------------------------|
| triton    | FlexAttention, compiled; skips the tiles that the mask hides      | GPUs, in float32, bfloat16 and float16  |
| sdpa      | torch's scaled_dot_product_attention with the mask as a table     | the CPU, without score_mod              |
| reference | the specification, dense                                          | float64 on a GPU; score_mod on the CPU  |
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.attention.compiled import fused_attention
from maskloom.attention.kept import keep
from maskloom.attention.reference import ScoreMod, reference
from maskloom.attention.sdpa import kept_table, sdpa
from maskloom.blocks.build import block_mask as build_block_mask
from maskloom.blocks.tables import PARTIAL, tile_states
from maskloom.masks.algebra import everything
from maskloom.masks.dense import MaskMod, needed_sizes

Backend = Literal["triton", "sdpa", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST_FUSED_HEAD_DIM = 16


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
    if isinstance(mask, BlockMask):
        refuse_shared_tables(mask, query.shape[0], query.shape[1])
    if backend == "triton":
        blocks = _as_block_mask(query, key, mask)
        return _run_triton(query, key, value, blocks, score_mod=score_mod, scale=scale, kernel_options=kernel_options)
    if backend == "reference":
        table = kept_table(query, key, mask)
        return reference(query, key, value, mask if table is None else table, score_mod=score_mod, scale=scale)[0]
    return sdpa(query, key, value, mask, scale=scale)


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
    narrow = head_dim < _SMALLEST_FUSED_HEAD_DIM or value_dim < _SMALLEST_FUSED_HEAD_DIM
    if narrow:  # the zeros that widen it change no score
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (_widened(tensor) for tensor in (query, key, value))
    out = fused_attention(
        query, key, value, block_mask, score_mod=score_mod, scale=scale, kernel_options=kernel_options
    )
    return out[..., :value_dim] if narrow else out


def _widened(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, max(0, _SMALLEST_FUSED_HEAD_DIM - tensor.shape[-1])))


def _as_block_mask(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | None) -> BlockMask:
    """The BlockMask that the fused kernel gets: the given one, or one built from a mask and kept with it."""
    if isinstance(mask, BlockMask):
        return mask
    source = everything if mask is None else mask
    batch, heads, q_len, _ = query.shape
    kv_len, device = key.shape[-2], query.device

    def build() -> BlockMask:
        rows, columns = needed_sizes(source, q_len, kv_len, batch=batch, heads=heads, device=device)
        return build_block_mask(source, q_len, kv_len, batch=rows, heads=columns, device=device)

    def tables() -> BlockMask:  # without the mask: what is kept with it must not hold it
        return _with_mask(build(), noop_mask)

    if torch.compiler.is_dynamo_compiling():
        return build()
    return _with_mask(keep(source, ("blocks", batch, heads, q_len, kv_len, device), tables), source)


def refuse_shared_tables(block_mask: BlockMask, batch: int, heads: int) -> None:
    """Refuse the tables of batch row 0, or head 0, that stand for all where the mask's differ (attention-gym#98).

    A hand-made BlockMask may share tables that are not those of row 0: that is its own affair.

    Raises:
        ValueError: the tables are such ones.
    """
    given = block_mask.kv_indices.shape[:2]
    if torch.compiler.is_dynamo_compiling() or tuple(given) == (batch, heads):
        return

    def check() -> bool:
        q_len, kv_len = block_mask.seq_lengths
        device = block_mask.kv_indices.device
        needed = needed_sizes(block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
        for axis, letter in enumerate("BH"):
            if given[axis] == 1 and needed[axis] > 1 and _stands_for_others(block_mask, needed, axis):
                raise ValueError(
                    f"the block mask was built with {letter}=None, and its mask differs from one to another of "
                    f"{needed[axis]}: its tables hold only the first; build it with {letter}={needed[axis]}, "
                    "or with maskloom.block_mask"
                )
        return True

    keep(block_mask, ("checked", batch, heads), check, functions_too=True)  # looked at once is enough for a warning


def _stands_for_others(block_mask: BlockMask, needed: tuple[int, int], axis: int) -> bool:
    """Whether its tables are those of the first of ``needed[axis]``, and others need others."""
    q_len, kv_len = block_mask.seq_lengths
    batch, heads = needed
    all_tables = build_block_mask(
        block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads,
        device=block_mask.kv_indices.device, block_size=block_mask.BLOCK_SIZE,
    )  # fmt: skip
    right, given = tile_states(all_tables), tile_states(block_mask)
    first = right.narrow(axis, 0, 1)
    return bool(((given == first) | (given == first.clamp(max=PARTIAL))).all()) and not bool((right == first).all())


def _with_mask(block_mask: BlockMask, mask: MaskMod) -> BlockMask:
    copied = copy.copy(block_mask)
    copied.mask_mod = mask
    return copied
