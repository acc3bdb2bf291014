"""What pictures ask of a mask, whatever form it has: sizes, the states of cells, and the answers at chosen elements."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.first_sight import at_first_sight
from maskloom.blocks.grid import Grid
from maskloom.blocks.intervals.interval import LEAD, Interval, PositionRange
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.core import captures
from maskloom.core.block_masks import rebuilt
from maskloom.core.torch_state import without_autocast
from maskloom.masks.algebra import as_mask, shown
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.program.dependence import Dependence
from maskloom.program.elements import Elements, evaluate
from maskloom.program.mask_program import MaskProgram, program_of
from maskloom.program.program import Index, MaskMod
from maskloom.show.measure.lengths import lengths_of
from maskloom.show.measure.selection import Members


@dataclass(frozen=True)
class Cells(Grid):
    """The cells of a picture: tiles of one batch row and one head."""

    row: int = 0
    head: int = 0

    def indices(self, device: torch.device) -> list[Interval]:
        _, _, queries, keys = super().indices(device)
        return [_one(self.row, 0, device), _one(self.head, 1, device), queries, keys]

    def whole_tiles(self, device: torch.device) -> None:
        """A cell that the end cuts is as whole as others: torch's rule for tiles is no rule for pictures."""
        return


def _one(number: int, axis: int, device: torch.device) -> Interval:
    value = torch.full((1,) * LEAD, number, device=device)
    return Interval(value, value, span=(number, number), run=PositionRange(axis, number, 1, 1))


class Source(ABC):
    """A mask as a picture reads it.

    Attributes:
        q_len, kv_len: Q and K.
        batch, heads: its batch rows and heads.
        title: the mask in words.
    """

    q_len: int
    kv_len: int
    batch: Members
    heads: Members
    title: str

    @abstractmethod
    def states(self, cells: Cells) -> Tensor:
        """int8 (rows, columns): SKIPPED and FULL are certain; PARTIAL cells may be any."""

    @abstractmethod
    def answers(self, elements: Elements) -> Tensor:
        """bool (T, n, m), as `maskloom.program.elements.evaluate`."""


class _OfFunction(Source):
    def __init__(self, mask: MaskMod, q_len: int, kv_len: int, title: str) -> None:
        device = captures.device_of(mask) or torch.device("cpu")
        self.program: MaskProgram = program_of(mask, device)
        dependence = self.program.dependence
        dependence.check_length("q_idx", q_len)
        dependence.check_length("kv_idx", kv_len)
        self.q_len, self.kv_len, self.title = q_len, kv_len, title
        self.batch = _members(dependence, "b")
        self.heads = _members(dependence, "h")

    @torch.no_grad()
    def states(self, cells: Cells) -> Tensor:
        with without_autocast(self.program.device):
            (states,) = at_first_sight(self.program, cells, exact=False, count=None)
        return states[0, 0].expand(cells.shape[2:]).cpu()

    @torch.no_grad()
    def answers(self, elements: Elements) -> Tensor:
        moved = Elements(*(getattr(elements, name).to(self.program.device) for name in ("b", "h", "q_idx", "kv_idx")))
        found = evaluate(self.program.program, self.program.mask, moved)
        return found.expand(len(elements.b), elements.q_idx.shape[1], elements.kv_idx.shape[1]).cpu()


def _members(dependence: Dependence, index: Index) -> Members:
    item, argument = ("batch row", "batch") if index == "b" else ("head", "heads")
    varies = index in dependence.marks
    count = dependence.size(index, None) if varies and dependence.sizes[index] else None  # type: ignore[arg-type]
    return Members(item, argument, count, varies)


