"""`mask`: which pairs of queries and keys are visible."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.program.program import MaskMod
from maskloom.show.figures import Palette, mixed, palette_of
from maskloom.show.frame import Frame, draw_cells, frame_of, number, patch, size_in_words
from maskloom.show.measure.selection import Span, Which
from maskloom.show.measure.shares import Shares, at, cells_of, shares_of
from maskloom.show.measure.source import source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAINTEST, STRONGEST = 0.25, 0.85
"""How far from hidden to visible the colours of cells reach that are neither."""


def mask(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
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
    """A mask as a picture: queries down, keys across, visible pairs strong.

    Up to `MOST_CELLS` queries and keys a cell is one pair. Of more, a cell is many pairs, and its colour the stronger, the more of them
    are visible; it is drawn as hidden only if none is. Any length takes less than a second and little memory.

    Args:
        mask: a Mask, a mask_mod, a BlockMask (its tables and its mask_mod together), or a table as in `attend`.
        q_len, kv_len: Q and K, in positions. By default those of the BlockMask or of the tables that the mask reads;
            one is for both.
        rows, keys: the queries and keys to draw: ``slice(start, stop)``, a range or a pair. By default all.
        batch, heads: the batch row and the head to draw; several, or "all", side by side.
        tokens: Q labels of the queries; also of the keys if Q = K. Labels longer than 16 characters are cut.
        key_tokens: K labels of the keys, if they differ.
        ax: axes to draw into; by default a new figure is made.
        title: by default the mask, the batch row and the head, and how many of them there are; an empty string for none.
        size: maximum inches of the longer side.

    Returns:
        A matplotlib Figure, which a notebook displays; `save_figure` writes it. Its colours follow matplotlib's style,
        light or dark.

    Raises:
        TypeError, ValueError: not a mask, lengths that are unknown or do not fit, positions, a batch row or a head that
            do not exist.
    """
    source = source_of(mask, q_len, kv_len)
    frame = frame_of(
        source, rows=rows, keys=keys, batch=batch, heads=heads, tokens=tokens, key_tokens=key_tokens, ax=ax,
        title=title, size=size,
    )  # fmt: skip
    cells, palette = cells_of(frame.queries, frame.keys), palette_of(frame.figure)  # type: ignore[arg-type]
    shares = [shares_of(source, at(cells, panel.row, panel.head)) for panel in frame.panels]
    for panel, found in zip(frame.panels, shares, strict=True):
        draw_cells(frame, panel.axes, cells, coloured(found.share, palette.hidden, palette.visible))
    frame.label()
    frame.entitle(source)
    _explain(frame, shares, palette)
    return frame.figure  # type: ignore[return-value]


def coloured(share: Tensor, hidden: str, visible: str) -> np.ndarray:
    """The colour of each share: float (rows, columns, 3). What is neither 0 nor 1 looks like neither."""
    part = share.numpy()
    part = np.where((part > 0) & (part < 1), FAINTEST + (STRONGEST - FAINTEST) * part, part)[..., None]
    low, high = np.array(mixed(hidden, hidden, 0)), np.array(mixed(visible, visible, 0))
    return low + (high - low) * part


def _explain(frame: Frame, shares: list[Shares], palette: Palette) -> None:
    cells = shares[0].cells
    some = any(bool(((found.share > 0) & (found.share < 1)).any()) for found in shares)
    handles = [patch(palette.visible, "visible"), patch(palette.hidden, "hidden")]
    if some:
        handles.insert(1, patch(mixed(palette.hidden, palette.visible, 0.5), "visible in part"))
    frame.explain(handles, caption_of(cells, shares))


def caption_of(cells: object, shares: list[Shares]) -> str | None:
    """What a cell is, and how its share was found; None if it is one pair."""
    cells = shares[0].cells
    if cells.q_block == cells.kv_block == 1:
        return None
    lines = [f"a cell is {size_in_words(cells)} pairs; the stronger its colour, the more are visible"]
    if not all(found.is_exact for found in shares):
        lines[0] += " (estimated)"
    undecided = sum(int(found.undecided.sum()) for found in shares)
    if undecided:
        lines.append(f"{number(undecided)} cells: nothing visible was found, but may be; drawn faintest")
    return "\n".join(lines)
