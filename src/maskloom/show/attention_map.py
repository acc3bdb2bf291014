"""`attention`: the attention of a head, with hidden cells hatched."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.checks import check_score_mod_fits
from maskloom.core.checks import check_flags
from maskloom.masks.algebra import as_mask
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod
from maskloom.show.colour_scale import Scale, scale_of
from maskloom.show.figures import checked_number, load_matplotlib, palette_of
from maskloom.show.frame import Frame, draw_cells, frame_of, patch, size_in_words
from maskloom.show.measure.cells import (
    Head,
    Values,
    Weights,
    attention_cells,
    check_mask,
    check_tensors,
    checked_weights,
    values_in,
)
from maskloom.show.measure.selection import Members, Span, Which
from maskloom.show.measure.shares import at
from maskloom.show.measure.source import Cells, Source, source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_NOT_FINITE = "#d81b60"


def attention(
    query: Tensor | None = None,
    key: Tensor | None = None,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    weights: Tensor | None = None,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    probabilities: bool = True,
    rows: Span = None,
    keys: Span = None,
    batch: Which = 0,
    heads: Which = 0,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    vmax: float | Literal["auto"] = "auto",
    ax: "Axes | None" = None,
    title: str | None = None,
    size: float | None = None,
) -> "Figure":
    """The attention of a head as a picture, queries down and keys across.

    Hidden cells are hatched, outside the colour scale; the rows of queries that see nothing are cross-hatched; values that
    are not finite have a colour of their own. Of more than 400 queries or keys a cell is many pairs, and has the mean of
    those that are visible. Probabilities are over all keys, drawn or not. Of very long sequences only some queries of each
    row of cells are computed, so that a picture takes about a second; the caption says how many.

    Args:
        query: (B, H, Q, D), floating point, on any device; half precision is computed in float32.
        key: (B, Hkv, K, D). H is a multiple of Hkv; query head h uses key-value head ``h // (H // Hkv)``.
        mask: a Mask, a mask_mod, a table as in `attend`, a BlockMask (its tables and its mask_mod together), or None.
        weights: in place of query and key: (B, H, Q, K), (H, Q, K) or (Q, K), as another model returns them.
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``, applied before the mask. Where it returns -inf, the cell
            is hidden. Of query and key alone, as are scale and probabilities.
        scale: by default ``1 / sqrt(D)``.
        probabilities: whether to draw probabilities, after the softmax, or scores, before it.
        rows, keys: the queries and keys to draw: ``slice(start, stop)``, a range or a pair. By default all.
        batch, heads: the batch row and the query head; several, or "all", side by side.
        tokens: Q labels of the queries; also of the keys if Q = K. Labels longer than 16 characters are cut.
        key_tokens: K labels of the keys, if they differ.
        vmax: the value with the strongest colour. "auto" takes the largest; where few cells are far above all others,
            such as those of the first queries, the largest of the others: the bar then ends in a point.
        ax: axes to draw into; by default a new figure is made.
        title: by default the batch row and head, and how many of them there are; an empty string for none.
        size: maximum inches of the longer side.

    Returns:
        A matplotlib Figure, which a notebook displays; `save_figure` writes it.

    Raises:
        TypeError, ValueError: tensors, mask, indices or labels that do not fit each other.
    """
    check_flags(probabilities=probabilities)
    limit = _checked_limit(vmax, has_negative=weights is None and not probabilities)
    given = _given(query, key, weights, mask)
    scale = _checked_options(given, score_mod, scale, probabilities)
    frame = frame_of(
        given, rows=rows, keys=keys, batch=batch, heads=heads, tokens=tokens, key_tokens=key_tokens, ax=ax,
        title=title, size=6.5 if size is None else size, room=(1.9, 1.25),
    )  # fmt: skip
    cells = attention_cells(frame.queries, frame.keys, given.kv_len)
    found = []
    for panel in frame.panels:
        head = given.head(panel.row, panel.head, score_mod, scale, probabilities)
        found.append(values_in(at(cells, panel.row, panel.head), head.rows, given.kv_len, head.source))
    name = "weight" if weights is not None else "probability" if probabilities else "score"
    scale_drawn = scale_of([_shown(values) for values in found], limit, from_zero=name != "score")
    for panel, values in zip(frame.panels, found, strict=True):
        image = _draw(frame, panel.axes, cells, values, scale_drawn)
    _add_bar(frame, image, name, scale_drawn)
    frame.label(("query position", "key position"))
    frame.entitle(given, given.title)
    frame.explain(_handles(frame, found), _caption(cells, found[0]))
    return frame.figure  # type: ignore[return-value]


class _Given(Source):
    """The tensors of a picture, and the sizes that they have."""

    def __init__(self, query: Tensor, key: Tensor | None, source: Source | None) -> None:
        self.query, self.key, self.source = query, key, source
        self.q_len, self.kv_len = query.shape[2], (query.shape[3] if key is None else key.shape[2])
        self.batch = Members("batch row", "batch", query.shape[0], True)
        self.heads = Members("head", "heads", query.shape[1], True)
        self.title = "attention" if source is None else f"attention under {source.title}"

    def head(
        self, row: int, head: int, score_mod: ScoreMod | None, scale: float | None, probabilities: bool
    ) -> Head | Weights:
        """One query head of one batch row."""
        query = self.query.detach()[row, head]
        if self.key is None:
            return Weights(query, row, head, self.source)
        key = self.key.detach()[row, head // (self.query.shape[1] // self.key.shape[1])]
        return Head(query, key, row, head, self.source, score_mod, scale, probabilities)

    def states(self, cells: Cells) -> Tensor:
        raise NotImplementedError

    def answers(self, elements: Any) -> Tensor:
        raise NotImplementedError


def _given(query: Tensor | None, key: Tensor | None, weights: Tensor | None, mask: object) -> _Given:
    if weights is not None:
        if query is not None or key is not None:
            raise TypeError("attention takes query and key, or weights=; got both")
        query = checked_weights("weights", weights)
        sizes = (*query.shape[:2], query.shape[2], query.shape[3])
    elif query is None or key is None:
        raise TypeError("attention takes query and key, or weights=; got neither or one of them")
    else:
        check_tensors(query, key)
        sizes = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return _Given(query, key, None if mask is None else _masked(mask, sizes))


def _masked(mask: Any, sizes: tuple[int, int, int, int]) -> Source:
    if isinstance(mask, Tensor):
        mask = mask_of_table(mask, Sizes(*sizes))
    if not isinstance(mask, BlockMask):
        mask = as_mask(mask)
    check_mask(mask, sizes)
    return source_of(mask, *sizes[2:])


def _checked_options(
    given: _Given, score_mod: ScoreMod | None, scale: float | None, probabilities: bool
) -> float | None:
    """The scale, or a TypeError or ValueError if the options do not fit what is given."""
    if given.key is None:
        options = {"score_mod": score_mod is not None, "scale": scale is not None, "probabilities": not probabilities}
        chosen = [name for name, is_given in options.items() if is_given]
        if chosen:
            raise TypeError(f"weights are drawn as they are, without {' or '.join(chosen)}, which need query and key")
        return None
    check_score_mod_fits(score_mod, given.query.shape[1], given.query.device)
    return None if scale is None else checked_number("scale", scale, "a number, or None for 1 / sqrt(head dim)")


def _checked_limit(vmax: object, *, has_negative: bool) -> float | None:
    if isinstance(vmax, str) and vmax == "auto":
        return None
    return checked_number("vmax", vmax, 'a number, or "auto"', **({} if has_negative else {"above": 0}))


# -- drawing -----------------------------------------------------------------------------------------------------------


def _shown(values: Values) -> np.ndarray:
    """The values that have a colour of the scale."""
    return values.value[~values.hidden & values.value.isfinite()].numpy()


def _draw(frame: Frame, axes: "Axes", cells: Cells, values: Values, scale: Scale) -> Any:
    """Values over hatches: the background is seen where nothing is drawn."""
    palette = palette_of(frame.figure)  # type: ignore[arg-type]
    axes.patch.set(facecolor=palette.ground, edgecolor=palette.hatch, hatch="////", linewidth=0)
    hidden, unknown = values.hidden.numpy(), values.value.isnan().numpy()
    colours = load_matplotlib().colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    shown = np.ma.masked_array(np.nan_to_num(values.value.numpy()), mask=hidden | unknown)
    how: dict[str, Any] = {"interpolation": "nearest", "interpolation_stage": "data", "zorder": 2}
    if max(values.value.shape) > 200:
        how |= {"interpolation": "antialiased", "interpolation_stage": "rgba"}
    image = draw_cells(frame, axes, cells, shown, cmap=colours, vmin=scale.low, vmax=scale.high, **how)
    for colour, where in ((_NOT_FINITE, values.not_finite.numpy()), (palette.blank, _blank(values))):
        if where.any():
            one = load_matplotlib().colors.ListedColormap([colour]).with_extremes(bad=(0, 0, 0, 0))
            draw_cells(frame, axes, cells, np.ma.masked_array(np.zeros(where.shape), mask=~where), cmap=one, **how)
    _cross_out(axes, cells, values, palette.hatch, axes.figure.get_facecolor())
    return image


def _blank(values: Values) -> np.ndarray:
    """The cells with a visible pair of which none was computed."""
    return (~values.hidden & values.value.isnan() & ~values.not_finite).numpy()


def _cross_out(axes: "Axes", cells: Cells, values: Values, hatch: str, ground: Any) -> None:
    rectangle = load_matplotlib().patches.Rectangle
    for place in values.fully_masked.nonzero()[:, 0].tolist():
        corner = int(cells.kv_offset) - 0.5, int(cells.q_offset) + place * cells.q_block - 0.5
        high = min(cells.q_block, cells.q_len - place * cells.q_block)
        how = {"facecolor": ground, "edgecolor": hatch, "hatch": "xxx", "linewidth": 0, "zorder": 2.1}
        axes.add_patch(rectangle(corner, cells.kv_len, high, **how))


def _add_bar(frame: Frame, image: Any, name: str, scale: Scale) -> None:
    panels = [panel.axes for panel in frame.panels]
    if len(panels) == 1 and frame.is_own:
        beside = panels[0].inset_axes((1 + 0.15 / frame.width, 0, 0.14 / frame.width, 1))
        bar = frame.figure.colorbar(image, cax=beside, extend=scale.extend)
    else:
        bar = frame.figure.colorbar(image, ax=panels, extend=scale.extend, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    if (
        not 1e-4 <= max(abs(scale.low), abs(scale.high)) < 1e5
    ):  # a power of ten above the bar would lie on the keys' labels
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.set_label(name, fontsize=10)
    bar.ax.tick_params(labelsize=9, length=2.5, color="0.5")


def _handles(frame: Frame, found: list[Values]) -> "list[Patch]":
    palette = palette_of(frame.figure)  # type: ignore[arg-type]
    ground = frame.figure.get_facecolor()
    has = {
        "hidden": any(bool((values.hidden & ~values.fully_masked[:, None]).any()) for values in found),
        "query sees nothing": any(bool(values.fully_masked.any()) for values in found),
        "not finite": any(bool(values.not_finite.any()) for values in found),
        "visible, not computed": any(bool(_blank(values).any()) for values in found),
    }
    looks: dict[str, tuple[Any, dict[str, Any]]] = {
        "hidden": (palette.ground, {"edgecolor": palette.hatch, "hatch": "////"}),
        "query sees nothing": (ground, {"edgecolor": palette.hatch, "hatch": "xxx"}),
        "not finite": (_NOT_FINITE, {}),
        "visible, not computed": (palette.blank, {}),
    }
    return [patch(looks[word][0], word, **looks[word][1]) for word, there in has.items() if there]


def _caption(cells: Cells, values: Values) -> str | None:
    if cells.q_block == cells.kv_block == 1:
        return None
    words = f"a cell is the mean of {size_in_words(cells)} pairs"
    if values.per_row < cells.q_block:
        words += f"; {values.per_row} of {cells.q_block} queries computed"
    return words
