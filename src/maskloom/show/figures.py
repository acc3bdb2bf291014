"""What all pictures share: matplotlib itself, places along an axis, text that is taken literally, and saving.

matplotlib is imported when the first picture is drawn. Figures are made directly, without pyplot, so that no backend is
chosen and no figure is kept alive by a global list.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SUFFIXES = (".png", ".svg")
LABEL_LIMIT = 16
"""Characters of a token's label; longer ones are abbreviated."""

# Fonts with letters that matplotlib's own font lacks, tried in this order behind it where they are installed.
_MORE_LETTERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Nirmala UI", "Noto Sans Thai", "Noto Emoji", "Arial Unicode MS",
)  # fmt: skip


def load_matplotlib() -> ModuleType:
    """matplotlib with the modules that pictures need, pyplot not among them."""
    import matplotlib
    import matplotlib.colors
    import matplotlib.figure
    import matplotlib.font_manager
    import matplotlib.patches

    return matplotlib


def save_figure(figure: "Figure", path: str | os.PathLike[str], *, dpi: float = 200) -> Path:
    """Write a figure to a file, whole or not at all: an existing file is replaced only when the new one is complete.

    Args:
        path: where to; its suffix, .png or .svg, says as what. Missing parent directories are made.
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
    metadata = {"Date": None} if suffix == ".svg" else None  # no time of day in the file

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
    # not tempfile: its files are readable by their owner alone, and so would be the picture
    unfinished = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


# -- places along an axis ----------------------------------------------------------------------------------------------


def panel_size(rows: float, columns: float, *, cell: float, longest: float, least: float) -> tuple[float, float]:
    """Width and height in inches for ``rows`` × ``columns`` cells: square where both sides come out at ``least``."""
    cell = min(cell, longest / max(rows, columns))
    return max(cell * columns, least), max(cell * rows, least)


def spaced(places: Sequence[int], room: float, *, apart: float) -> list[int]:
    """Those of ``places`` to label: multiples of 1, 2 or 5 times a power of ten, and the last.

    Args:
        places: whole numbers in rising order, drawn evenly (but for a gap) over ``room`` inches.
        apart: the least distance of two labels, in inches.
    """
    steps = (digit * 10**power for power in range(19) for digit in (1, 2, 5))
    step = next(step for step in steps if step * room >= apart * len(places))
    return [place for place in places if place % step == 0 and places[-1] - place >= step] + [places[-1]]


# -- text --------------------------------------------------------------------------------------------------------------


def literal(texts: "Iterable[Text]") -> None:
    """Draw texts as they are written: ``$`` is a dollar, and letters come from every suitable font installed."""
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
    """A token as an axis label: unprintable characters escaped, blanks made visible at the ends, the end cut if long."""
    inner = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token).strip(" ")
    blanks = len(token) - len(token.lstrip(" ")), len(token) - len(token.rstrip(" "))
    label = "␣" * blanks[0] + (inner + "␣" * blanks[1] if inner else "")
    return label if len(label) <= LABEL_LIMIT else label[: LABEL_LIMIT - 1] + "…"


def label_axis(axis: "Axis", name: str, ticks: Sequence[float], labels: Sequence[object], *, size: float = 9) -> None:
    """Name an axis and label the places ``ticks`` on it."""
    axis.set_ticks(ticks, labels=[str(label) for label in labels])
    literal(axis.get_ticklabels())
    axis.set_tick_params(labelsize=size, length=2.5, color="0.5")
    axis.set_label_text(name, fontsize=10)


def keys_on_top(axes: "Axes") -> None:
    """Keys along the top and queries down the side, as masks are drawn in the docstrings; no frame."""
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)


def part_cells(axes: "Axes", rows: int, columns: int, cell: float) -> None:
    """Fine lines between cells, ``cell`` inches wide, where they are large enough to be told apart by them."""
    if cell < 0.1:
        return
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    axes.set_axisbelow(False)  # the lines lie over images too
    axes.grid(which="minor", color="white", linewidth=min(1.2, 6 * cell))
    axes.tick_params(which="minor", length=0)
