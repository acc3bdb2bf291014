"""`density`: how many tiles each row of tiles visits, and how evenly ranks share them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.tile_states import SKIPPED
from maskloom.core.checks import count
from maskloom.program.program import MaskMod
from maskloom.show.figures import checked_title, load_matplotlib, palette_of
from maskloom.show.frame import MOST_PANELS, name_of, size_in_words
from maskloom.show.labels import both_labels, label_axis, label_positions, literal, spaced
from maskloom.show.measure.selection import Span, Which, span_of
from maskloom.show.measure.source import Source, source_of
from maskloom.show.measure.tiles import Tiles, block_of, tiles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 5.5, 2.1  # inches of a panel
_LINES = 8


def density(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    block_size: int | tuple[int, int] | None = None,
    ranks: int = 8,
    rows: Span = None,
    keys: Span = None,
    batch: Which = 0,
    heads: Which = 0,
    tokens: Sequence[str] | None = None,
    ax: "Axes | None" = None,
    title: str | None = None,
) -> "Figure":
    """The work of a mask: the tiles that each row of tiles visits, and below, the tiles of each of some ranks.

    The second panel says how evenly the query tiles are shared if each rank takes one run of them, and if each takes one
    from the front and one from the back (zigzag). Balance is the tiles of the busiest rank over the mean of all; 1 is even.

    Args:
        ranks: the number of ranks that share the query tiles, at least 1; there are never more than half the query tiles.
        batch, heads: several, or "all", are drawn as lines; ranks share the sum of them.
        tokens: Q labels of the queries.
        ax: axes for the first panel alone; by default a new figure has both.
        mask, q_len, kv_len, block_size, rows, keys, title: as in `tiles`.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        TypeError, ValueError: those of `tiles`; fewer than 1 rank.
    """
    source = source_of(mask, q_len, kv_len)
    block = block_of(mask, block_size, source.q_len, source.kv_len)
    ranks = count("ranks", ranks, least=1, of="ranks")
    title = checked_title(title)
    queries, key_span = span_of("rows", rows, source.q_len), span_of("keys", keys, source.kv_len)
    labels, _ = both_labels(tokens, None, source.q_len, -1)
    pairs = [(row, head) for row in source.batch.chosen(batch) for head in source.heads.chosen(heads)][:MOST_PANELS]
    figure, axes = _axes(ax)
    found = [tiles_of(source, block, queries, key_span, *pair) for pair in pairs]
    visited = np.stack([(seen.states != SKIPPED).sum(-1).numpy() for seen in found])
    _draw_rows(axes[0], source, pairs, found[0], visited, labels)
    if len(axes) > 1:
        _draw_ranks(axes[1], visited.sum(0), min(ranks, max(1, visited.shape[1] // 2)))
    _entitle(axes[0], source, pairs, title)
    return figure


def _axes(ax: "Axes | None") -> "tuple[Figure, list[Axes]]":
    from maskloom.show.figures import checked_axes, new_figure

    ax = checked_axes(ax)
    if ax is not None:
        return ax.figure, [ax]  # type: ignore[return-value]

    figure = new_figure(_WIDTH + 0.9, 2 * _HEIGHT + 1.6)
    return figure, list(figure.subplots(2, 1))


def _entitle(axes: "Axes", source: Source, pairs: list[tuple[int, int]], title: str | None) -> None:
    if title is None:
        row, head = pairs[0]
        which = f"{source.batch.name(row)}, {source.heads.name(head)}"
        words = source.title if len(source.title) <= 78 else source.title[:77] + "…"
        title = f"{words}\n{which if len(pairs) == 1 else f'{len(pairs)} batch rows and heads'}"
    if title:
        literal([axes.set_title(title, fontsize=10)])


def _draw_rows(
    axes: "Axes",
    source: Source,
    pairs: list[tuple[int, int]],
    seen: Tiles,
    visited: np.ndarray,
    labels: list[str] | None,
) -> None:
    palette, cells = palette_of(axes.figure), seen.cells  # type: ignore[arg-type]
    first, last = int(cells.q_offset), int(cells.q_offset) + cells.q_len
    lines = load_matplotlib().colormaps["viridis"]
    edges = np.minimum(first + np.arange(visited.shape[1] + 1) * cells.q_block, last) - 0.5
    for place, (row, head) in enumerate(pairs):
        name = name_of(source, row, head) if place < _LINES else None
        colour = palette.visible if len(pairs) == 1 else lines(place / len(pairs))
        axes.stairs(visited[place], edges, fill=len(pairs) == 1, color=colour, label=name, linewidth=1.4)
    if len(pairs) > 1:
        axes.legend(fontsize=7.5, frameon=False, ncols=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(1, visited.max()) * 1.05)
    label_positions(axes.xaxis, "query position", range(first, last), labels, _WIDTH)
    top = int(max(1, visited.max()))
    marks = spaced(range(top + 1), _HEIGHT, apart=0.25)
    label_axis(axes.yaxis, f"visited tiles of {size_in_words(cells)}", marks, marks)
    axes.yaxis.label.set_fontsize(8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ranks(axes: "Axes", work: np.ndarray, ranks: int) -> None:
    palette = palette_of(axes.figure)  # type: ignore[arg-type]
    places = np.arange(ranks)
    shares = {"one run each": in_runs(work, ranks), "zigzag": zigzag(work, ranks)}
    for offset, colour, (name, of_ranks) in zip(
        (-0.2, 0.2), (palette.partial, palette.visible), shares.items(), strict=True
    ):
        axes.bar(places + offset, of_ranks, 0.38, color=colour, label=f"{name}: balance {balance(of_ranks):.2f}")
    axes.axhline(work.sum() / ranks, color="0.5", linewidth=1, linestyle="--", label="mean")
    axes.set_ylim(0, max(1.0, max(max(of_ranks) for of_ranks in shares.values())) * 1.3)
    marks = spaced(range(ranks), _WIDTH, apart=0.25)
    label_axis(axes.xaxis, "rank", marks, marks)
    axes.tick_params(axis="y", labelsize=9)
    axes.set_ylabel("visited tiles", fontsize=8.5)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


def in_runs(work: np.ndarray, ranks: int) -> list[int]:
    """The tiles of each rank, if each takes one run of query tiles."""
    return [int(part.sum()) for part in np.array_split(work, ranks)]


def zigzag(work: np.ndarray, ranks: int) -> list[int]:
    """The tiles of each rank, if rank r takes the runs r and 2 · ranks - 1 - r of twice as many."""
    parts = [int(part.sum()) for part in np.array_split(work, 2 * ranks)]
    return [parts[rank] + parts[-1 - rank] for rank in range(ranks)]


def balance(of_ranks: list[int]) -> float:
    """The tiles of the busiest rank over the mean; 1 if there are none."""
    total = sum(of_ranks)
    return max(of_ranks) * len(of_ranks) / total if total else 1.0
