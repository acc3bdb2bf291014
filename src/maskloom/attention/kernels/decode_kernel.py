"""Attention of few queries to many keys by Triton: parts of the keys, and the sum of the parts.

The keys of one batch row and key-value head are divided among some programs, block by block in turn, so that each gets
its share of what is visible (split-KV, known as flash decoding: Dao et al., 2023). All query heads of the group go in
together, so keys and values are read once. Each program first looks at its part of the table, and then reads only from
the first to the last of its blocks that hold a visible key: an unwritten end of a cache costs nothing.

The last program of a pair to be done adds the parts, if they are few: that saves the host a launch. Of many parts a second
kernel is faster; in a compiled graph and in a CUDA graph there is no place for the count of those that are done.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from maskloom.core.cache import LRU
from maskloom.core.launches import Launches, on_device_of
from maskloom.core.torch_state import raw_stream

_KEYS = 64  # keys in a block, at most
_STAGES = 2  # blocks that are loaded ahead
_MOST_BYTES = 1 << 17  # of keys and values in flight in one program
_ON_CHIP = 227 << 10  # bytes that a multiprocessor of Hopper holds for its programs
_BYTES_BESIDE = 8 << 10  # what a program holds on the chip besides
# parts that one program adds: of 12 to 16 that took the GPU of an H200 1 to 2 us, and saved its host 10
_MOST_SUMMED = 16
_LEAST_PAIRS = 4096
_MOST_BLOCKS = 64  # blocks of one program, whose visibility it holds in registers
_LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _sum_of(  # type: ignore[no-untyped-def]
    parts, part_most, part_mass, first_part, splits, is_row, is_entry, e,
    E: tl.constexpr, ROWS: tl.constexpr, WIDE_E: tl.constexpr,  # noqa: N803 - Triton's naming
):  # fmt: skip
    """The sum of the parts of all programs of a pair: greatest scores, sums of weights, and outputs times these."""
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, WIDE_E), tl.float32)
    for part in tl.range(0, splits, loop_unroll_factor=2):
        at = first_part + part
        # ".cg": past the cache of this multiprocessor, which does not see what others write
        its_best = tl.load(part_most + at, mask=is_row, other=float("-inf"), cache_modifier=".cg")
        its_mass = tl.load(part_mass + at, mask=is_row, other=0.0, cache_modifier=".cg")
        its_sum = tl.load(parts + at[:, None] * E + e[None, :], mask=is_entry, other=0.0, cache_modifier=".cg")
        now = tl.maximum(best, its_best)
        above = tl.where(now == float("-inf"), 0.0, now)
        shrunk, its_share = tl.exp2(best - above), tl.exp2(its_best - above)
        mass = mass * shrunk + its_mass * its_share
        summed = summed * shrunk[:, None] + its_sum * its_share[:, None]
        best = now
    return best, mass, summed


@triton.jit(do_not_specialize=["heads", "kv_heads", "q_len", "kv_len", "splits", "t_by_batch"])
def _attend_part(  # type: ignore[no-untyped-def]
    query, key, value, table, out, lse, parts, arrived,
    scale, heads, kv_heads, q_len, kv_len, splits,
    q_by_batch, q_by_head, q_by_row, k_by_batch, k_by_head, k_by_row, v_by_batch, v_by_head, v_by_row,
    t_by_batch, t_by_head, t_by_row, t_by_key,
    D: tl.constexpr, E: tl.constexpr, WIDE_D: tl.constexpr, WIDE_E: tl.constexpr,  # noqa: N803 - Triton's naming
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr, WORD: tl.constexpr,  # noqa: N803
    BY_HEAD: tl.constexpr, ONE_LINE: tl.constexpr, IS_WHOLE: tl.constexpr, IS_SUMMED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    b = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(0) % kv_heads).to(tl.int64)
    split = tl.program_id(1)
    group = heads // kv_heads
    step = tl.arange(0, KEYS)

    place = tl.arange(0, BLOCKS)  # of this program's blocks
    words = (place * splits + split)[:, None] * (KEYS // WORD) + tl.arange(0, KEYS // WORD)[None, :]
    visible = tl.zeros((BLOCKS,), tl.int32)
    for row in range(q_len * group if BY_HEAD else q_len):
        line = table + b * t_by_batch + (kv_head * group + row // q_len) * t_by_head + (row % q_len) * t_by_row
        if WORD == 1:
            shown = tl.load(line + words.to(tl.int64) * t_by_key, mask=words < kv_len, other=0) != 0
        else:
            line = line.to(tl.pointer_type(tl.int64), bitcast=True)
            shown = tl.load(line + words, mask=words < kv_len // WORD, other=0) != 0
        visible = tl.maximum(visible, tl.max(shown.to(tl.int32), 1))
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
    table += b * t_by_batch
    lines = (head * t_by_head + q_idx * t_by_row)[:, None]

    best = tl.full((ROWS,), float("-inf"), tl.float32)  # the greatest score so far, in units of log2
    mass = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, WIDE_E), tl.float32)
    for block in tl.range(first, end, num_stages=STAGES):
        at = ((block * splits + split) * KEYS + step).to(tl.int64)
        is_key = at < kv_len
        if ONE_LINE:
            shown = (tl.load(table + at * t_by_key, mask=is_key, other=0) != 0)[None, :] & is_row[:, None]
        else:
            is_pair = is_row[:, None] & is_key[None, :]
            shown = tl.load(table + lines + at[None, :] * t_by_key, mask=is_pair, other=0) != 0
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
    is_last = IS_WHOLE
    if not IS_WHOLE:
        # parts, one behind the other: outputs, greatest scores, and sums of weights
        first_part = here * splits
        sizes = (tl.num_programs(0) * group * q_len).to(tl.int64) * splits
        part_most, part_mass = parts + sizes * E, parts + sizes * (E + 1)
        tl.store(parts + (first_part + split)[:, None] * E + e[None, :], summed, mask=is_entry)
        tl.store(part_most + first_part + split, best, mask=is_row)
        tl.store(part_mass + first_part + split, mass, mask=is_row)
    if IS_SUMMED:
        tl.debug_barrier()  # all threads of this program write their parts before it says that it is done
        is_last = tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == splits - 1
        if is_last:
            tl.store(arrived + tl.program_id(0), 0)  # for the next launch
            best, mass, summed = _sum_of(
                parts, part_most, part_mass, first_part, splits, is_row, is_entry, e, E, ROWS, WIDE_E
            )
    if is_last:
        summed = summed / tl.where(mass == 0.0, 1.0, mass)[:, None]
        tl.store(out + here[:, None] * E + e[None, :], summed.to(out.dtype.element_ty), mask=is_entry)
        tl.store(lse + here, best * _LN_2 + tl.log(mass), mask=is_row)


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


def decode(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float, *, in_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of few queries.

    Args:
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E), all on one GPU.
        table: bool, broadcasts to (B, H, Q, K), True = may attend.
        in_graph: True in a compiled graph: what is allocated there may be memory of a CUDA graph, also in the runs before one is
            captured, so that nothing can be kept for a later call. While one is captured, it is found here.

    Returns:
        The output (B, H, Q, E), and the log-sum-exp (B, H, Q) in float32, the natural logarithm. A query that sees
        nothing has output 0 and log-sum-exp -inf.
    """
    query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    (batch, heads, q_len, head_dim), (_, kv_heads, kv_len, value_dim) = query.shape, value.shape
    table = table.expand(batch, heads, q_len, kv_len)
    device, strides = query.device, table.stride()
    in_words = strides[3] == 1 and not (table.data_ptr() | strides[0] | strides[1] | strides[2] | kv_len) & 7
    with on_device_of(query):
        how = _launch(
            batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim, query.itemsize, device.index,
            by_head=strides[1] != 0, in_words=in_words,
            in_graph=in_graph or torch.cuda.is_current_stream_capturing(),
        )  # fmt: skip
        out = torch.empty(batch, heads, q_len, value_dim, dtype=query.dtype, device=device)
        lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=device)
        parts = arrived = lse
        if how.splits > 1:
            parts = torch.empty(how.rows * how.splits * (value_dim + 2), dtype=torch.float32, device=device)
        if how.is_summed:
            arrived = _arrived(batch * kv_heads, device)
        _attend(
            (batch * kv_heads, how.splits, 1),
            (query, key, value, table, out, lse, parts, arrived),
            (
                scale / math.log(2), heads, kv_heads, q_len, kv_len, how.splits,
                *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *strides,
            ),
            how.of_part,
        )  # fmt: skip
        if how.splits > 1 and not how.is_summed:
            _add((how.rows, 1, 1), (parts, out, lse), (how.splits,), how.of_sum)
    return out, lse


