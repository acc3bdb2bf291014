"""`attend`: attention with a mask, right forward and backward on every device."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends import Backend, choose, refuse_shared_tables, run
from maskloom.blocks.tables import tile_counts
from maskloom.masks import captured
from maskloom.masks.algebra import as_mask
from maskloom.masks.dense import MaskMod, table_sizes
from maskloom.scores.base import ScoreMod, ScoreValue, checked_score_mod


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    backend: Backend | Literal["auto"] = "auto",
    kernel_options: dict[str, Any] | None = None,
) -> Tensor:
    """Scaled dot-product attention of the queries to the keys that the mask lets them see.

    Args:
        query: (B, H, Q, D), floating point.
        key: (B, Hkv, K, D). H is a multiple of Hkv: with fewer key-value heads, each serves H / Hkv query heads (GQA).
        value: (B, Hkv, K, E).
        mask: a BlockMask, a Mask, a mask_mod, or None for everything. From a Mask the BlockMask (on the CPU the dense
            table) is built at the first call and kept with it; in-place changes of its tensors are noticed. What a plain
            function reads may change unseen, so from one it is built at every call.
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``, as in torch's flex_attention: a plain function, or one of
            maskloom's (`alibi`, `softcap`, `relative_bias`, `compose`, `shifted_score`).
        scale: by default ``1 / sqrt(D)``.
        backend: "auto", or one of `maskloom.attention.backends.BACKENDS`.
        kernel_options: for torch's flex_attention, where that runs.

    Returns:
        (B, H, Q, E). A query that sees nothing has output 0 and gradients 0.

    Raises:
        TypeError, ValueError: tensors, mask or score_mod that do not fit each other, before anything is launched.
        FallbackError: the fused kernel would not have run.
    """
    _check_tensors(query, key, value)
    check_mask_fits(mask, query.shape[0], query.shape[1], query.shape[2], key.shape[2], query.device)
    _check_score_mod_fits(score_mod, query.shape[1], query.device)
    chosen = choose(query, score_mod, backend)
    return run(chosen.backend, query, key, value, mask, score_mod=score_mod, scale=scale, kernel_options=kernel_options)


@dataclass(frozen=True)
class Explanation:
    """What `attend` does with its arguments, and why; ``print`` it.

    Attributes:
        backend: what runs; see `maskloom.attention.backends`.
        reason: why that one.
        skipped, partial, full: tiles of the BlockMask, over batch rows and heads; None where no BlockMask was given.
    """

    backend: Backend
    reason: str
    skipped: int | None = None
    partial: int | None = None
    full: int | None = None

    def __str__(self) -> str:
        lines = [f"backend: {self.backend} ({self.reason})"]
        if self.skipped is not None:
            lines.append(f"tiles: {self.skipped} skipped, {self.partial} partial, {self.full} full")
        return "\n".join(lines)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    backend: Backend | Literal["auto"] = "auto",
    kernel_options: dict[str, Any] | None = None,
) -> Explanation:
    """What `attend` would run with these arguments, and why. Nothing is run; the arguments are checked as there."""
    _check_tensors(query, key, value)
    batch, heads, q_len, _ = query.shape
    check_mask_fits(mask, batch, heads, q_len, key.shape[2], query.device)
    _check_score_mod_fits(score_mod, heads, query.device)
    chosen = choose(query, score_mod, backend)
    if isinstance(mask, BlockMask):
        refuse_shared_tables(mask, batch, heads)
        return Explanation(chosen.backend, chosen.reason, *tile_counts(mask))
    if mask is not None:
        table_sizes(mask, q_len, key.shape[2], batch=batch, heads=heads, device=query.device)
    return Explanation(chosen.backend, chosen.reason)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a tensor (batch, heads, length, head dim); got {type(tensor).__name__}")
        if tensor.is_nested:
            raise TypeError(f"{name} is a nested tensor; pack its parts into one row, with a documents mask")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape (batch, heads, length, head dim); got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is floating point; got {tensor.dtype}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value have one dtype; got {_each(named, 'dtype')}")
    if not query.device == key.device == value.device:
        raise ValueError(f"query, key and value are on one device; got {_each(named, 'device')}")
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(f"query, key and value have one batch size; got {_each(named, 'shape')}")
    if key.shape[1] != value.shape[1] or key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value have the same heads and length; got {_each(named, 'shape')}")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key have the same head dim; got {_each(named, 'shape')}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"the query heads are a multiple of the key heads; got {_each(named, 'shape')}")
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        raise ValueError(f"there is nothing to attend to in an empty tensor; got {_each(named, 'shape')}")


def _each(named: dict[str, Tensor], what: str) -> str:
    values = {name: getattr(tensor, what) for name, tensor in named.items()}
    return ", ".join(f"{name} {tuple(value) if what == 'shape' else value}" for name, value in values.items())


def check_mask_fits(
    mask: BlockMask | MaskMod | None, batch: int, heads: int, q_len: int, kv_len: int, device: torch.device
) -> None:
    """Raise a TypeError if ``mask`` is none, a ValueError if it is a BlockMask for an attention of other sizes.

    Args:
        batch, heads, q_len, kv_len, device: B, H, Q, K of the attention, and where it runs.
    """
    if mask is None:
        return
    if not isinstance(mask, BlockMask):
        as_mask(mask)  # raises if it is none
        held = None if torch.compiler.is_dynamo_compiling() else captured.device_of(mask)
        if held not in (None, device):
            raise ValueError(f"the mask's tensors are on {held} and the attention on {device}; move them with mask.to")
        return
    if getattr(mask.mask_mod, "__name__", None) == "_sliced_mask_mod_error":
        raise ValueError("the block mask was sliced, and torch drops the mask of a sliced BlockMask; build it anew")
    if tuple(mask.seq_lengths) != (q_len, kv_len):
        raise ValueError(
            f"the block mask is for lengths (Q, K) = {tuple(mask.seq_lengths)}; the attention has {(q_len, kv_len)}"
        )
    for have, need, item in zip(mask.kv_indices.shape[:2], (batch, heads), ("batch rows", "heads"), strict=True):
        if have not in (1, need):
            raise ValueError(f"the block mask is for {have} {item}; the attention has {need} (1 would serve all)")
    if mask.kv_indices.device != device:
        raise ValueError(f"the block mask is on {mask.kv_indices.device} and the attention on {device}")


def _check_score_mod_fits(score_mod: ScoreMod | None, heads: int, device: torch.device) -> None:
    if score_mod is None:
        return
    checked_score_mod(score_mod)
    if isinstance(score_mod, ScoreValue):
        score_mod.check_heads(heads)
        held = None if torch.compiler.is_dynamo_compiling() else captured.device_of(score_mod, "score_mod")
        if held not in (None, device):
            raise ValueError(
                f"the score_mod's tensors are on {held} and the attention on {device}; move them with score_mod.to"
            )
