"""Expand a mask or a BlockMask to elements, for all queries or for some rows."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.replay.cached import replay
from maskloom.blocks.tile_states import FULL, PARTIAL, tile_states
from maskloom.core import captures
from maskloom.core.symbols import ceil_div
from maskloom.core.torch_state import can_cache, raw_stream, without_autocast
from maskloom.masks.dense import needed_sizes, table, table_sizes
from maskloom.program.elements import run_at
from maskloom.program.mask_program import MaskProgram, program_of
from maskloom.program.program import MaskMod

_ALL = slice(None)


def dense_of(block_mask: BlockMask, batch: int, heads: int, *, queries: slice = _ALL) -> Tensor:
    """The elements of a BlockMask: bool (B or 1, H or 1, Q, K).

    Args:
        batch, heads: B and H of the attention. mask_mod is evaluated for all of them, even where the tables are shared.
        queries: only these rows, ``slice(start, stop)``: bool (B or 1, H or 1, stop - start, K). Only these rows are
            ever computed.

    Raises:
        ValueError: mask_mod reads tables for another number of batch rows or heads, or ``queries`` is out of range.
    """
    q_len, kv_len = block_mask.seq_lengths
    kv_block, device = block_mask.BLOCK_SIZE[1], block_mask.kv_num_blocks.device
    batch, heads = needed_sizes(block_mask.mask_mod, q_len, kv_len, batch=batch, heads=heads, device=device)
    start, stop = _bounds(queries, q_len)
    states = _states_of_queries(block_mask, start, stop).repeat_interleave(kv_block, -1)[..., :kv_len]
    elements = table(block_mask.mask_mod, stop - start, kv_len, batch=batch, heads=heads, device=device, q_offset=start)
    return (states == FULL) | ((states == PARTIAL) & elements)


def _bounds(queries: slice, q_len: int) -> tuple[int, int]:
    start, stop = queries.start or 0, q_len if queries.stop is None else queries.stop
    if queries.step not in (None, 1) or not 0 <= start < stop <= q_len:
        raise ValueError(f"queries is slice(start, stop) with 0 <= start < stop <= {q_len}; got {queries}")
    return start, stop


def _states_of_queries(block_mask: BlockMask, start: int, stop: int) -> Tensor:
    """The states of the tiles that hold each query from ``start`` to ``stop``: (.., queries, key tiles)."""
    q_block = block_mask.BLOCK_SIZE[0]
    first = start // q_block
    states = tile_states(block_mask, slice(first, ceil_div(stop, q_block))).repeat_interleave(q_block, -2)
    return states[..., start - first * q_block : stop - first * q_block, :]


def rows_of(
    mask: BlockMask | MaskMod | Tensor,
    first: int,
    count: int,
    *,
    batch: int,
    heads: int,
    kv_len: int,
    device: torch.device,
) -> Tensor:
    """The mask of ``count`` queries that start at position ``first``: bool, broadcastable to (B, H, count, K).

    Args:
        mask: a BlockMask, a function, or a bool table for all queries that broadcasts to (B, H, Q, K).
    """
    queries = slice(first, first + count)
    if isinstance(mask, Tensor):
        return mask if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., queries, :]
    if isinstance(mask, BlockMask):
        return dense_of(mask, batch, heads, queries=queries)
    if can_cache() and batch > 0 and batch * heads * count * kv_len <= _MOST_REPLAYED and captures.is_plain(mask):
        program = program_of(mask, device)
        if program.key is not None:
            table_sizes(mask, count, kv_len, batch=batch, heads=heads, device=device, q_offset=first)
            return table_at(program, (batch, heads, count, kv_len), torch.arange(first, first + count, device=device))
    return table(mask, count, kv_len, batch=batch, heads=heads, device=device, q_offset=first)


_MOST_REPLAYED = 1 << 20  # maximum elements of a table that is computed at once, by recorded operations


def table_at(program: MaskProgram, sizes: tuple[int, int, int, int], q_idx: Tensor | None = None) -> Tensor:
    """The table of a mask at these queries: bool (B, H, Q, K). Its operations are recorded once per kind of mask and sizes.

    Recording waits for the device, once for each kind, to see which reads are views.

    Args:
        program: a MaskProgram with a key.
        q_idx: int64 (Q,); by default the queries from 0 on.
    """
    batch, heads, q_len, kv_len = sizes
    device, held = program.device, program.held
    layouts = tuple([(tensor.stride(), tensor.storage_offset()) for tensor in held])

    def compute() -> tuple[Tensor]:
        b, h, q, k = (torch.arange(size, device=device) for size in sizes)
        q = q if q_idx is None else q_idx
        indices = [b.view(-1, 1, 1, 1), h.view(-1, 1, 1), q.view(-1, 1), k]
        indices = [index.view(*(1,) * (4 - index.ndim), *index.shape) for index in indices]
        with torch.no_grad(), without_autocast(device):
            answers = run_at(program.program, indices, 4)
        if answers is None:
            raise _NotBatched
        return (answers.expand(sizes).contiguous(),)

    inputs = held if q_idx is None else [*held, q_idx]
    key = "table", program.key, sizes, layouts, raw_stream(device), q_idx is None
    try:
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            return replay(key, inputs, compute, constants=program.bare.constants, may_wait=can_cache())[0]
    except _NotBatched:
        q_offset = 0 if q_idx is None else int(q_idx[0])
        return table(program.mask, q_len, kv_len, batch=batch, heads=heads, device=device, q_offset=q_offset)


class _NotBatched(Exception):  # noqa: N818 - a signal, not an error
    """Signals an operation that only torch.vmap can batch."""
