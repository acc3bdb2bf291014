"""Attention of few queries to many keys by two Triton kernels: parts of the keys, and the sum of the parts.

The keys of one batch row and key-value head are divided among some programs, block by block in turn, so that each gets
its share of what is visible (split-KV, known as flash decoding: Dao et al., 2023). All query heads of the group go in
together, so keys and values are read once. Each program first looks at its part of the table, and then reads only from
the first to the last of its blocks that hold a visible key: an unwritten end of a cache costs nothing.
"""

import functools
import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

_KEYS = 64  # keys in a block, at most
_STAGES = 2  # blocks that are loaded ahead
_MOST_BYTES = 1 << 17  # of keys and values in flight in one program
_ON_CHIP = 227 << 10  # bytes that a multiprocessor of Hopper holds for its programs
_MOST_BLOCKS = 64  # blocks of one program, whose visibility it holds in registers
_LN_2 = tl.constexpr(math.log(2))


@triton.jit(do_not_specialize=["heads", "kv_heads", "q_len", "kv_len", "splits", "t_by_batch"])
def _attend_part(  # type: ignore[no-untyped-def]
    query, key, value, table, out, most,
    scale, heads, kv_heads, q_len, kv_len, splits,
    q_by_batch, q_by_head, q_by_row, k_by_batch, k_by_head, k_by_row, v_by_batch, v_by_head, v_by_row,
    t_by_batch, t_by_head, t_by_row, t_by_key,
    D: tl.constexpr, E: tl.constexpr, WIDE_D: tl.constexpr, WIDE_E: tl.constexpr,  # noqa: N803 - Triton's naming
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr,  # noqa: N803
    BY_HEAD: tl.constexpr, IS_WHOLE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    b = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(0) % kv_heads).to(tl.int64)
    split = tl.program_id(1)
    group = heads // kv_heads
    step = tl.arange(0, KEYS)

    place = tl.arange(0, BLOCKS)  # of this program's blocks
    keys = (place * splits + split)[:, None] * KEYS + step[None, :]
    visible = tl.zeros((BLOCKS,), tl.int32)
    for row in range(q_len * group if BY_HEAD else q_len):
        line = table + b * t_by_batch + (kv_head * group + row // q_len) * t_by_head + (row % q_len) * t_by_row
        shown = tl.load(line + keys.to(tl.int64) * t_by_key, mask=keys < kv_len, other=0)
        visible = tl.maximum(visible, tl.max((shown != 0).to(tl.int32), 1))
    first = tl.min(tl.where(visible > 0, place, BLOCKS), 0)
    end = tl.max(tl.where(visible > 0, place + 1, 0), 0)

    row = tl.arange(0, ROWS)  # all queries of the first head of the group, then those of the next
    head = kv_head * group + row // q_len
    q_idx = row % q_len
    is_row = row < group * q_len
    d, e = tl.arange(0, WIDE_D), tl.arange(0, WIDE_E)
    query += b * q_by_batch + (head * q_by_head + q_idx * q_by_row)[:, None]
    queries = tl.load(query + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0)
    key += b * k_by_batch + kv_head * k_by_head
    value += b * v_by_batch + kv_head * v_by_head
    table += b * t_by_batch + (head * t_by_head + q_idx * t_by_row)[:, None]

    best = tl.full((ROWS,), float("-inf"), tl.float32)  # the greatest score so far, in units of log2
    mass = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, WIDE_E), tl.float32)
    for block in tl.range(first, end, num_stages=STAGES):
        at = ((block * splits + split) * KEYS + step).to(tl.int64)
        is_key = at < kv_len
        shown = tl.load(table + at[None, :] * t_by_key, mask=is_row[:, None] & is_key[None, :], other=0) != 0
        keys_t = tl.load(key + at[None, :] * k_by_row + d[:, None], mask=is_key[None, :] & (d < D)[:, None], other=0.0)
        values = tl.load(
            value + at[:, None] * v_by_row + e[None, :], mask=is_key[:, None] & (e < E)[None, :], other=0.0
        )
        scores = tl.dot(queries, keys_t, input_precision="ieee") * scale
        scores = tl.where(shown, scores, float("-inf"))
        now = tl.maximum(best, tl.max(scores, 1))
        above = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(scores - above[:, None])
        shrunk = tl.exp2(best - above)
        mass = mass * shrunk + tl.sum(weights, 1)
        summed = summed * shrunk[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        best = now

    here = (b * heads + head) * q_len + q_idx
    is_entry = is_row[:, None] & (e < E)[None, :]
    if IS_WHOLE:
        summed = summed / tl.where(mass == 0.0, 1.0, mass)[:, None]
        tl.store(out + here[:, None] * E + e[None, :], summed.to(out.dtype.element_ty), mask=is_entry)
        tl.store(most + here, best * _LN_2 + tl.log(mass), mask=is_row)
    else:
        # parts, one behind the other: outputs, greatest scores, and sums of weights
        here = here * splits + split
        parts = (tl.num_programs(0) * group * q_len).to(tl.int64) * splits
        most = out + parts * E
        total = most + parts
        tl.store(out + here[:, None] * E + e[None, :], summed, mask=is_entry)
        tl.store(most + here, best, mask=is_row)
        tl.store(total + here, mass, mask=is_row)


@triton.jit(do_not_specialize=["splits"])
def _add_parts(  # type: ignore[no-untyped-def]
    parts, out, lse, splits,
    E: tl.constexpr, WIDE_E: tl.constexpr, SPLITS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    most = parts + tl.num_programs(0).to(tl.int64) * splits * E
    total = most + tl.num_programs(0).to(tl.int64) * splits
    part = row * splits + tl.arange(0, SPLITS)
    is_part = tl.arange(0, SPLITS) < splits
    e = tl.arange(0, WIDE_E)
    best = tl.load(most + part, mask=is_part, other=float("-inf"))
    mass = tl.load(total + part, mask=is_part, other=0.0)
    above = tl.max(best, 0)
    weights = tl.exp2(best - tl.where(above == float("-inf"), 0.0, above))
    whole = tl.sum(weights * mass, 0)
    each = tl.load(parts + part[:, None] * E + e[None, :], mask=is_part[:, None] & (e < E)[None, :], other=0.0)
    found = tl.sum(each * weights[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
    tl.store(out + row * E + e, found.to(out.dtype.element_ty), mask=e < E)
    tl.store(lse + row, above * _LN_2 + tl.log(whole))


def decode(query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of few queries.

    Args:
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E), all on one GPU.
        table: bool, broadcasts to (B, H, Q, K), True = may attend.

    Returns:
        The output (B, H, Q, E), and the log-sum-exp (B, H, Q) in float32, the natural logarithm. A query that sees
        nothing has output 0 and log-sum-exp -inf.
    """
    query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    (batch, heads, q_len, head_dim), (_, kv_heads, kv_len, value_dim) = query.shape, value.shape
    table = table.expand(batch, heads, q_len, kv_len)
    device = query.device
    sizes = _launch(batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim, query.itemsize, device.index)
    splits = sizes.splits
    out = torch.empty(batch, heads, q_len, value_dim, dtype=query.dtype, device=device)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=device)
    parts = out
    if splits > 1:
        parts = torch.empty(sizes.rows * splits * (value_dim + 2), dtype=torch.float32, device=device)
    with nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device_of(query):
        _attend_part[(batch * kv_heads, splits)](
            query, key, value, table, parts, lse,
            scale / math.log(2), heads, kv_heads, q_len, kv_len, splits,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *table.stride(),
            BY_HEAD=table.stride(1) != 0, IS_WHOLE=splits == 1, **sizes.of_part,
        )  # fmt: skip
        if splits > 1:
            _add_parts[(sizes.rows,)](parts, out, lse, splits, **sizes.of_sum)
    return out, lse


class _Launch(NamedTuple):
    """How the kernels are launched: what follows from sizes alone.

    Attributes:
        rows: queries of all heads and batch rows.
        of_part, of_sum: constants of the two kernels.
    """

    splits: int
    rows: int
    of_part: dict[str, int]
    of_sum: dict[str, int]


@functools.lru_cache(256)  # all layers of a step share one
def _launch(
    batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, value_dim: int, itemsize: int, device: int
) -> _Launch:  # fmt: skip
    rows = max(16, _power_of_2(heads // kv_heads * q_len))
    wide_d, wide_e = max(16, _power_of_2(head_dim)), max(16, _power_of_2(value_dim))
    bytes_of_key = (wide_d + wide_e) * itemsize
    keys = _keys(bytes_of_key)
    blocks = _ceil(kv_len, keys)
    splits = _splits(batch * kv_heads, blocks, rows, _STAGES * keys * bytes_of_key, device)
    of_part = {
        "D": head_dim, "E": value_dim, "WIDE_D": wide_d, "WIDE_E": wide_e, "ROWS": rows, "KEYS": keys,
        "BLOCKS": _power_of_2(_ceil(blocks, splits)), "STAGES": _STAGES, "num_warps": 2 if rows == 16 else 4,
    }  # fmt: skip
    of_sum = {"E": value_dim, "WIDE_E": _power_of_2(value_dim), "SPLITS": _power_of_2(splits), "num_warps": 2}
    return _Launch(splits, batch * heads * q_len, of_part, of_sum)


def _keys(bytes_of_key: int) -> int:
    """The keys in a block, of so many bytes for each key and value together."""
    keys = _KEYS
    while keys > 16 and _STAGES * keys * bytes_of_key > _MOST_BYTES:
        keys //= 2
    return keys


def _splits(pairs: int, blocks: int, rows: int, in_flight: int, device: int) -> int:
    """How many programs share the keys of each batch row and key-value head: as many as run at one time.

    Args:
        pairs: batch rows times key-value heads.
        blocks: of keys.
        rows: queries in one program.
        in_flight: bytes of keys and values in one program.
    """
    # three for each multiprocessor, or two where rows fill its registers, were the fastest on an H200
    at_once = _multiprocessors(device) * max(1, min(3 if rows == 16 else 2, _ON_CHIP // in_flight))
    return max(1, min(blocks, max(at_once // max(pairs, 1), _ceil(blocks, _MOST_BLOCKS))))


_counts: dict[int, int] = {}


def _multiprocessors(device: int) -> int:
    if device not in _counts:
        _counts[device] = torch.cuda.get_device_properties(device).multi_processor_count
    return _counts[device]


def _ceil(number: int, by: int) -> int:
    """A quotient rounded up. (Triton's cdiv takes the host 5 us.)"""
    return (number + by - 1) // by


def _power_of_2(number: int) -> int:
    """The least power of 2 that is not below a number."""
    return 1 << (number - 1).bit_length()
