"""Masks by the position of the query or of the key alone."""

import functools
import operator
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.core.checks import count, count_by_row, flags, integer, readable
from maskloom.core.symbols import as_tensor, is_dynamic, known
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, Tabled, mask_dataclass
from maskloom.masks.lookups import at, of_row
from maskloom.masks.signed import Signed, from_zero

__all__ = ["prefix", "sinks", "key_range", "query_range", "global_tokens", "random_blocks"]


@mask_dataclass
class Prefix(Mask):
    """See `prefix`."""

    runs_in_flash = True

    n: int | Tensor
    name = "prefix"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx < of_row(self.n, b)


@mask_dataclass
class Sinks(Mask):
    """See `sinks`."""

    runs_in_flash = True

    n: int | Tensor
    name = "sinks"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx < self.n) & (kv_idx <= q_idx)


def prefix(n: int | Tensor | Sequence[int]) -> Prefix:
    """Every query sees the first ``n`` keys, also those after it. ``causal | prefix(n)`` is the prefix-LM mask.

    ::

        prefix(2)       k0 k1 k2 k3        causal | prefix(2)       k0 k1 k2 k3
                    q0   x  x                                   q0   x  x
                    q1   x  x                                   q1   x  x
                    q2   x  x                                   q2   x  x  x
                    q3   x  x                                   q3   x  x  x  x

    Source: prefix LM, Raffel et al. 2020 (T5), section 3.2.1.

    Args:
        n: number of keys in the prefix, at least 0: one int for all, or integers (B,), one for each batch row.

    Raises:
        TypeError, ValueError: not integers, not (B,), a negative number (tensors are checked on the CPU only).
    """
    return Prefix(count_by_row("n", n))


def sinks(n: int) -> Sinks:
    """A query sees the first ``n`` keys, without those after it. ``window(back=...) | sinks(n)`` is for streaming.

    ::

        sinks(2)        k0 k1 k2 k3        window(back=1) | sinks(1)   k0 k1 k2 k3
                    q0   x                                         q0   x
                    q1   x  x                                      q1   x  x
                    q2   x  x                                      q2   x  x  x
                    q3   x  x                                      q3   x     x  x

    Nothing after the query becomes visible, so a causal window stays causal with it, unlike with `prefix`.

    A rolling cache of n sinks and ``recent`` keys is ``window(back=recent - 1) | sinks(n)`` if it is cut before the
    query's own key is added (StreamingLLM's ``evict_for_space``), and ``window(back=recent) | sinks(n)`` if it is cut
    after the step (its ``kv_cache(past_key_values)``). Source: attention sinks, Xiao et al. 2023 (StreamingLLM),
    section 3.

    Args:
        n: number of sink keys, at least 0.

    Raises:
        TypeError: not an int. ValueError: negative.
    """
    return Sinks(count("n", n))


@mask_dataclass
class KeyRange(Mask):
    """See `key_range`."""

    runs_in_flash = True

    start: int | Tensor
    stop: int | Tensor
    name = "key_range"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx >= of_row(self.start, b)) & (kv_idx < of_row(self.stop, b))


@mask_dataclass
class QueryRange(Mask):
    """See `query_range`."""

    runs_in_flash = True

    start: int | Tensor
    stop: int | Tensor
    name = "query_range"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (q_idx >= of_row(self.start, b)) & (q_idx < of_row(self.stop, b))


def key_range(start: int | Tensor | Sequence[int], stop: int | Tensor | Sequence[int]) -> KeyRange:
    """Every query sees the keys from ``start`` up to, but not including, ``stop``, like Python's ``range``.

    ::

        key_range(1, 3)   k0 k1 k2 k3
                      q0      x  x
                      q1      x  x
                      q2      x  x
                      q3      x  x

    ``~key_range(i, j)`` hides these keys.

    Args:
        start, stop: positions, at least 0: one int for all, or integers (B,), one for each batch row.

    Raises:
        TypeError, ValueError: not integers, negative, a stop before its start (checked on the CPU only).
    """
    return KeyRange(*_checked_range(start, stop))


