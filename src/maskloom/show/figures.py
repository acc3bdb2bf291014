"""Shared code of all pictures: matplotlib, colours, sizes, and saving.

matplotlib is imported when the first picture is drawn. Figures are made directly, without pyplot, so that no backend is
chosen and no global list keeps figures alive.
"""

import math
import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from maskloom.core.words import brief
from maskloom.errors import needed_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


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


def new_figure(width: float, height: float) -> "Figure":
    """A figure of this size in inches; its colours are those of the current style."""
    load_matplotlib()
    from maskloom.show.picture import Picture

    figure = Picture(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06)  # type: ignore[call-arg, union-attr]
    return figure


# -- colours -----------------------------------------------------------------------------------------------------------


class Palette(NamedTuple):
    """The colours of pictures on a light or a dark ground. They differ in lightness, and for every kind of colour vision."""

    hidden: str
    partial: str
    visible: str
    first: str  # only the first of two masks shows it
    second: str
    ground: str  # of hidden cells under hatches: grey, which no scale of values has
    hatch: str
    blank: str  # visible, and no value is known

    @property
    def by_state(self) -> tuple[str, str, str]:
        """The colours of skipped, partial and full tiles."""
        return self.hidden, self.partial, self.visible


LIGHT = Palette("#e9edf0", "#f0a630", "#17406d", "#d95f02", "#1f9fd8", "#ececec", "#c4c4c4", "#cfd8e3")
DARK = Palette("#2d333b", "#c97b12", "#9fd0ff", "#ff9a4d", "#3aa0dc", "#2e2e2e", "#5c5c5c", "#46505c")


def palette_of(figure: "Figure") -> Palette:
    """The colours for the ground of a figure, as the style of matplotlib (``dark_background``, say) has set it."""
    red, green, blue, alpha = load_matplotlib().colors.to_rgba(figure.get_facecolor())
    is_dark = alpha > 0 and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    return DARK if is_dark else LIGHT


def mixed(low: str, high: str, part: float) -> Any:
    """The colour between two: red, green and blue from 0 to 1."""
    colors = load_matplotlib().colors
    return tuple(a + (b - a) * part for a, b in zip(colors.to_rgb(low), colors.to_rgb(high), strict=True))


def panel_size(rows: float, columns: float, *, cell: float, longest: float, least: float) -> tuple[float, float]:
    """Width and height in inches for ``rows`` × ``columns`` positions; both are at least ``least``."""
    cell = min(cell, longest / max(rows, columns))
    return max(cell * columns, least), max(cell * rows, least)


# -- what a caller gives -----------------------------------------------------------------------------------------------


def checked_axes(ax: Any) -> "Axes | None":
    """Axes of a caller to draw on, or None.

    Raises:
        TypeError: not one axes. ValueError: axes that no figure has any more, or that are no plane with x and y.
    """
    if ax is None:
        return None
    with needed_by("a picture"):
        from matplotlib.axes import Axes
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is one matplotlib Axes; got {type(ax).__name__}")
    if ax.figure is None:
        raise ValueError("ax is in no figure: it was removed")
    if ax.name != "rectilinear":
        raise ValueError(f"ax is a plane with x and y; got {ax.name!r} axes")
    return ax


def checked_size(size: Any) -> float:
    """Maximum inches of the longer side.

    Raises:
        TypeError: not a number. ValueError: not a positive one, or above `MOST_INCHES`.
    """
    return checked_number("size", size, "a number of inches", above=0, most=MOST_INCHES)


MOST_INCHES = 200.0
"""The longest side: a notebook draws it with as many pixels as matplotlib can."""


def checked_title(title: Any, argument: str = "title") -> str | None:
    """The title of a picture, or None for its own. Errors call it ``argument``.

    Raises:
        TypeError: not text. ValueError: text with half of a surrogate pair, which no font and no file has.
    """
    if title is None:
        return None
    if not isinstance(title, str):
        raise TypeError(f"{argument} is text; got {type(title).__name__}: {brief(title)}")
    if any("\ud800" <= letter <= "\udfff" for letter in title):
        raise ValueError(f"{argument} is text that UTF-8 can write; got {brief(title)}")
    return title


MOST = 1e300
"""The largest number of a picture: matplotlib's own arithmetic on numbers close to the largest float overflows."""


def checked_number(name: str, value: Any, what: str, *, above: float = -MOST, most: float = MOST) -> float:
    """A number of Python or NumPy as a float. Errors call it ``what``.

    Raises:
        TypeError: not a number. ValueError: not above ``above``, above ``most``, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {what}; got {brief(value)}")
    try:
        number = float(value)
    except OverflowError:  # an int has no largest
        number = math.inf
    if not above < number <= most:
        raise ValueError(f"{name} is {what}, above {above:g} and at most {most:g}; got {brief(value)}")
    return number


# -- files -------------------------------------------------------------------------------------------------------------


def save_figure(figure: "Figure", path: str | os.PathLike[str], *, dpi: float = 200) -> Path:
    """Write a figure to a file atomically: an existing file is replaced only when the new one is complete.

    Args:
        path: the file; its suffix, .png, .svg or .pdf, is the format. Missing parent directories are made.
        dpi: pixels per inch of a PNG, and of the images in the others; above 5, and so few that the figure has at most
            32,768 pixels along a side and 268 million in all.

    Returns:
        ``path`` as a Path.

    Raises:
        TypeError: no figure, no path, or a dpi that is no number. ValueError: another suffix, or another dpi. OSError:
            ``path`` cannot be written; the error names it.
    """
    if not (callable(getattr(figure, "savefig", None)) and callable(getattr(figure, "get_size_inches", None))):
        raise TypeError(
            f"figure is a matplotlib Figure, which the functions of maskloom.show return; got {brief(figure)}"
        )
    path, dpi = file_of(path), _checked_dpi(dpi, *figure.get_size_inches())
    suffix = checked_suffix(path)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)  # no date in the file

    def write(unfinished: Path) -> None:
        with open(unfinished, "xb") as file:
            figure.savefig(file, format=suffix[1:], dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)

    write_whole("the figure", path, write)
    return path


_LEAST_DPI = 5  # letters have no pixel below
_MOST_ALONG, _MOST_PIXELS = 1 << 15, 1 << 28  # matplotlib takes 2¹⁶ along a side, and four bytes for each


def _checked_dpi(dpi: Any, width: float, height: float) -> float:
    """Pixels per inch of a figure of ``width`` × ``height`` inches. Errors as in `save_figure`."""
    longest, area = max(width, height, 0.01), max(width * height, 0.01)  # matplotlib has figures without a width
    most = min(_MOST_ALONG / longest, math.sqrt(_MOST_PIXELS / area))
    what = f"a number of pixels per inch (of {width:.1f} × {height:.1f} inches)"
    return checked_number("dpi", dpi, what, above=_LEAST_DPI, most=math.floor(most))


def file_of(path: Any) -> Path:
    """The path of a picture.

    Raises:
        TypeError: neither text nor a Path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a .png, .svg or .pdf file, text or a Path; got {type(path).__name__}: {brief(path)}")
    return Path(path)


def checked_suffix(path: Path) -> str:
    """The suffix of a picture, in small letters.

    Raises:
        ValueError: another one.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"a figure is saved as .png, .svg or .pdf; got suffix {path.suffix!r} in {str(path)!r}")
    return suffix


def write_whole(what: str, path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` write a new file, and only then put it at ``path``. An OSError names ``what`` and the path."""
    # not tempfile: only the owner could read its files, and so the picture
    unfinished = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {what}: {error.strerror or error}", str(path)) from error