_attend, _add = Launches(_attend_part), Launches(_add_parts)
_arrivals: LRU[tuple[int, int | None], Tensor] = LRU(64)


def _arrived(pairs: int, device: torch.device) -> Tensor:
    """How many programs of each pair are done: int32, 0 for all, which the kernel leaves as it finds it.

    Launches of one stream come one after the other, so they share it. A CUDA graph may run beside others: it has none.
    """
    stream = device.index, raw_stream(device)
    known = _arrivals.get(stream)
    if known is None or known.numel() < pairs:
        known = torch.zeros(max(pairs, _LEAST_PAIRS), dtype=torch.int32, device=device)
        _arrivals.put(stream, known)
    return known


class _Launch(NamedTuple):
    """How the kernels are launched: what follows from sizes alone.

    Attributes:
        splits: programs that share the keys of a batch row and key-value head.
        rows: queries of all heads and batch rows.
        is_summed: whether the last of these programs adds their parts; else the other kernel does.
        of_part, of_sum: constants of the two kernels.
    """

    splits: int
    rows: int
    is_summed: bool
    of_part: dict[str, int]
    of_sum: dict[str, int]


@functools.lru_cache(256)  # all layers of a step share one
def _launch(
    batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, value_dim: int, itemsize: int, device: int,
    *, by_head: bool, in_words: bool, in_graph: bool,
) -> _Launch:  # fmt: skip
    """How to launch.

    Args:
        by_head: the table differs from head to head.
        in_words: lines of the table can be read eight entries at a time.
        in_graph: in a compiled graph or a CUDA graph, where no count of programs can be kept.
    """
    rows = max(16, _power_of_2(heads // kv_heads * q_len))
    wide_d, wide_e = max(16, _power_of_2(head_dim)), max(16, _power_of_2(value_dim))
    bytes_of_key = (wide_d + wide_e) * itemsize
    keys = _keys(bytes_of_key)
    blocks = _ceil(kv_len, keys)
    splits = _splits(batch * kv_heads, blocks, rows, keys * bytes_of_key, device)
    is_summed = 1 < splits <= _MOST_SUMMED and not in_graph
    of_part = {
        "D": head_dim, "E": value_dim, "WIDE_D": wide_d, "WIDE_E": wide_e, "ROWS": rows, "KEYS": keys,
        "BLOCKS": _power_of_2(_ceil(blocks, splits)), "STAGES": _STAGES,
        "WORD": 8 if in_words else 1, "BY_HEAD": by_head, "ONE_LINE": q_len == 1 and not by_head, "IS_WHOLE": splits == 1, "IS_SUMMED": is_summed, "num_warps": 2 if rows == 16 else 4,
    }  # fmt: skip
    of_sum = {"E": value_dim, "WIDE_E": _power_of_2(value_dim), "SPLITS": _power_of_2(splits), "num_warps": 2}
    return _Launch(splits, batch * heads * q_len, is_summed, of_part, of_sum)


def _keys(bytes_of_key: int) -> int:
    """The keys in a block, of so many bytes for each key and value together."""
    keys = _KEYS
    while keys > 16 and _STAGES * keys * bytes_of_key > _MOST_BYTES:
        keys //= 2
    return keys


def _splits(pairs: int, blocks: int, rows: int, bytes_of_block: int, device: int) -> int:
    """How many programs share the keys of each batch row and key-value head: as many as run at one time.

    Args:
        pairs: batch rows times key-value heads.
        blocks: of keys.
        rows: queries in one program.
        bytes_of_block: of keys and values.
    """
    # of one to eight for each multiprocessor, four were the fastest on an H200, or two where rows fill its registers
    few = rows == 16
    in_flight = (_STAGES - few) * bytes_of_block + _BYTES_BESIDE
    at_once = _multiprocessors(device) * max(1, min(4 if few else 2, _ON_CHIP // in_flight))
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