def query_range(start: int | Tensor | Sequence[int], stop: int | Tensor | Sequence[int]) -> QueryRange:
    """The queries from ``start`` up to, but not including, ``stop`` see every key; no other query sees any key.

    ::

        query_range(1, 3)   k0 k1 k2 k3
                        q0
                        q1   x  x  x  x
                        q2   x  x  x  x
                        q3

    It is ``transposed(key_range(start, stop))``; ``query_range(i, j) & key_range(m, n)`` is a rectangle.

    Args:
        start, stop: as for `key_range`.

    Raises:
        TypeError, ValueError: as for `key_range`.
    """
    return QueryRange(*_checked_range(start, stop))


def _checked_range(
    start: int | Tensor | Sequence[int], stop: int | Tensor | Sequence[int]
) -> tuple[int | Tensor, int | Tensor]:
    start, stop = count_by_row("start", start), count_by_row("stop", stop)
    starts, stops = as_tensor(start), as_tensor(stop)
    if starts.ndim and stops.ndim and starts.shape != stops.shape:
        raise ValueError(f"start has {len(starts)} batch rows and stop has {len(stops)}")
    if readable(starts) and readable(stops) and bool((stops < starts).any()):
        pairs = zip(*(ends.flatten().tolist() for ends in torch.broadcast_tensors(starts, stops)), strict=True)
        first = next(pair for pair in pairs if pair[1] < pair[0])
        raise ValueError(f"stop is not before start; got start={first[0]} and stop={first[1]}")
    return start, stop


class _Global(Mask):
    """Some positions see every key and are seen by every query."""

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self._is_global(b, q_idx) | self._is_global(b, kv_idx)

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        sides = zip((q_idx, kv_idx), signed, strict=True)
        query, key = (
            self._is_global(b, from_zero(idx)) & (idx >= 0) if negative else self._is_global(b, idx)
            for idx, negative in sides
        )
        return query | key

    @abstractmethod
    def _is_global(self, b: Tensor, idx: Tensor) -> Tensor: ...


@mask_dataclass
class FirstGlobal(_Global):
    """The first n positions are global. See `global_tokens`."""

    runs_in_flash = True

    n: int | Tensor
    name = "global_tokens"

    def _is_global(self, b: Tensor, idx: Tensor) -> Tensor:
        return idx < self.n


@mask_dataclass
class ListedGlobal(_Global):
    """Listed positions are global. See `global_tokens`.

    ``table`` has a flag for each position up to the last one, and then one False; None if a trace does not know its
    length.
    """

    positions: tuple[int | Tensor, ...]
    table: Tensor | None

    def _is_global(self, b: Tensor, idx: Tensor) -> Tensor:
        if self.table is None:
            return functools.reduce(operator.or_, [idx == position for position in self.positions])
        return self.table[idx.clamp(max=self.table.shape[0] - 1)]

    def __repr__(self) -> str:
        return f"global_tokens({list(self.positions)})"


@mask_dataclass
class MarkedGlobal(_Global):
    """Marked positions are global. See `global_tokens`."""

    runs_in_flash = True

    is_global: Tensor
    name = "global_tokens"

    def _is_global(self, b: Tensor, idx: Tensor) -> Tensor:
        return at(self.is_global, b, idx)


