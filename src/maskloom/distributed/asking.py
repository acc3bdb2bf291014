"""The arguments of `plan`, checked; and every scheme that they allow, weighed."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.checks import told_of
from maskloom.core import captures
from maskloom.core.checks import as_int, count, integer, is_number
from maskloom.core.words import brief
from maskloom.distributed.digest import Digest, digest_of
from maskloom.distributed.sharing.scheme import NAMES, Scheme, Sizes, StrategyName
from maskloom.distributed.sharing.schemes import refused, scheme
from maskloom.distributed.sharing.tiles import Tiles, tiles_of
from maskloom.masks.algebra import Mask, as_mask, everything
from maskloom.masks.declared import longest_row
from maskloom.masks.patterns.relative import Window
from maskloom.masks.patterns.shift import shifted
from maskloom.masks.simplify import simplify

_AS_GOOD = 1.02


class Asked(NamedTuple):
    """What `plan` was asked, checked.

    Attributes:
        mask: with its tensors on the CPU.
        ways: strategies for each dimension of the mesh, those that can be.
        refused: why others cannot, by their names.
        named: whether the user named one.
        overlap: see `plan`.
        is_window: whether the mask is a window, on every rank: others may have a function that does the same.
    """

    mask: Mask
    digest: Digest
    q_offset: int
    length: int
    heads: tuple[int, int]
    batch: int | None
    head_dim: int
    itemsize: int
    ways: tuple[tuple[StrategyName, ...], ...]
    refused: dict[str, str]
    named: bool
    overlap: bool | None
    is_window: bool


class Weighed(NamedTuple):
    """The schemes that can be, and what they were weighed by."""

    tiles: Tiles
    sizes: Sizes
    schemes: tuple[Scheme, ...]

    @property
    def best(self) -> Scheme:
        """The scheme of the least estimate. "gather" is taken for "needed" where it is as good, within 2 %: it exchanges equal parts."""
        found = min(self.schemes, key=self._seconds)
        gathers = tuple("gather" if name == "needed" else name for name in found.names)
        simple = next((one for one in self.schemes if one.names == gathers), found)
        return simple if self._seconds(simple) <= _AS_GOOD * self._seconds(found) else found

    def _seconds(self, one: Scheme) -> float:
        return one.seconds(self.tiles.unit, self.sizes)


def checked(
    mask: Any,
    length: Any,
    ranks: list[int],
    *,
    heads: Any,
    strategy: Any = "auto",
    batch: Any = None,
    q_offset: Any = None,
    head_dim: Any = 128,
    dtype: torch.dtype = torch.bfloat16,
    overlap: bool | None = None,
) -> Asked:
    """The arguments of `plan`, for a mesh of this shape. Not collective.

    Raises:
        TypeError, ValueError: see `plan`.
    """
    length = count("length", as_int(length), least=1)
    pair = _checked_heads(heads)
    ways = _checked_strategy(strategy, len(ranks))
    batch = None if batch is None else count("batch", as_int(batch), least=1, of="batch rows")
    whole = _checked_mask(mask)
    if q_offset is None:
        _check_rows_fit(whole, length)
    first = 0 if q_offset is None else integer("q_offset", as_int(q_offset), "the position of the first query")
    on_host = captures.moved(whole, lambda tensor: tensor.detach().cpu())
    if overlap not in (None, True, False):
        raise ValueError(f"overlap is True, False or None; got {brief(overlap)}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is that of query, key and value, a floating point torch.dtype; got {brief(dtype)}")
    reasons = {" × ".join(way): reason for way in ways if (reason := refused(way, ranks, pair[0])) is not None}
    possible = tuple(way for way in ways if " × ".join(way) not in reasons)
    if not possible:
        raise ValueError("; ".join(dict.fromkeys(reasons.values())))
    if overlap and not any("gather" in way for way in possible):
        raise ValueError(
            f'overlap=True is for strategy "gather", whose keys come in meanwhile; got strategy={brief(strategy)}'
        )
    placed = shifted(on_host, q_offset=first)
    return Asked(
        on_host, digest_of(placed), first, length, pair, batch,
        count("head_dim", head_dim, least=1, of="features"), dtype.itemsize, possible, reasons, strategy != "auto",
        overlap, isinstance(simplify(placed), Window),
    )  # fmt: skip


def weighed(asked: Asked, ranks: list[int]) -> Weighed:
    """The schemes, from the tiles of the mask.

    Raises:
        ValueError: B or H that do not fit the mask's tables, or have to be given; a table that is shorter than the length.
    """
    of_queries, of_keys = asked.heads
    whole = shifted(asked.mask, q_offset=asked.q_offset)
    tiles = tiles_of(whole, asked.length, math.prod(ranks), asked.batch, of_queries, is_window=asked.is_window)
    sizes = Sizes(asked.length, of_queries, of_keys, asked.head_dim, asked.itemsize, tiles.batch or 1)
    return Weighed(tiles, sizes, tuple(scheme(way, ranks, tiles, sizes) for way in asked.ways))


def _checked_mask(mask: Any) -> Mask:
    if isinstance(mask, BlockMask):
        raise TypeError("a plan builds the tables of each rank itself: give the mask that this BlockMask was built of")
    return everything if mask is None else as_mask(mask)


def _check_rows_fit(mask: Mask, length: int) -> None:
    longest = longest_row(mask)
    if longest is not None and longest.length > length:
        raise ValueError(
            f"{told_of(longest)}; length is {length}. For the first positions of longer rows give q_offset=0"
        )


def _checked_heads(heads: Any) -> tuple[int, int]:
    pair = (heads, heads) if is_number(heads) else tuple(heads) if isinstance(heads, (tuple, list)) else ()
    if len(pair) != 2 or not all(is_number(number) and as_int(number) >= 1 for number in pair):
        raise ValueError(f"heads are those of queries and of keys, (32, 8) say, or one number; got {brief(heads)}")
    of_queries, of_keys = map(as_int, pair)
    if of_queries % of_keys:
        raise ValueError(f"the query heads are a multiple of the key heads; got {of_queries} and {of_keys}")
    return of_queries, of_keys


def _checked_strategy(strategy: Any, dims: int) -> Sequence[tuple[StrategyName, ...]]:
    """The ways to consider: names for each dimension of the mesh."""
    if strategy == "auto":
        if dims == 1:
            return [(name,) for name in NAMES]
        return [way for rows in ("gather", "needed") for way in itertools.permutations(("heads", rows))]
    names = (strategy,) if isinstance(strategy, str) else tuple(strategy) if isinstance(strategy, (tuple, list)) else ()
    if len(names) != dims or any(name not in NAMES for name in names):
        raise ValueError(
            f'strategy is "auto", or one of {", ".join(NAMES)} for each of the {dims} dimensions of the mesh; '
            f"got {brief(strategy)}"
        )
    return [names]
