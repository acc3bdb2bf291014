"""Block masks while torch.compile or torch.export traces, where no program can be recorded."""

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.grid import Wanted
from maskloom.blocks.index_tables import tables_in_graph
from maskloom.core.block_masks import rebuilt
from maskloom.core.symbols import ceil_div, is_dynamic
from maskloom.core.torch_state import is_exporting
from maskloom.core.values import holds_function
from maskloom.masks.dense import GIVE_SIZES
from maskloom.program.answers import ask
from maskloom.program.dependence import Dependence
from maskloom.program.program import MaskMod
from maskloom.program.under_compile import sizes_read

if TYPE_CHECKING:
    from maskloom.masks.ranges import Places, Shown

TORCH_TAKES = frozenset(inspect.signature(flex.create_block_mask).parameters)
"""The parameters of this torch's ``create_block_mask``."""


def traced(
    mask: MaskMod, wanted: Wanted, device: torch.device | str | None, *, fewest: bool = False, **options: Any
) -> BlockMask:
    """By the ranges of keys that queries see, where the mask's class says them; else by all pairs.

    Args:
        fewest: one table for all batch rows, or heads, where the mask is seen to be the same for them.
        options: of torch's ``create_block_mask``. Those that this torch does not have are left out.
    """
    q_len, kv_len, batch, heads, block, *_ = wanted
    if is_exporting() and (is_dynamic(q_len) or is_dynamic(kv_len)):
        raise ValueError("torch.export builds no block mask of lengths that are dynamic: give attend the mask itself")
    if batch is None or heads is None:
        raise ValueError(GIVE_SIZES)
    sizes = sizes_read(mask, "cpu")
    batch, heads = Dependence.on_all(sizes).sizes_for(batch, heads, q_len, kv_len)
    if device is None:
        raise ValueError(
            "while torch.compile or torch.export traces, give the device of the block mask, or build it outside"
        )
    if options.get("compute_dq_write_order"):
        return _by_torch(mask, (batch, heads), wanted, device, options)
    shown = _of_ranges(mask, batch, q_len, kv_len, block, device)
    if shown is None:
        shown = _counted(mask, (batch, heads), wanted, device)
    if fewest:
        batch, heads = shown.sizes
    named: dict[str, Any] = tables_in_graph(
        *shown, batch, heads, separate_full_blocks=options.get("separate_full_blocks", True)
    )
    return BlockMask((q_len, kv_len), **named, BLOCK_SIZE=block, mask_mod=mask)


def _by_torch(
    mask: MaskMod, sizes: tuple[int, int], wanted: Wanted, device: torch.device | str, options: dict[str, Any]
) -> BlockMask:
    """torch's own BlockMask, with its order of writes."""
    known = {name: value for name, value in options.items() if name in TORCH_TAKES}
    made = flex.create_block_mask(
        _as_function(mask), *sizes, wanted.q_len, wanted.kv_len, device, wanted.block, **known
    )
    return rebuilt(made, mask_mod=mask)


def _as_function(mask: MaskMod) -> MaskMod:
    """A mask for functions of torch's: they ask for its signature, which asks for its id, and would tie the graph to this object."""

    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return mask(b, h, q_idx, kv_idx)

    return mod


class _Weighed(NamedTuple):
    """How much tiles show.

    Attributes:
        tiles: int32 (B or 1, H or 1, query tiles, key tiles); 0 where a tile shows no pair, ``whole`` where it shows all.
        most: what tiles weigh at most, likewise; None where that is said by the others.

    They are sums of tiles, and nothing that is computed from these: of a kernel with such a sum and what follows from it,
    Inductor (2.11) fails to compare the sizes where these are symbols with a number added, as ``length // 128 + 1`` is.
    """

    tiles: Tensor
    whole: int
    most: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """The B and H that they say something for."""
        given = self.tiles if self.most is None or self.tiles.shape[0] > 1 else self.most  # ids are by batch row alone
        return given.shape[0], self.tiles.shape[1]


def _counted(mask: MaskMod, sizes: tuple[int, int], wanted: Wanted, device: torch.device | str) -> _Weighed:
    """By each pair of the tiles: for all batch rows and heads that are given, or those that a Mask's answers are for.

    torch's ``create_block_mask`` sorts the columns of each row in the graph, and makes tables there, which Inductor may pad: its kernels
    (2.11) then read those of all batch rows but the first at wrong places (`core.block_masks.laid_out`).
    """
    (q_len, kv_len), (q_block, kv_block) = (wanted.q_len, wanted.kv_len), wanted.block
    if holds_function(mask):
        shown = flex.create_mask(_as_function(mask), *sizes, q_len, kv_len, device)
    else:
        indices = [torch.arange(size, device=device) for size in (*sizes, q_len, kv_len)]
        places = [index.view(*(-1 if dim == axis else 1 for dim in range(4))) for axis, index in enumerate(indices)]
        answers = ask(mask, *places)
        shown = answers.expand(torch.broadcast_shapes(answers.shape, (1, 1, q_len, kv_len)))
        sizes = shown.shape[0], shown.shape[1]
    rows, columns = ceil_div(q_len, q_block), ceil_div(kv_len, kv_block)
    whole = F.pad(shown, (0, columns * kv_block - kv_len, 0, rows * q_block - q_len))
    pairs = whole.view(*sizes, rows, q_block, columns, kv_block).sum((3, 5), dtype=torch.int32)
    return _Weighed(pairs, q_block * kv_block)