def global_tokens(positions: int | Sequence[int] | Tensor) -> FirstGlobal | ListedGlobal | MarkedGlobal:
    """Global positions see every key, and every query sees them. ``window_both_ways(n) | global_tokens(...)`` is Longformer's mask.

    ::

        global_tokens([1])   k0 k1 k2 k3        window_both_ways(1) | global_tokens(1)   k0 k1 k2 k3
                         q0      x                                                   q0   x  x  x  x
                         q1   x  x  x  x                                             q1   x  x  x
                         q2      x                                                   q2   x  x  x  x
                         q3      x                                                   q3   x     x  x

    Queries and keys are the same positions: a table has an entry for every query and every key. Source: Longformer,
    Beltagy et al. 2020, section 3.1 (global attention).

    Args:
        positions: an int n for the first n positions; a list of positions; or bool (L,) or (B, L), True = global.

    Raises:
        TypeError, ValueError: a negative number or position, a table that is not bool or has another shape.
    """
    if isinstance(positions, Tensor):
        return MarkedGlobal(flags("positions", positions, true_means="global", or_one_row=True))
    if not isinstance(positions, Sequence):
        return FirstGlobal(count("positions", positions))
    numbers = tuple([integer("each of positions", one, "a position") for one in positions])
    if not numbers or any(known(number < 0) for number in numbers):
        raise ValueError(f"positions lists positions, at least one, none negative; got {brief(list(positions))}")
    if any(map(is_dynamic, numbers)):
        return ListedGlobal(numbers, None)
    listed = tuple(sorted(set(numbers)))
    table = torch.zeros(listed[-1] + 2, dtype=torch.bool)
    table[list(listed)] = True
    return ListedGlobal(listed, table)


@mask_dataclass
class RandomBlocks(Tabled):
    """See `random_blocks`. ``table``: which block sees which; ``block_of``: the block of each position."""

    block_size: int
    blocks: int
    length: int
    seed: int
    table: Tensor
    block_of: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.table[self.block_of[q_idx], self.block_of[kv_idx]]

    def __repr__(self) -> str:
        drawn = f"block_size={self.block_size}, blocks={self.blocks}, length={self.length}, seed={self.seed}"
        return f"random_blocks({drawn})"


def random_blocks(*, block_size: int, blocks: int, length: int, seed: int) -> RandomBlocks:
    """Positions are in blocks of ``block_size``; each block of queries sees ``blocks`` blocks of keys, drawn at random.

    ::

        random_blocks(block_size=2, blocks=1, length=6, seed=0)   k0 k1 k2 k3 k4 k5
                                                              q0               x  x
                                                              q1               x  x
                                                              q2   x  x
                                                              q3   x  x
                                                              q4               x  x
                                                              q5               x  x

    The blocks are drawn once, when the mask is made, by a separate generator: the same seed gives the same blocks. Add
    ``window_both_ways(n) | global_tokens(n)`` for the full mask of the BigBird paper. Source: BigBird, Zaheer et al.
    2020, section 2.

    BigBird's code uses whole blocks everywhere: a band of three, the first and the last block global, and random blocks
    that are none of these. With their numbers in a table (query blocks, 3 + blocks) it is
    ``top_k_blocks(band_and_random, block_size) | global_tokens([*first_block, *last_block])``.

    Args:
        block_size: positions of a block, at least 1. The last block may be shorter.
        blocks: number of blocks of keys for each block of queries, all different; at most as many as there are.
        length: number of positions, of queries and of keys.
        seed: the seed of the draw.

    Raises:
        TypeError, ValueError: a number that is too small, more blocks than there are.
    """
    block_size, length = count("block_size", block_size, least=1), count("length", length, least=1)
    blocks, seed = count("blocks", blocks, of="blocks"), integer("seed", seed, "the seed of the draw", most=2**63 - 1)
    there = -(-length // block_size)
    if blocks > there:
        raise ValueError(f"blocks is {blocks}, and {length} positions in blocks of {block_size} make {there}")
    if torch.compiler.is_compiling():
        raise ValueError("random_blocks draws its blocks when it is made, which torch cannot trace: make it outside")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(there, there, generator=generator).argsort(-1)
    table = torch.zeros(there, there, dtype=torch.bool).scatter_(1, order[:, :blocks], True)
    return RandomBlocks(block_size, blocks, length, seed, table, torch.arange(length) // block_size)
