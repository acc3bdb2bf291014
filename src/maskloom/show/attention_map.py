"""`plot_attention`: the attention of one head, with hidden cells hatched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core.words import brief
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod
from maskloom.show.cells import Cells, attention_cells
from maskloom.show.figures import (
    keys_on_top,
    label_axis,
    literal,
    load_matplotlib,
    panel_size,
    part_cells,
    spaced,
    token_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

POSITIONS_SHOWN = 128
"""Maximum number of positions drawn along an axis; of a longer axis, the first and last 64 are drawn."""

_GAP = 4  # cells drawn in place of the omitted ones
_HIDDEN = {"facecolor": "#ececec", "edgecolor": "#c4c4c4", "hatch": "////"}
_FULLY_MASKED = {"facecolor": "#ffffff", "edgecolor": "#9a9a9a", "hatch": "xxx"}
_NOT_FINITE = {"facecolor": "#d81b60"}


def plot_attention(
    query: Tensor,
    key: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    probabilities: bool = True,
    batch_idx: int = 0,
    head_idx: int = 0,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """The attention of one head as a picture, queries down and keys across.

    Hidden cells are hatched in grey, outside the colour scale; the row of a fully masked query is cross-hatched; values
    that are not finite have a separate colour. With more than `POSITIONS_SHOWN` positions the middle is omitted, and
    the axis label says which part. The drawn values are exact: probabilities are over all keys, drawn or not.

    Args:
        query: (B, H, Q, D), floating point, on any device; half precision is computed in float32.
        key: (B, Hkv, K, D). H is a multiple of Hkv; query head h uses key-value head ``h // (H // Hkv)``.
        mask: a Mask, a mask_mod, a table as in `attend`, a BlockMask (its tables and its mask_mod together), or None.
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``, applied before the mask. Where it returns -inf, the cell
            is hidden.
        scale: by default ``1 / sqrt(D)``.
        probabilities: whether to draw probabilities, after the softmax, or scores, before it.
        batch_idx, head_idx: the batch row and the query head.
        tokens: Q labels of the queries; also of the keys if Q = K. Labels longer than 16 characters are cut.
        key_tokens: K labels of the keys, if they differ.
        title: by default the batch row and head.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        TypeError, ValueError: tensors, mask, indices or labels that do not fit each other.
    """
    down, across = _Side(_size(query)), _Side(_size(key))
    cells = attention_cells(
        query, key, mask, score_mod=score_mod, scale=scale, probabilities=probabilities,
        batch_idx=batch_idx, head_idx=head_idx, rows=down.positions, columns=across.positions,
    )  # fmt: skip
    query_labels = _labels("tokens", tokens, down)
    if key_tokens is None and down.length == across.length:
        key_tokens = tokens
    key_labels = _labels("key_tokens", key_tokens, across)

    cell = 0.36 if max(down.drawn, across.drawn) <= 24 else 0.24
    longest = 7.5 if query_labels is key_labels is None else 12.0
    width, height = panel_size(down.drawn, across.drawn, cell=cell, longest=longest, least=1.3)
    figure = load_matplotlib().figure.Figure(
        figsize=(width + 1.9 + _room(query_labels), height + 1.3 + _room(key_labels)), layout="constrained"
    )
    axes = figure.add_subplot()
    _draw_values(axes, cells, down, across, "probability" if probabilities else "score", width)
    axes.set_aspect(height / width * across.drawn / down.drawn)
    keys_on_top(axes)
    part_cells(axes, down.drawn, across.drawn, min(width / across.drawn, height / down.drawn))
    handles = [*_hide(axes, cells, down), *_mark_not_finite(axes, cells, down, across)]
    _leave_gaps(axes, down, across)
    _label_side(axes, "y", "query position", down, query_labels, height)
    _label_side(axes, "x", "key position", across, key_labels, width)
    literal([axes.set_title(title or f"batch row {batch_idx}, head {head_idx}", fontsize=11, pad=10)])
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, handleheight=1.3)
    return figure


# -- sides -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """The positions along an axis, and where each is drawn: position i at place i, or before it after a gap."""

    length: int

    @property
    def abbreviated(self) -> bool:
        return self.length > POSITIONS_SHOWN

    @property
    def drawn(self) -> int:
        """The number of places along the axis, with the places of the gap."""
        return POSITIONS_SHOWN + _GAP if self.abbreviated else self.length

    @property
    def left_out(self) -> range:
        """The omitted positions."""
        half = POSITIONS_SHOWN // 2
        return range(half, self.length - half) if self.abbreviated else range(0)

    @property
    def positions(self) -> list[int]:
        return [position for position in range(self.length) if position not in self.left_out]

    @property
    def places(self) -> list[int]:
        return [self.place(position) for position in self.positions]

    def place(self, position: int) -> int:
        behind = self.abbreviated and position >= self.left_out.stop
        return position - (len(self.left_out) - _GAP) if behind else position


def _size(tensor: Tensor) -> int:
    # attention_cells raises for tensors of another shape than (B, H, length, D), before anything is drawn
    return tensor.shape[2] if isinstance(tensor, Tensor) and tensor.ndim == 4 else 0


def _labels(name: str, tokens: Sequence[str] | None, side: _Side) -> list[str] | None:
    if tokens is None:
        return None
    if isinstance(tokens, str):
        raise TypeError(f"{name} is a sequence of labels, one for each position; got one string: {brief(tokens)}")
    if len(tokens) != side.length:
        raise ValueError(f"{name} has one label for each of {side.length} positions; got {len(tokens)}")
    return [token_label(str(token)) for token in tokens]


def _room(labels: list[str] | None) -> float:
    """The approximate size of labels beside the cells, in inches."""
    return 0.2 + 0.075 * max(map(len, labels)) if labels else 0.3


def _label_side(axes: "Axes", which: str, name: str, side: _Side, labels: list[str] | None, room: float) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if side.abbreviated:
        name = f"{name} ({side.left_out[0]} to {side.left_out[-1]} left out)"
    if labels is None:
        ticks = spaced(side.positions, room, apart=0.3)
        label_axis(axis, name, [side.place(tick) for tick in ticks], ticks)
        return
    size = min(9.0, 72 * 0.85 * room / side.drawn)
    label_axis(axis, name, side.places, [labels[position] for position in side.positions], size=size)
    if which == "x":
        axes.tick_params(axis="x", rotation=90)


# -- cells -------------------------------------------------------------------------------------------------------------


def _draw_values(axes: "Axes", cells: Cells, down: _Side, across: _Side, name: str, width: float) -> None:
    shown = _laid_out(cells.values.numpy(), ~cells.hidden & cells.values.isfinite(), down, across)
    low, high = (shown.min(), shown.max()) if shown.count() else (0.0, 1.0)
    if name == "probability":
        low = 0.0
    if low == high:
        low, high = low - 0.5, high + 0.5
    colours = load_matplotlib().colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest", zorder=2)
    beside = axes.inset_axes((1 + 0.15 / width, 0, 0.14 / width, 1))
    bar = axes.figure.colorbar(image, cax=beside)
    bar.outline.set_visible(False)
    bar.set_label(name, fontsize=10)
    bar.ax.tick_params(labelsize=9, length=2.5, color="0.5")


def _hide(axes: "Axes", cells: Cells, down: _Side) -> "list[Patch]":
    """Hatch hidden cells: the background shows wherever no value is drawn. Returns the legend's handles."""
    patches = load_matplotlib().patches
    axes.patch.set(**_HIDDEN, linewidth=0)
    for place, sees_nothing in zip(down.places, cells.fully_masked.tolist(), strict=True):
        if sees_nothing:
            left, right = axes.get_xlim()
            axes.add_patch(
                patches.Rectangle((left, place - 0.5), right - left, 1, **_FULLY_MASKED, linewidth=0, zorder=2.1)
            )
    handles = []
    if (cells.hidden & ~cells.fully_masked[:, None]).any():
        handles.append(patches.Patch(**_HIDDEN, label="hidden"))
    if cells.fully_masked.any():
        handles.append(patches.Patch(**_FULLY_MASKED, label="query sees nothing"))
    return handles


