"""`tiles`: the tiles of a block mask that attention skips, visits with mask_mod, and visits without it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED
from maskloom.program.program import MaskMod
from maskloom.show.figures import load_matplotlib, palette_of
from maskloom.show.frame import draw_cells, frame_of, number, patch, size_in_words
from maskloom.show.measure.selection import Span, Which
from maskloom.show.measure.source import source_of
from maskloom.show.measure.tiles import Tiles, block_of, tiles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORDS = {SKIPPED: "skipped", PARTIAL: "partial", FULL: "full"}


def tiles(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    block_size: int | tuple[int, int] | None = None,
    rows: Span = None,
    keys: Span = None,
    batch: Which = 0,
    heads: Which = 0,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    ax: "Axes | None" = None,
    title: str | None = None,
    size: float = 5.5,
) -> "Figure":
    """The tiles of a block mask as a picture: query tiles down, key tiles across, at their positions.

    A tile is skipped, partial (visited; mask_mod is evaluated for each of its elements) or full (visited without
    mask_mod). The legend counts them. A tile that the end of the sequence cuts is drawn smaller. Where there are too many
    tiles for a picture, a cell stands for several, and is skipped or full only if they all are.

    Args:
        mask: a BlockMask; or a mask, of which no block mask is built: its tiles are decided on the picture's own grid.
        block_size: positions in a tile of a mask, an int or (Q, KV), 128 by default; a BlockMask has its own.
        q_len, kv_len, rows, keys, batch, heads, tokens, key_tokens, ax, title, size: as in `mask`. Tiles that ``rows`` and
            ``keys`` touch are drawn as a whole.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        TypeError, ValueError: those of `mask`; a block size below 1, or one beside a BlockMask.
    """
    source = source_of(mask, q_len, kv_len)
    block = block_of(mask, block_size, source.q_len, source.kv_len)
    frame = frame_of(
        source, rows=rows, keys=keys, batch=batch, heads=heads, tokens=tokens, key_tokens=key_tokens, ax=ax,
        title=title, size=size,
    )  # fmt: skip
    palette = palette_of(frame.figure)  # type: ignore[arg-type]
    found = [tiles_of(source, block, frame.queries, frame.keys, panel.row, panel.head) for panel in frame.panels]
    colours = load_matplotlib().colors.ListedColormap(palette.by_state)
    for panel, seen in zip(frame.panels, found, strict=True):
        draw_cells(frame, panel.axes, seen.cells, seen.states.numpy(), cmap=colours, vmin=SKIPPED, vmax=FULL)
        panel.axes.set_xlim(frame.keys.start - 0.5, frame.keys.stop - 0.5)
        panel.axes.set_ylim(frame.queries.stop - 0.5, frame.queries.start - 0.5)
    frame.label()
    frame.entitle(source)
    frame.explain(_counted(found, palette.by_state), _caption(found[0], source.q_len, source.kv_len, block))
    return frame.figure  # type: ignore[return-value]


def _counted(found: list[Tiles], colours: tuple[str, str, str]) -> list:
    states = np.concatenate([seen.states.numpy().ravel() for seen in found])
    counts = {state: int((states == state).sum()) for state in _WORDS}
    return [
        patch(colours[state], f"{_WORDS[state]} {number(count)} ({count / states.size:.0%})")
        for state, count in counts.items()
    ]


def _caption(seen: Tiles, q_len: int, kv_len: int, block: tuple[int, int]) -> str:
    words = f"{number(q_len)} queries × {number(kv_len)} keys in tiles of {block[0]} × {block[1]}"
    if (seen.cells.q_block, seen.cells.kv_block) != tuple(block):
        words += f"\na cell is {size_in_words(seen.cells)} pairs: several tiles"
    if seen.undecided:
        words += f"\n{number(seen.undecided)} partial ones may be skipped: nothing visible was found in them"
    return words
