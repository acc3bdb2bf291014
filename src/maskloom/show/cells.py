"""The numbers of a picture of attention: one head of one batch row, for the cells that are drawn.

Only the queries that are drawn are computed, each against every key. So a picture of a long sequence costs rows × K and
not Q × K, and its probabilities are still over all keys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.written_out import attention_scores
from maskloom.attention.written_out import probabilities as softmax
from maskloom.blocks.tile_states import FULL, PARTIAL, tile_states
from maskloom.core import captures
from maskloom.core.checks import integer
from maskloom.masks.algebra import as_mask
from maskloom.masks.dense import dense, needed_sizes
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod


@dataclass(frozen=True)
class Cells:
    """One head's attention, on the CPU.

    Attributes:
        values: (rows, columns), float32 or float64; meaningless where ``hidden``.
        hidden: bool (rows, columns), True where the query may not attend to the key, by the mask or by a score of -inf.
        fully_masked: bool (rows,), True where the query may attend to no key at all, in these columns or elsewhere.
    """

    values: Tensor
    hidden: Tensor
    fully_masked: Tensor


@torch.no_grad()
def attention_cells(
    query: Tensor,
    key: Tensor,
    mask: BlockMask | MaskMod | Tensor | None,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    probabilities: bool,
    batch_idx: int,
    head_idx: int,
    rows: Sequence[int],
    columns: Sequence[int],
) -> Cells:
    """Probabilities, or scores, of one head for the queries at ``rows`` and the keys at ``columns``.

    Args:
        query: (B, H, Q, D), floating point; half precision is computed in float32.
        key: (B, Hkv, K, D) on the same device. Query head h uses key-value head ``h // (H // Hkv)``.
        mask: a BlockMask means its full tiles, and the elements of its partial tiles where mask_mod is True.
        rows, columns: positions of queries, below Q, and of keys, below K.

    Raises:
        TypeError, ValueError: tensors, indices and mask that do not fit each other.
    """
    _check_tensors(query, key)
    batch_idx = checked_index("batch_idx", batch_idx, query.shape[0], "batch rows")
    head_idx = checked_index("head_idx", head_idx, query.shape[1], "query heads")
    at = _Place(batch_idx, head_idx, torch.as_tensor(rows))
    dtype = torch.promote_types(query.dtype, torch.float32)
    key_head = head_idx // (query.shape[1] // key.shape[1])
    scores = attention_scores(
        query.detach()[batch_idx, head_idx, at.rows.to(query.device)].to(dtype)[None, None],
        key.detach()[batch_idx, key_head].to(dtype)[None, None],
        None if mask is None else _visible(query, key, mask, at),
        score_mod=None if score_mod is None else at.score_mod(score_mod),
        scale=scale,
    )
    values = softmax(scores)[0] if probabilities else scores
    hidden = scores == -math.inf
    return Cells(values[0, 0][:, columns].cpu(), hidden[0, 0][:, columns].cpu(), hidden[0, 0].all(-1).cpu())


def checked_index(name: str, index: int, size: int, items: str) -> int:
    """``index`` as an int, after a check that it is one of ``size`` items, counted from 0."""
    index = integer(name, index, f"one of {size} {items}")
    if not 0 <= index < size:
        raise ValueError(f"{name} is from 0 to {size - 1}, as there are {size} {items}; got {index}")
    return index


@dataclass(frozen=True)
class _Place:
    """The batch row, head and queries of a picture; its functions map indices that start at 0 to these."""

    batch_idx: int
    head_idx: int
    rows: Tensor

    def mask_mod(self, mask_mod: MaskMod, device: torch.device) -> MaskMod:
        rows = self.rows.to(device)

        def here(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return mask_mod(b + self.batch_idx, h + self.head_idx, rows[q_idx], kv_idx)

        return here

    def score_mod(self, score_mod: ScoreMod) -> ScoreMod:
        def here(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            rows = self.rows.to(q_idx.device)
            return score_mod(score, b + self.batch_idx, h + self.head_idx, rows[q_idx], kv_idx)

        return here


def _visible(query: Tensor, key: Tensor, mask: BlockMask | MaskMod | Tensor, at: _Place) -> Tensor:
    """Which keys the drawn queries may attend to: bool (rows, K), on query's device.

    For a BlockMask this is a part of the result of `maskloom.blocks.dense.dense_of` for all rows, heads and queries.
    """
    if isinstance(mask, Tensor):
        mask = mask_of_table(mask, Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[-2]))
    if not isinstance(mask, BlockMask):
        return _answers(query, key, as_mask(mask), at).to(query.device)
    _check_block_mask(query, key, mask)
    q_block, kv_block = mask.BLOCK_SIZE
    states = tile_states(mask)  # a table of one batch row or head is for all
    states = states[at.batch_idx % states.shape[0], at.head_idx % states.shape[1]]
    states = states[at.rows.to(states.device) // q_block].repeat_interleave(kv_block, -1)[:, : key.shape[-2]]
    answers = _answers(query, key, mask.mask_mod, at).to(states.device)
    return ((states == FULL) | ((states == PARTIAL) & answers)).to(query.device)


def _answers(query: Tensor, key: Tensor, mask_mod: MaskMod, at: _Place) -> Tensor:
    """The answers of mask_mod, computed on the device of its tensors: bool (rows, K)."""
    device = captures.device_of(mask_mod) or query.device
    (batch, heads, q_len), kv_len = query.shape[:3], key.shape[-2]
    needed_sizes(mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)  # raises if its tables do not fit
    return dense(at.mask_mod(mask_mod, device), len(at.rows), kv_len, batch=1, heads=1, device=device)[0, 0]


def _check_tensors(query: Tensor, key: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a tensor (batch, heads, length, head dim); got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape (batch, heads, length, head dim); got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is floating point; got {tensor.dtype}")
    shapes = f"query {tuple(query.shape)} and key {tuple(key.shape)}"
    if 0 in query.shape or 0 in key.shape:
        raise ValueError(f"there is nothing to draw of an empty tensor; got {shapes}")
    if query.device != key.device:
        raise ValueError(f"query and key are on one device; got {query.device} and {key.device}")
    for dim, item in ((0, "batch size"), (3, "head dim")):
        if query.shape[dim] != key.shape[dim]:
            raise ValueError(f"query and key have the same {item}; got {shapes}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"the query heads are a multiple of the key heads; got {query.shape[1]} and {key.shape[1]}")


def _check_block_mask(query: Tensor, key: Tensor, block_mask: BlockMask) -> None:
    lengths = (query.shape[-2], key.shape[-2])
    if tuple(block_mask.seq_lengths) != lengths:
        raise ValueError(
            f"the block mask is for lengths (Q, K) = {tuple(block_mask.seq_lengths)}; query and key have {lengths}"
        )
    for have, need, item in zip(block_mask.kv_indices.shape[:2], query.shape[:2], ("batch rows", "heads"), strict=True):
        if have not in (1, need):
            raise ValueError(f"the block mask has {have} {item}, and query has {need}; it needs {need}, or 1 for all")
