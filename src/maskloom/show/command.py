"""What `maskloom show` asks for: options as text, and the picture of them in a terminal or in a file."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskloom.masks.algebra import Mask
from maskloom.show.measure.lengths import own_lengths
from maskloom.show.measure.selection import Members, Which
from maskloom.show.measure.source import source_of
from maskloom.show.text import Terminal, picture

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_LENGTH = 32
"""The number of queries of a mask that has no length of its own."""

FIRST = "0"
"""The batch row, and the head, that is shown if none is asked for."""

_MOST_IN_TEXT = 16


@dataclass(frozen=True)
class Asked:
    """The options of `maskloom show`; rows and keys as ``start:stop``, batch and head as a number or "all"."""

    mask: Mask
    q: int | None
    kv: int | None
    batch: str
    head: str
    rows: str | None
    keys: str | None

    def in_text(self, console: "Console") -> Iterator[str]:
        """The picture of each batch row and head that is asked for, for this terminal."""
        q_len = self._q_len()
        source = source_of(self.mask, q_len, self.kv)
        pairs = [
            (b, h)
            for b in self._chosen(source.batch, "--row", self.batch)
            for h in self._chosen(source.heads, "--head", self.head)
        ]
        rows, keys = _span("--rows", self.rows), _span("--keys", self.keys)
        for place, (batch, head) in enumerate(pairs[:_MOST_IN_TEXT]):
            if place:
                yield ""
            yield picture(
                self.mask, q_len, self.kv, rows=rows, keys=keys, batch=batch, head=head, terminal=terminal_of(console)
            )
        if len(pairs) > _MOST_IN_TEXT:
            yield f"\nand {len(pairs) - _MOST_IN_TEXT} more"

    def in_file(self, path: Path) -> Path:
        """The picture in a file."""
        from maskloom import show

        figure = show.mask(
            self.mask, self._q_len(), self.kv, rows=_span("--rows", self.rows), keys=_span("--keys", self.keys),
            batch=_which("--row", self.batch), heads=_which("--head", self.head),
        )  # fmt: skip
        return show.save_figure(figure, path)

    def in_page(self, path: Path) -> Path:
        """The mask as a page to explore, with all batch rows and heads that are known."""
        from maskloom import show

        if self.rows is not None or self.keys is not None:
            raise ValueError("a page shows all queries and keys: --html takes no --rows and no --keys")
        batch, heads = _which_of_page("--row", self.batch), _which_of_page("--head", self.head)
        return show.page(self.mask, self._q_len(), self.kv, batch=batch, heads=heads, path=path)

    def _q_len(self) -> int | None:
        if self.q is not None or self.kv is not None or any(own_lengths(self.mask)):
            return self.q
        return DEFAULT_LENGTH

    def _chosen(self, members: Members, option: str, given: str) -> list[int]:
        return members.chosen(_which(option, given))


def batch_options(given: Sequence[str], row: str | None) -> tuple[list[str], str]:
    """``--batch`` is a mask of the batch, such as ``lengths=5,3,9``, or the batch row to show: the masks, and the row.

    Raises:
        ValueError: several rows, in ``--batch`` or in ``--row`` too.
    """
    rows = [one for one in given if one == "all" or one.isdecimal()]
    asked = [f"--batch {one}" for one in rows] + ([] if row is None else [f"--row {row}"])
    if len(asked) > 1:
        raise ValueError(f"the batch row to show is a number, or all, and given once; got {' and '.join(asked)}")
    return [one for one in given if one not in rows], rows[0] if rows else FIRST if row is None else row


def terminal_of(console: "Console") -> Terminal:
    """What a terminal can show, as rich and its environment say."""
    colour = console.color_system in ("256", "truecolor") and console.is_terminal
    ground = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    lines = max(8, console.height - 3) if console.is_terminal else 48
    blocks = not (console.encoding or "utf-8").lower().startswith(("ascii", "us-ascii", "latin", "iso8859"))
    return Terminal(max(8, console.width), lines, colour and blocks, ground in ("7", "15"), blocks)


def _which(option: str, given: str) -> Which:
    if given == "all":
        return "all"
    if not given.isdecimal():
        raise ValueError(f"{option} is a number, at least 0, or all; got {given}")
    return int(given)


def _which_of_page(option: str, given: str) -> Which | None:
    """The batch row or head of a page: all that are known, where no other than the first is asked for."""
    return None if given == FIRST else _which(option, given)


def _span(option: str, given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    start, colon, stop = given.partition(":")
    if not colon or not (start.isdecimal() and stop.isdecimal()):
        raise ValueError(f"{option} is start:stop, such as 0:64; got {given}")
    return int(start), int(stop)