def _mark_not_finite(axes: "Axes", cells: Cells, down: _Side, across: _Side) -> "list[Patch]":
    matplotlib = load_matplotlib()
    wrong = ~cells.hidden & ~cells.values.isfinite()
    if not wrong.any():
        return []
    marks = _laid_out(np.zeros(tuple(wrong.shape)), wrong, down, across)
    colours = matplotlib.colors.ListedColormap([_NOT_FINITE["facecolor"]]).with_extremes(bad=(0, 0, 0, 0))
    axes.imshow(marks, cmap=colours, interpolation="nearest", zorder=2, aspect=axes.get_aspect())
    return [matplotlib.patches.Patch(**_NOT_FINITE, label="not finite")]


def _laid_out(
    values: np.ndarray, shown: Tensor, down: _Side, across: _Side
) -> "np.ma.MaskedArray":  # a string, because numpy loads this module on demand
    """Cells at the places where they are drawn; masked where they are not ``shown``, and in gaps."""
    cells = np.ix_(down.places, across.places)
    table = np.zeros((down.drawn, across.drawn))
    mask = np.ones_like(table, dtype=bool)
    table[cells] = np.where(shown, values, 0.0)
    mask[cells] = ~shown.numpy()
    return np.ma.masked_array(table, mask=mask)


def _leave_gaps(axes: "Axes", down: _Side, across: _Side) -> None:
    """Draw blanks with dots over the places of omitted positions."""
    rectangle = load_matplotlib().patches.Rectangle
    start = POSITIONS_SHOWN // 2
    blank = {"facecolor": axes.figure.get_facecolor(), "linewidth": 0, "zorder": 4}
    dots: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 14, "color": "0.4", "zorder": 5}
    middle = start + _GAP / 2 - 0.5
    if down.abbreviated:
        axes.add_patch(rectangle((-0.5, start - 0.5), across.drawn, _GAP, **blank))
    if across.abbreviated:
        axes.add_patch(rectangle((start - 0.5, -0.5), _GAP, down.drawn, **blank))
    for part in (0.25, 0.75):
        if down.abbreviated:
            axes.text(part * across.drawn - 0.5, middle, "⋮", **dots)
        if across.abbreviated:
            axes.text(middle, part * down.drawn - 0.5, "⋯", **dots)
