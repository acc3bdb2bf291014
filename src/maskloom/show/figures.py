"""Shared code of all pictures: matplotlib, places along an axis, literal text, and saving.

matplotlib is imported when the first picture is drawn. Figures are made directly, without pyplot, so that no backend is
chosen and no global list keeps figures alive.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from maskloom.errors import needed_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SUFFIXES = (".png", ".svg")
LABEL_LIMIT = 16
"""Maximum characters of a token's label; longer labels are abbreviated."""

# Fonts with letters that matplotlib's own font lacks; those installed are tried after it, in this order.
_MORE_LETTERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Nirmala UI", "Noto Sans Thai", "Noto Emoji", "Arial Unicode MS",
)  # fmt: skip


def load_matplotlib() -> ModuleType:
    """matplotlib with the modules that pictures need, without pyplot.

    Raises:
        MissingPackageError: it is not installed; the message has the line that installs it.
    """
    with needed_by("a picture"):
        import matplotlib
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.font_manager
        import matplotlib.patches

    return matplotlib


def save_figure(figure: "Figure", path: str | os.PathLike[str], *, dpi: float = 200) -> Path:
    """Write a figure to a file atomically: an existing file is replaced only when the new one is complete.

    Args:
        path: the file; its suffix, .png or .svg, is the format. Missing parent directories are made.
        dpi: pixels per inch of a PNG, and of the images in an SVG.

    Returns:
        ``path`` as a Path.

    Raises:
        ValueError: another suffix.
        OSError: ``path`` cannot be written; the error names it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"a figure is saved as {' or '.join(SUFFIXES)}; got suffix {path.suffix!r} in {str(path)!r}")
    metadata = {"Date": None} if suffix == ".svg" else None  # no date in the file

    def write(unfinished: Path) -> None:
        with open(unfinished, "xb") as file:
            figure.savefig(file, format=suffix[1:], dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, write)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the figure: {error.strerror or error}", str(path)) from error
    return path


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    # not tempfile: only the owner could read its files, and so the picture
    unfinished = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


# -- places along an axis ----------------------------------------------------------------------------------------------


def panel_size(rows: float, columns: float, *, cell: float, longest: float, least: float) -> tuple[float, float]:
    """Width and height in inches for ``rows`` × ``columns`` cells; both are at least ``least``."""
    cell = min(cell, longest / max(rows, columns))
    return max(cell * columns, least), max(cell * rows, least)


def spaced(places: Sequence[int], room: float, *, apart: float) -> list[int]:
    """The ``places`` to label: multiples of 1, 2 or 5 times a power of ten, and the last place.

    Args:
        places: integers in ascending order, drawn evenly (except for a gap) over ``room`` inches.
        apart: the minimum distance between two labels, in inches.
    """
    steps = (digit * 10**power for power in range(19) for digit in (1, 2, 5))
    step = next(step for step in steps if step * room >= apart * len(places))
    return [place for place in places if place % step == 0 and places[-1] - place >= step] + [places[-1]]


# -- text --------------------------------------------------------------------------------------------------------------


def literal(texts: "Iterable[Text]") -> None:
    """Draw texts literally: ``$`` is a dollar, and all suitable installed fonts are used."""
    matplotlib = load_matplotlib()
    texts = list(texts)
    if all(text.get_text().isascii() for text in texts):
        families = []
    else:
        installed = set(matplotlib.font_manager.get_font_names())
        families = [family for family in _MORE_LETTERS if family in installed]
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])


def token_label(token: str) -> str:
    """A token as an axis label: unprintable characters escaped, blanks at the ends made visible, cut if long."""
    inner = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token).strip(" ")
    blanks = len(token) - len(token.lstrip(" ")), len(token) - len(token.rstrip(" "))
    label = "␣" * blanks[0] + (inner + "␣" * blanks[1] if inner else "")
    return label if len(label) <= LABEL_LIMIT else label[: LABEL_LIMIT - 1] + "…"


def label_axis(axis: "Axis", name: str, ticks: Sequence[float], labels: Sequence[object], *, size: float = 9) -> None:
    """Name an axis, and label the places ``ticks`` on it."""
    axis.set_ticks(ticks, labels=[str(label) for label in labels])
    literal(axis.get_ticklabels())
    axis.set_tick_params(labelsize=size, length=2.5, color="0.5")
    axis.set_label_text(name, fontsize=10)


def keys_on_top(axes: "Axes") -> None:
    """Keys along the top and queries down the side, as in the drawings of docstrings; no frame."""
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)


def part_cells(axes: "Axes", rows: int, columns: int, cell: float) -> None:
    """Thin lines between cells, if the cells, ``cell`` inches wide, are large enough for them."""
    if cell < 0.1:
        return
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    axes.set_axisbelow(False)  # draws the lines over images too
    axes.grid(which="minor", color="white", linewidth=min(1.2, 6 * cell))
    axes.tick_params(which="minor", length=0)
