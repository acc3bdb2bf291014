"""The frame around pictures of masks: panels for batch rows and heads, axes of positions, titles and legends."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from maskloom.show.figures import checked_axes, checked_size, checked_title, load_matplotlib, new_figure, panel_size
from maskloom.show.labels import both_labels, keys_on_top, label_positions, literal, room_of
from maskloom.show.measure.selection import Span, Which, span_of
from maskloom.show.measure.shares import pairs_along
from maskloom.show.measure.source import Cells, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.patches import Patch

MOST_PANELS = 16
"""Maximum number of batch rows and heads side by side."""

_SMALL = 2.0  # inches of a panel among several
_WITH_TOKENS = 13.0  # and of one with tokens


class Panel(NamedTuple):
    """The axes of one batch row and head."""

    axes: "Axes"
    row: int
    head: int


@dataclass(frozen=True)
class Frame:
    """The panels of a picture.

    Attributes:
        width, height: inches of the drawing in a panel.
        left_out: how many batch rows and heads, in pairs, are not drawn.
        is_own: whether the figure was made here; else the user gave axes.
        title: the user's, if there is one.
    """

    figure: "Figure | SubFigure"
    panels: list[Panel]
    queries: range
    keys: range
    labels: tuple[list[str] | None, list[str] | None]
    width: float
    height: float
    left_out: int
    is_own: bool
    title: str | None

    def label(self, names: tuple[str, str] = ("query", "key")) -> None:
        """Label the axes of all panels; panels inside the grid have no ticks."""
        for panel in self.panels:
            axes = panel.axes
            keys_on_top(axes)
            places = axes.get_subplotspec() if self.is_own else None
            first_column = places is None or places.is_first_col()
            first_row = places is None or places.is_first_row()
            for axis, name, span, labels, room, shown in (
                (axes.yaxis, names[0], self.queries, self.labels[0], self.height, first_column),
                (axes.xaxis, names[1], self.keys, self.labels[1], self.width, first_row),
            ):
                if shown:
                    label_positions(axis, name, span, labels, room)
                else:
                    axis.set_ticks([])

    def entitle(self, source: Source, what: str | None = None) -> None:
        """Say what is drawn: by default the mask, the batch row and the head, and how many of them there are."""
        title = self.title
        if len(self.panels) > 1:
            for panel in self.panels:
                literal([panel.axes.set_title(name_of(source, panel.row, panel.head), fontsize=8.5)])
        if title is None:
            title = _wrapped(what or source.title, self.width * max(1, min(4, len(self.panels))))
            if len(self.panels) == 1:
                _, row, head = self.panels[0]
                title += f"\n{source.batch.name(row)}, {source.heads.name(head)}"
            elif self.left_out:
                title += f"\nthe first {len(self.panels)}, and {self.left_out} more"
        if not title:
            return
        if self.is_own:
            literal([self.figure.suptitle(title, fontsize=10)])
        else:
            literal([self.panels[0].axes.set_title(title, fontsize=10)])

    def explain(self, handles: "Sequence[Patch]", caption: str | None = None) -> None:
        """A legend below, with a caption."""
        if not handles and not caption:
            return
        how: dict[str, Any] = {"handles": list(handles), "title": caption, "frameon": False, "fontsize": 9}
        how |= {"title_fontsize": 8.5, "handleheight": 1.2, "ncols": 2 if len(handles) == 4 else 3}
        if self.is_own:
            self.figure.legend(loc="outside lower center", **how)
        else:
            self.panels[0].axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), **how)


def frame_of(
    source: Source,
    *,
    rows: Span,
    keys: Span,
    batch: Which,
    heads: Which,
    tokens: Sequence[str] | None,
    key_tokens: Sequence[str] | None,
    ax: "Axes | None",
    title: str | None,
    size: float = 5.5,
    room: tuple[float, float] = (0.9, 1.25),
) -> Frame:
    """Axes for every batch row and head that is drawn.

    Args:
        size: maximum inches of the longer side of a panel.
        room: inches around the panels, across and down.
    """
    ax, title, size = checked_axes(ax), checked_title(title), checked_size(size)
    queries, key_span = span_of("rows", rows, source.q_len), span_of("keys", keys, source.kv_len)
    labels = both_labels(tokens, key_tokens, source.q_len, source.kv_len)
    pairs = [(row, head) for row in source.batch.chosen(batch) for head in source.heads.chosen(heads)]
    drawn = pairs[:MOST_PANELS]
    if ax is not None and len(pairs) > 1:
        raise ValueError(f"ax takes one batch row and head; got {len(pairs)} of them")
    cell = 0.24 if any(labels) or max(len(queries), len(key_span)) > 24 else 0.3
    longest = _SMALL if len(pairs) > 1 else max(size, _WITH_TOKENS) if any(labels) else size
    width, height = panel_size(len(queries), len(key_span), cell=cell, longest=longest, least=1.0)
    left_out = len(pairs) - len(drawn)
    if ax is not None:
        width, height = _inches(ax)
        figure, axes = ax.figure, [ax]
    else:
        figure, axes = _grid(len(drawn), width, height, (room[0] + room_of(labels[0]), room[1] + room_of(labels[1])))
    panels = [Panel(at, *pair) for at, pair in zip(axes, drawn, strict=True)]
    return Frame(figure, panels, queries, key_span, labels, width, height, left_out, ax is None, title)


def _grid(count: int, width: float, height: float, room: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    columns = math.ceil(count / math.ceil(count / 4))
    lines = math.ceil(count / columns)
    figure = new_figure(columns * (width + 0.25) + room[0], lines * (height + (0.2 if lines == 1 else 0.35)) + room[1])
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def _inches(ax: "Axes") -> tuple[float, float]:
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    return max(box.width, 0.5), max(box.height, 0.5)


def draw_cells(frame: Frame, axes: "Axes", cells: Cells, image: Any, **how: Any) -> Any:
    """An image of cells, (rows, columns) or with colours, at their positions; a cell that the end cuts is drawn smaller."""
    rows, columns = (len(along) for along in pairs_along(cells))
    top, left = int(cells.q_offset) - 0.5, int(cells.kv_offset) - 0.5
    extent = (left, left + columns * cells.kv_block, top + rows * cells.q_block, top)
    image = _even(image, (rows, columns))
    # where cells are smaller than pixels, colours are mixed: mixing numbers would give other numbers
    smooth = {"interpolation": "antialiased", "interpolation_stage": "rgba"}
    drawn = axes.imshow(image, extent=extent, aspect="auto", **(smooth | how))
    axes.set_xlim(left, left + cells.kv_len)
    axes.set_ylim(top + cells.q_len, top)
    axes.set_aspect(frame.height / frame.width * cells.kv_len / cells.q_len if frame.is_own else "auto")
    inch = min(frame.width / cells.kv_len * cells.kv_block, frame.height / cells.q_len * cells.q_block)
    _part(axes, cells, inch)
    return drawn


def _even(image: Any, sizes: tuple[int, int]) -> Any:
    """The same image with about as many rows as columns: where one side is drawn smaller, matplotlib would blur the other."""
    for axis, (size, other) in enumerate((sizes, sizes[::-1])):
        image = image.repeat(max(1, other // size), axis)
    return image


def _part(axes: "Axes", cells: Cells, inch: float) -> None:
    """Thin lines between cells, if the cells are large enough for them."""
    if inch < 0.1:
        return
    top, left = int(cells.q_offset) - 0.5, int(cells.kv_offset) - 0.5
    axes.set_xticks([left + at for at in range(cells.kv_block, cells.kv_len, cells.kv_block)], minor=True)
    axes.set_yticks([top + at for at in range(cells.q_block, cells.q_len, cells.q_block)], minor=True)
    axes.set_axisbelow(False)  # draws the lines over images too
    axes.grid(which="minor", color=axes.figure.get_facecolor(), linewidth=min(1.2, 6 * inch))
    axes.tick_params(which="minor", length=0)


def patch(colour: Any, label: str, **how: Any) -> "Patch":
    """An entry of a legend."""
    return load_matplotlib().patches.Patch(facecolor=colour, label=label, **how)


def number(count: int) -> str:
    """A number with thin gaps between thousands."""
    return f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")


def size_in_words(cells: Cells) -> str:
    """The size of a cell in pairs."""
    return f"{min(cells.q_block, cells.q_len)} × {min(cells.kv_block, cells.kv_len)}"


def name_of(source: Source, row: int, head: int) -> str:
    """The name of one among several batch rows and heads: what is the same for all is not said."""
    parts = [members.name(index) for members, index in ((source.batch, row), (source.heads, head)) if members.varies]
    return ", ".join(parts) or source.batch.name(row)


def _wrapped(text: str, width: float) -> str:
    """A text in few lines of a picture ``width`` inches wide; each of its own lines gets at most two."""
    most = max(40, int((width + 1) * 13))
    return "\n".join(
        part for line in text.split("\n") for part in textwrap.wrap(line, most, max_lines=2, placeholder=" …")
    )
