"""`compare`: what one mask shows that another does not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.program.program import MaskMod
from maskloom.show.figures import Palette, mixed, palette_of
from maskloom.show.frame import draw_cells, frame_of, number, patch, size_in_words
from maskloom.show.measure.selection import Span, Which
from maskloom.show.measure.shares import Shares, at, cells_of, shares_of
from maskloom.show.measure.source import Between, source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


def compare(
    first: BlockMask | MaskMod | Tensor,
    second: BlockMask | MaskMod | Tensor,
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
    """Two masks as one picture: pairs that both show, that only the first shows, and that only the second shows.

    The legend counts the pairs where every one was looked at. Of long masks a cell is many pairs, and a difference is
    drawn over what is equal. Where not every pair of a cell could be looked at, the caption says so.

    Args:
        first, second: two masks in any form that `mask` takes; of one block mask and one mask, say.
        q_len, kv_len: Q and K; by default those that either mask says itself.
        rows, keys, batch, heads, tokens, key_tokens, ax, title, size: as in `mask`.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        TypeError, ValueError: those of `mask`; masks for different lengths, or numbers of batch rows or heads.
    """
    left, right = _sources(first, second, q_len, kv_len)
    parts = (Between(left, right, hides=True), Between(right, left, hides=True), Between(left, right, hides=False))
    frame = frame_of(
        parts[0], rows=rows, keys=keys, batch=batch, heads=heads, tokens=tokens, key_tokens=key_tokens, ax=ax,
        title=title, size=size,
    )  # fmt: skip
    palette, cells = palette_of(frame.figure), cells_of(frame.queries, frame.keys)  # type: ignore[arg-type]
    found = [[shares_of(part, at(cells, panel.row, panel.head)) for part in parts] for panel in frame.panels]
    for panel, shares in zip(frame.panels, found, strict=True):
        draw_cells(frame, panel.axes, cells, _coloured(shares, palette))
    frame.label()
    frame.entitle(parts[0], f"first: {left.title}\nsecond: {right.title}")
    caption = None
    if not cells.q_block == cells.kv_block == 1:
        caption = f"a cell is {size_in_words(cells)} pairs; a difference in any of them is drawn"
        undecided = sum(int((one.undecided | two.undecided).sum()) for one, two, _ in found)
        if undecided:
            caption += f"\nin {number(undecided)} cells some pairs were looked at: no difference was found there"
    frame.explain(_handles(found, palette), caption)
    return frame.figure  # type: ignore[return-value]


def _sources(first: object, second: object, q_len: int | None, kv_len: int | None) -> tuple:
    sizes, reason = (q_len, kv_len), None
    for one, other in ((first, second), (second, first)):
        try:
            source = source_of(one, *sizes)  # type: ignore[arg-type]
        except ValueError as error:
            if isinstance(one, BlockMask):  # which has lengths of its own
                raise
            reason = reason or error  # it has no length of its own; the other may have
            continue
        beside = source_of(other, source.q_len, source.kv_len)  # type: ignore[arg-type]
        return (source, beside) if one is first else (beside, source)
    assert reason is not None
    raise reason


def _coloured(shares: list[Shares], palette: Palette) -> np.ndarray:
    """The colours of cells: differences over what is equal, and a mixture where both masks show something alone."""
    only_first, only_second, both = (found.share.masked_fill(found.undecided, 0).numpy()[..., None] for found in shares)
    ground, equal = np.array(mixed(palette.hidden, palette.hidden, 0)), _equal(palette)
    image = ground + (np.array(equal) - ground) * np.where(both > 0, np.maximum(both, 0.3), 0)
    image = np.where(only_first > 0, np.array(mixed(palette.first, palette.first, 0)), image)
    image = np.where(only_second > 0, np.array(mixed(palette.second, palette.second, 0)), image)
    return np.where((only_first > 0) & (only_second > 0), np.array(_each(palette)), image)


def _seen(found: Shares) -> Tensor:
    return (found.share > 0) & ~found.undecided


def _equal(palette: Palette) -> tuple[float, float, float]:
    return mixed(palette.hidden, palette.visible, 0.45)


def _each(palette: Palette) -> tuple[float, float, float]:
    return mixed(palette.visible, palette.visible, 0)


def _handles(found: "list[list[Shares]]", palette: Palette) -> "list[Patch]":
    colours = (palette.first, palette.second, _equal(palette))
    words = ("only the first", "only the second", "both")
    handles = []
    for place, (colour, word) in enumerate(zip(colours, words, strict=True)):
        counts = [shares[place].visible for shares in found]
        count = "" if None in counts else f": {number(sum(count or 0 for count in counts))}"
        handles.append(patch(colour, word + count))
    handles.append(patch(palette.hidden, "neither"))
    if any(bool((_seen(one) & _seen(two)).any()) for one, two, _ in found):
        handles.append(patch(_each(palette), "some of each"))
    return handles