def _of_ranges(
    mask: MaskMod, batch: int, q_len: int, kv_len: int, block: tuple[int, int], device: torch.device | str
) -> _Weighed | None:
    """By the ranges of keys that queries see; None where the mask's class does not say them."""
    from maskloom.masks.ranges import Places, shown_keys  # the chain of imports would be too long

    b, q_idx, kv_idx = (torch.arange(length, device=device) for length in (batch, q_len, kv_len))
    places = Places(b[:, None], q_idx[None], kv_idx[None])
    shown = shown_keys(mask, places)
    return None if shown is None else _weighed(shown, places, block)


def _weighed(shown: "Shown", places: "Places", block: tuple[int, int]) -> _Weighed:
    """For each query and key tile the visible keys are counted, not looked at: keys / tile size less work than torch's own way.

    Where ids decide, a tile weighs nothing if the ids of its queries and those of its keys do not overlap, and less than all if there
    are several. Of ids that rise, as those of packed documents do, that is right; of others a tile may weigh something that shows nothing.
    """
    (b, q_idx, kv_idx), (q_block, kv_block) = places, block
    q_len, kv_len = q_idx.shape[1], kv_idx.shape[1]
    edges = torch.arange(ceil_div(kv_len, kv_block), device=b.device) * kv_block
    first, end = (one + torch.zeros_like(q_idx) for one in (shown.first, shown.end))
    low = torch.maximum(first[..., None], edges).clamp(max=kv_len)
    high = torch.minimum(end[..., None], edges + kv_block).clamp(max=kv_len)
    count = (high - low).clamp(min=0)
    if shown.keys is not None:
        sums = F.pad(shown.keys.long().cumsum(1), (1, 0))
        rows = torch.arange(sums.shape[0], device=b.device)[:, None, None]
        count = torch.where(count > 0, sums[rows, torch.maximum(high, low)] - sums[rows, low], 0)
    q_tiles = ceil_div(q_len, q_block)
    pairs = (
        F.pad(count, (0, 0, 0, q_tiles * q_block - q_len)).unflatten(1, (q_tiles, q_block)).sum(2, dtype=torch.int32)
    )
    whole = q_block * kv_block
    most = None
    for q_ids, kv_ids in shown.ids:
        queries, keys = _Ends.of(q_ids, q_block), _Ends.of(kv_ids, kv_block)
        by_ids = torch.where(queries.is_one_with(keys), 2 * whole, queries.overlaps(keys).to(torch.int32))
        most = by_ids if most is None else torch.minimum(most, by_ids)
    if most is None:
        return _Weighed(pairs[:, None], whole)
    return _Weighed(pairs[:, None], whole, most[:, None])


class _Ends(NamedTuple):
    """The ids of tiles of positions: the lowest, the lowest that is not negative, and the greatest; (B or 1, tiles)."""

    lowest: Tensor
    least: Tensor
    greatest: Tensor

    @classmethod
    def of(cls, ids: Tensor, block: int) -> "_Ends":
        """Of integers (B or 1, length)."""
        tiles = ceil_div(ids.shape[1], block)
        tiled = F.pad(ids.long(), (0, tiles * block - ids.shape[1]), value=-1).unflatten(1, (tiles, block))
        least = torch.where(tiled < 0, torch.iinfo(torch.int64).max, tiled).amin(2)
        return cls(tiled.amin(2), least, tiled.amax(2))

    def overlaps(self, keys: "_Ends") -> Tensor:
        """Which of these tiles of queries have ids among those of tiles of keys: bool (B or 1, query tiles, key tiles)."""
        return (self.least[..., None] <= keys.greatest[:, None]) & (keys.least[:, None] <= self.greatest[..., None])

    def is_one_with(self, keys: "_Ends") -> Tensor:
        """Which of them have one id, which is that of all keys of the other: likewise."""
        low = torch.minimum(self.lowest[..., None], keys.lowest[:, None])
        high = torch.maximum(self.greatest[..., None], keys.greatest[:, None])
        return (low == high) & (low >= 0)