class OfBlockMask(Source):
    """A BlockMask: its full tiles, and the elements of its partial tiles where mask_mod is True."""

    def __init__(self, block_mask: BlockMask) -> None:
        q_len, kv_len = block_mask.seq_lengths
        self.block_mask = block_mask
        self.inner = _OfFunction(block_mask.mask_mod, q_len, kv_len, _name(block_mask.mask_mod))
        self.q_len, self.kv_len, self.title = q_len, kv_len, f"block mask of {self.inner.title}"
        batch, heads = block_mask.kv_num_blocks.shape[:2]
        self.batch = _joined(self.inner.batch, batch)
        self.heads = _joined(self.inner.heads, heads)

    def states(self, cells: Cells) -> Tensor:
        inner = self.inner.states(cells)
        skipped, partial, full = self.tiles_in(cells)
        may = full | (partial & (inner != SKIPPED))
        must = ~skipped & ~(partial & (inner != FULL))
        return may.to(torch.int8) + must.to(torch.int8)

    def answers(self, elements: Elements) -> Tensor:
        q_block, kv_block = self.block_mask.BLOCK_SIZE
        found = self.inner.answers(elements)
        first, last = int(elements.q_idx.min()) // q_block, int(elements.q_idx.max()) // q_block
        step = max(1, _MOST_STATES // -(-self.kv_len // kv_block))
        rows, columns = elements.q_idx.cpu() // q_block, elements.kv_idx.cpu() // kv_block
        states = torch.zeros(found.shape, dtype=torch.int8)
        for start in range(first, last + 1, step):  # some rows of tiles at a time
            stop = min(start + step, last + 1)
            here = (rows >= start) & (rows < stop)
            table = self._states(int(elements.b[0]), int(elements.h[0]), slice(start, stop))
            read = table[(rows - start).clamp(0, stop - start - 1)[:, :, None], columns[:, None, :]]
            states = torch.where(here[:, :, None], read, states)
        return (states == FULL) | ((states == PARTIAL) & found)

    def tile_counts(self, row: int, head: int, rows: slice) -> Tensor:
        """The states of some rows of its tiles: int8 (rows, key tiles)."""
        return self._states(row, head, rows)

    def _states(self, row: int, head: int, rows: slice) -> Tensor:
        return tile_states(self._one(row, head), rows)[0, 0].cpu()

    def _one(self, row: int, head: int) -> BlockMask:
        """The tables of one batch row and head; those of 1 are for all."""
        given = self.block_mask
        batch, heads = given.kv_num_blocks.shape[:2]
        b, h = row if batch > 1 else 0, head if heads > 1 else 0
        names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
        tables = {name: getattr(given, name) for name in names}
        return rebuilt(
            given, **{name: None if held is None else held[b : b + 1, h : h + 1] for name, held in tables.items()}
        )

    def tiles_in(self, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each cell overlaps a tile of each state: bool (rows, columns)."""
        q_block, kv_block = self.block_mask.BLOCK_SIZE
        tops = _bounds(cells.q_offset, cells.q_len, cells.q_block, q_block)
        lefts, rights = torch.tensor(_bounds(cells.kv_offset, cells.kv_len, cells.kv_block, kv_block)).T
        found = torch.zeros(3, *cells.shape[2:], dtype=torch.bool)
        for place, (top, bottom) in enumerate(tops):
            states = self._states(cells.row, cells.head, slice(top, bottom))
            for state in (SKIPPED, PARTIAL, FULL):
                before = torch.nn.functional.pad((states == state).any(0).long().cumsum(0), (1, 0))
                found[state, place] = before[rights] > before[lefts]
        skipped, partial, full = found
        return skipped, partial, full


_MOST_STATES = 1 << 20


def _bounds(offset: int | Tensor, length: int, cell: int, tile: int) -> list[tuple[int, int]]:
    """For each cell the first tile that it overlaps, and the one after the last."""
    first = int(offset)
    ends = [(first + at, first + min(at + cell, length)) for at in range(0, length, cell)]
    return [(start // tile, (stop - 1) // tile + 1) for start, stop in ends]


def _joined(inner: Members, tables: int) -> Members:
    count = tables if tables > 1 else inner.count
    return Members(inner.item, inner.argument, count, inner.varies or tables > 1)


class Between(Source):
    """Where the first mask shows and the second does not (``hides``), or where both show."""

    def __init__(self, first: Source, second: Source, *, hides: bool) -> None:
        self.first, self.second, self.hides = first, second, hides
        self.q_len, self.kv_len, self.title = first.q_len, first.kv_len, first.title
        self.batch, self.heads = _either(first.batch, second.batch), _either(first.heads, second.heads)

    def states(self, cells: Cells) -> Tensor:
        first, second = self.first.states(cells), self.second.states(cells)
        return torch.minimum(first, FULL - second if self.hides else second)

    def answers(self, elements: Elements) -> Tensor:
        return self.first.answers(elements) & (self.second.answers(elements) ^ self.hides)


def _either(first: Members, second: Members) -> Members:
    counts = {members.count for members in (first, second) if members.varies and members.count is not None}
    if len(counts) > 1:
        raise ValueError(
            f"the two masks are for different numbers of {first.item}s: {' and '.join(map(str, sorted(counts)))}"
        )
    return Members(first.item, first.argument, max(counts, default=None), first.varies or second.varies)


def source_of(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
) -> Source:
    """A mask in any form, for pictures.

    Args:
        mask: a Mask, a mask_mod, a BlockMask, or a table as in `attend`.
        q_len, kv_len: Q and K; by default those of the BlockMask, or of the tables that the mask reads.

    Raises:
        TypeError: not a mask. ValueError: lengths that are unknown, below 1, or do not fit.
    """
    if not isinstance(mask, (BlockMask, Tensor)):
        mask = as_mask(mask)  # raises if it is not a mask
    q_len, kv_len = lengths_of(mask, q_len, kv_len)
    if isinstance(mask, BlockMask):
        return OfBlockMask(mask)
    if isinstance(mask, Tensor):
        return _OfFunction(
            mask_of_table(mask, Sizes(None, None, q_len, kv_len)), q_len, kv_len, f"from_dense({shown(mask)})"
        )
    return _OfFunction(mask, q_len, kv_len, repr(mask))


def _name(mask_mod: MaskMod) -> str:
    return repr(as_mask(mask_mod))
