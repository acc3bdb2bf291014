"""`plot_tiles`: the tiles of a BlockMask that attention skips, visits with mask_mod, and visits without it."""

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.core.checks import is_number
from maskloom.show.cells import checked_index
from maskloom.show.figures import keys_on_top, label_axis, literal, load_matplotlib, panel_size, part_cells, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Light, medium and dark, so that they differ in grey too; blue and orange differ for every kind of colour vision.
FILLS = {SKIPPED: "#e9edf0", PARTIAL: "#f0a630", FULL: "#17406d"}
_WORDS = {SKIPPED: "skipped", PARTIAL: "partial", FULL: "full"}


def plot_tiles(
    block_mask: BlockMask,
    *,
    batch_idx: int | None = None,
    head_idx: int = 0,
    max_rows: int = 16,
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """The tiles of a BlockMask as a picture, query tiles down and key tiles across.

    A tile is skipped, partial (visited; mask_mod is evaluated for each of its elements) or full (visited without
    mask_mod). The legend counts the drawn tiles. A tile that the end of the sequence cuts is drawn smaller.

    Args:
        block_mask: its tables are (B or 1, H or 1, query tiles, key tiles); one batch row or head is for all.
        batch_idx: the batch row to draw; None for all batch rows of the tables, side by side.
        head_idx: the query head.
        max_rows: maximum number of batch rows side by side; the text below the title says how many more there are.
        title: by default the head, and the batch row if only one is drawn.
        names: a name for each batch row of the tables.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        TypeError: not a BlockMask, or an index that is not an int.
        ValueError: batch_idx or head_idx that the tables do not have, max_rows below 1, or a wrong number of names.
    """
    if not isinstance(block_mask, BlockMask):
        raise TypeError(f"block_mask is a BlockMask, as maskloom.block_mask makes; got {type(block_mask).__name__}")
    states = tile_states(block_mask)
    batch, heads = states.shape[:2]
    rows = _drawn_rows(batch, batch_idx, max_rows)
    row_names = _names(batch, names)
    tiles = states[rows, _table_index("head_idx", head_idx, heads, "heads")].cpu().numpy()

    heading = title if title is not None else f"head {head_idx}" if heads > 1 else "all heads"
    if len(rows) == 1:
        figure = _one_panel(tiles[0], block_mask)
        heading = f"{row_names[rows[0]]}, {heading}" if title is None else heading
    else:
        figure = _panels(tiles, block_mask, row_names)
    if batch_idx is None and batch > len(rows):
        heading += f"\nthe first {len(rows)} batch rows, and {batch - len(rows)} more"
    literal([figure.suptitle(heading, fontsize=11)])
    _add_legend(figure, tiles, block_mask)
    return figure


def _drawn_rows(batch: int, batch_idx: int | None, max_rows: int) -> list[int]:
    if batch_idx is not None:
        return [_table_index("batch_idx", batch_idx, batch, "batch rows")]
    if max_rows < 1:
        raise ValueError(f"max_rows is a number of batch rows, at least 1; got {max_rows}")
    return list(range(min(batch, max_rows)))


def _table_index(name: str, index: int, size: int, items: str) -> int:
    """The index of a batch row or head in the tables, where one entry may be for all."""
    if size == 1 and is_number(index) and operator.index(index) > 0:
        return 0
    return checked_index(name, index, size, items)


def _names(batch: int, names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [f"batch row {row}" for row in range(batch)] if batch > 1 else ["all batch rows"]
    if isinstance(names, str) or len(names) != batch:
        got = repr(names) if isinstance(names, str) else len(names)
        raise ValueError(f"names has one name for each of the tables' {batch} batch rows; got {got}")
    return [str(name) for name in names]


# -- panels ------------------------------------------------------------------------------------------------------------


def _one_panel(tiles: np.ndarray, block_mask: BlockMask) -> "Figure":
    """One batch row, with tile numbers at the top and left, and positions at the bottom and right."""
    width, height = _panel_size(block_mask, longest=5.5)
    figure = load_matplotlib().figure.Figure(figsize=(width + 1.8, height + 2.4), layout="constrained")
    axes = figure.add_subplot()
    _draw_tiles(axes, tiles, block_mask, width, height)
    for name, axis, beside, dim, room in (
        ("query", axes.yaxis, axes.secondary_yaxis("right"), 0, height),
        ("key", axes.xaxis, axes.secondary_xaxis("bottom"), 1, width),
    ):
        _label_tiles(axis, f"{name} tile", block_mask, dim, room)
        beside.spines[:].set_visible(False)
        edges = _edges(block_mask, dim, room)
        label_axis(beside.yaxis if dim == 0 else beside.xaxis, f"{name} position", list(edges), list(edges.values()))
    return figure


def _panels(tiles: np.ndarray, block_mask: BlockMask, names: Sequence[str]) -> "Figure":
    """Several batch rows side by side, in lines of about equal length."""
    width, height = _panel_size(block_mask, longest=1.9)
    columns = math.ceil(len(tiles) / math.ceil(len(tiles) / 4))
    lines = math.ceil(len(tiles) / columns)
    size = (columns * (width + 0.3) + 0.9, lines * (height + 0.4) + 1.8)
    figure = load_matplotlib().figure.Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(tiles):
            axes.set_axis_off()
            continue
        _draw_tiles(axes, tiles[place], block_mask, width, height)
        for name, axis, dim, room, labelled in (
            ("query tile", axes.yaxis, 0, height, place % columns == 0),
            ("key tile", axes.xaxis, 1, width, place < columns),
        ):
            if labelled:
                _label_tiles(axis, name, block_mask, dim, room)
            else:
                axis.set_ticks([])
        literal([axes.set_title(names[place], fontsize=9)])
    return figure


def _label_tiles(axis: "Axis", name: str, block_mask: BlockMask, dim: int, room: float) -> None:
    end = block_mask.seq_lengths[dim] / block_mask.BLOCK_SIZE[dim]
    tiles = spaced(range(math.ceil(end)), room, apart=0.35)
    label_axis(axis, name, [(tile + min(tile + 1, end)) / 2 - 0.5 for tile in tiles], tiles)  # middle of a cut tile


def _edges(block_mask: BlockMask, dim: int, room: float) -> dict[float, int]:
    """The starts of labelled tiles, and the end of the sequence: place on the axis → position."""
    length, block = block_mask.seq_lengths[dim], block_mask.BLOCK_SIZE[dim]
    starts = spaced(range(math.ceil(length / block)), room, apart=0.35)
    clear = length * (1 - 0.4 / room)  # a label closer to the end would overlap the label of the end
    positions = [tile * block for tile in starts if tile * block <= clear] + [length]
    return {position / block - 0.5: position for position in positions}


def _panel_size(block_mask: BlockMask, *, longest: float) -> tuple[float, float]:
    return panel_size(*block_mask.seq_lengths, cell=math.inf, longest=longest, least=0.9)


def _draw_tiles(axes: "Axes", tiles: np.ndarray, block_mask: BlockMask, width: float, height: float) -> None:
    tall, wide = (length / block for length, block in zip(block_mask.seq_lengths, block_mask.BLOCK_SIZE, strict=True))
    colours = load_matplotlib().colors.ListedColormap([FILLS[state] for state in (SKIPPED, PARTIAL, FULL)])
    # where tiles are smaller than pixels, mix their colours: mixing the state numbers would give a third state
    axes.imshow(
        tiles, cmap=colours, vmin=SKIPPED, vmax=FULL, interpolation="antialiased", interpolation_stage="rgba"
    )  # fmt: skip
    axes.set_xlim(-0.5, wide - 0.5)
    axes.set_ylim(tall - 0.5, -0.5)
    axes.set_aspect(height / width * wide / tall)
    keys_on_top(axes)
    part_cells(axes, tiles.shape[0], tiles.shape[1], min(width / wide, height / tall))


def _add_legend(figure: "Figure", tiles: np.ndarray, block_mask: BlockMask) -> None:
    patch = load_matplotlib().patches.Patch
    counts = {state: int((tiles == state).sum()) for state in FILLS}
    handles = [
        patch(facecolor=FILLS[state], label=f"{_WORDS[state]} {count:,} ({count / tiles.size:.0%})".replace(",", " "))
        for state, count in counts.items()
    ]
    (q_len, kv_len), (q_block, kv_block) = block_mask.seq_lengths, block_mask.BLOCK_SIZE
    caption = f"{q_len} queries × {kv_len} keys in tiles of {q_block} × {kv_block}"
    figure.legend(
        handles=handles, title=caption, loc="outside lower center", ncols=3, frameon=False, fontsize=9, title_fontsize=9
    )  # fmt: skip
