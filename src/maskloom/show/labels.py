"""Ticks and text along the axes of pictures: round numbers, or tokens of any script, drawn literally."""

import functools
import warnings
from collections.abc import Iterable, Sequence, Sized
from typing import TYPE_CHECKING

from torch import Tensor

from maskloom.core.words import brief
from maskloom.show.figures import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.text import Text

LABEL_LIMIT = 16
"""Maximum characters of a token's label; longer labels are abbreviated."""

# Fonts with letters that matplotlib's own font lacks; those installed are tried after it, in this order.
_MORE_LETTERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Nirmala UI", "Noto Sans Thai", "Noto Emoji", "Arial Unicode MS",
)  # fmt: skip

_APART = 0.2  # inches between two numbers, one below the other
_TOKEN_APART = 0.13  # and between two tokens


def spaced(places: range, room: float, *, apart: float) -> list[int]:
    """The ``places`` to label: the first, all multiples of 1, 2 or 5 times a power of ten, and the last, where there is room.

    Args:
        places: positions, all in one piece, drawn evenly over ``room`` inches.
        apart: the minimum distance between two labels, in inches.
    """
    steps = (digit * 10**power for power in range(19) for digit in (1, 2, 5))
    inch = room / len(places)
    step = next(step for step in steps if step * inch >= apart or step >= len(places))
    found = list(range(-(-places[0] // step) * step, places[-1] + 1, step))
    if not found or (found[0] - places[0]) * inch >= apart:
        found.insert(0, places[0])
    if (places[-1] - found[-1]) * inch >= apart:
        found.append(places[-1])
    return found


def token_labels(name: str, tokens: Sequence[str] | None, length: int) -> list[str] | None:
    """A label for each position. Errors as in `checked_tokens`."""
    texts = checked_tokens(name, tokens, length)
    return None if texts is None else [token_label(token) for token in texts]


def checked_tokens(name: str, tokens: Sequence[str] | None, length: int) -> list[str] | None:
    """The tokens as text, one for each position.

    Raises:
        TypeError: one string, or no sequence. ValueError: another number of labels.
    """
    if tokens is None:
        return None
    if isinstance(tokens, str):
        raise TypeError(f"{name} is a sequence of labels, one for each position; got one string: {brief(tokens)}")
    if not isinstance(tokens, Sized):
        what = f"{type(tokens).__name__}: {brief(tokens)}"
        raise TypeError(f"{name} is a sequence of labels, one for each position; got {what}")
    if len(tokens) != length:
        raise ValueError(f"{name} has one label for each of {length} positions; got {len(tokens)}")
    return [str(token) for token in (tokens.tolist() if isinstance(tokens, Tensor) else tokens)]


def both_labels(
    tokens: Sequence[str] | None, key_tokens: Sequence[str] | None, q_len: int, kv_len: int
) -> tuple[list[str] | None, list[str] | None]:
    """Labels of queries and of keys: ``tokens`` are for both if there are as many keys."""
    queries = token_labels("tokens", tokens, q_len)
    if key_tokens is None and q_len == kv_len:
        return queries, queries
    return queries, token_labels("key_tokens", key_tokens, kv_len)


def token_label(token: str) -> str:
    """A token as an axis label: unprintable characters escaped, blanks at the ends made visible, cut if long."""
    inner = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token).strip(" ")
    blanks = len(token) - len(token.lstrip(" ")), len(token) - len(token.rstrip(" "))
    label = "␣" * blanks[0] + (inner + "␣" * blanks[1] if inner else "")
    return label if len(label) <= LABEL_LIMIT else label[: LABEL_LIMIT - 1] + "…"


def room_of(labels: list[str] | None) -> float:
    """The approximate size of labels beside the cells, in inches."""
    return 0.2 + 0.075 * max(map(len, labels)) if labels else 0.0


def label_positions(axis: "Axis", name: str, span: range, labels: list[str] | None, room: float) -> None:
    """Name an axis of positions, and label as many of them as there is room for, over ``room`` inches."""
    if labels is None:
        beside = 0.085 * len(str(span[-1])) + 0.13
        ticks = spaced(span, room, apart=beside if _is_across(axis) else _APART)
        label_axis(axis, name, ticks, ticks)
        return
    ticks = list(span) if room / len(span) >= _TOKEN_APART else spaced(span, room, apart=_TOKEN_APART)
    size = min(9.0, 72 * 0.85 * max(_TOKEN_APART, room / len(span)))
    label_axis(axis, name, ticks, [labels[tick] for tick in ticks], size=size)
    if _is_across(axis):
        axis.set_tick_params(labelrotation=90)


def _is_across(axis: "Axis") -> bool:
    return axis is axis.axes.xaxis


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


# -- letters -----------------------------------------------------------------------------------------------------------


def literal(texts: "Iterable[Text]") -> None:
    """Draw texts literally: ``$`` is a dollar, and all suitable installed fonts are used.

    One warning names the letters that no font has, and what to install.
    """
    texts = list(texts)
    letters = frozenset(letter for text in texts for letter in text.get_text() if not letter.isascii())
    families = _installed() if letters else ()
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
    missing = letters - _drawable(tuple(texts[0].get_fontfamily())) if letters else frozenset()
    if missing:
        _warn_of(missing)


def _warn_of(missing: frozenset[str]) -> None:
    some = "".join(sorted(missing)[:8])
    warnings.warn(
        f"no installed font has {len(missing)} of the letters, such as {some}: they are drawn as boxes. Install Noto fonts "
        "(on Debian and Ubuntu: apt install fonts-noto-cjk fonts-noto-core) and restart Python",
        UserWarning,
        stacklevel=2,
    )


@functools.cache
def _installed() -> tuple[str, ...]:
    names = set(load_matplotlib().font_manager.get_font_names())
    return tuple(family for family in _MORE_LETTERS if family in names)


@functools.cache
def _drawable(families: tuple[str, ...]) -> frozenset[str]:
    """The letters that a list of font families has."""
    manager, found = load_matplotlib().font_manager, set[int]()
    for family in families:
        file = manager.findfont(manager.FontProperties(family=[family]))
        found |= set(manager.get_font(file).get_charmap())
    return frozenset(map(chr, found))
