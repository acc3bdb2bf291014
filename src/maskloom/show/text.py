"""Masks as text, for a terminal.

- short masks: one character for each query and key, ``x`` where the query may attend to the key;
- longer masks: two queries in each line, by half blocks ``▀ ▄ █``;
- masks wider than the terminal: a cell is many pairs, and its shade ``· ░ ▒ ▓ █`` their visible share;
- in colour every cell is half a character, and its colour the share.

Of masks with too many lines the middle is left out. Only what is drawn is computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core.checks import count
from maskloom.program.program import MaskMod
from maskloom.show.measure.selection import Span, span_of
from maskloom.show.measure.shares import at, cells_of, shares_of
from maskloom.show.measure.source import Source, source_of

DETAILED = 32
"""Maximum number of queries for which every query has its own line."""

_HALVES = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
_SHADES, _ASCII = "·░▒▓█", ".-+*#"
_ON_DARK, _ON_LIGHT = (237, 24, 31, 38, 117), (254, 153, 110, 67, 24)
"""Of the 256 colours of terminals: hidden, three shares, and visible."""


@dataclass(frozen=True)
class Terminal:
    """What a terminal can show.

    Attributes:
        width, lines: maximum number of characters in a line, and of lines of a picture.
        colour: whether it has 256 colours.
        is_light: whether its ground is light.
        blocks: whether it has the characters ``▀ ░ █``; else all is ASCII.
    """

    width: int = 80
    lines: int = 48
    colour: bool = False
    is_light: bool = False
    blocks: bool = True


def picture(
    mask: BlockMask | MaskMod | Tensor,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    rows: Span = None,
    keys: Span = None,
    batch: int = 0,
    head: int = 0,
    terminal: Terminal | None = None,
) -> str:
    """A mask drawn with characters: queries down, keys across; below, what is drawn of it, if that is not all.

    Args:
        mask: a Mask, a mask_mod, a BlockMask, or a table as in `attend`.
        q_len, kv_len: Q and K, in positions; by default those of the mask itself.
        rows, keys: the queries and keys to draw; by default all.
        batch, head: the batch row and head; any, if the mask is the same for all.
        terminal: what can be shown; by default 80 characters, without colour.

    Raises:
        TypeError, ValueError: not a mask, lengths that are unknown or below 1, positions, a batch row or a head that do
            not exist, a width below 8.
    """
    terminal = Terminal() if terminal is None else terminal
    count("width", terminal.width, least=8, of="characters")
    count("lines", terminal.lines, least=3, of="lines")
    source = source_of(mask, q_len, kv_len)
    (row,), (drawn_head,) = source.batch.chosen([batch]), source.heads.chosen([head])
    drawing = _Drawing(
        source, row, drawn_head, span_of("rows", rows, source.q_len), span_of("keys", keys, source.kv_len), terminal
    )
    return "\n".join([*drawing.lines(), *drawing.caption()])


@dataclass(frozen=True)
class _Drawing:
    source: Source
    row: int
    head: int
    queries: range
    keys: range
    terminal: Terminal

    @property
    def side(self) -> int:
        """Keys of a cell."""
        return -(-len(self.keys) // self.terminal.width)

    @property
    def is_detailed(self) -> bool:
        few = len(self.queries) <= min(DETAILED, self.terminal.lines) and 2 * len(self.keys) <= self.terminal.width
        return few and not self.terminal.colour

    @property
    def has_halves(self) -> bool:
        """Whether a line holds two rows of cells."""
        return not self.is_detailed and (self.terminal.colour or (self.side == 1 and self.terminal.blocks))

    @property
    def per_line(self) -> int:
        """Queries in a line: a character is twice as high as wide."""
        if self.is_detailed or (self.side == 1 and not self.has_halves):
            return 1
        return 2 * self.side

    def pieces(self) -> list[range]:
        """The queries that are drawn: all, or the first and the last."""
        lines = -(-len(self.queries) // self.per_line)
        if lines <= self.terminal.lines:
            return [self.queries]
        half = (self.terminal.lines - 1) // 2 * self.per_line
        last = self.queries.start + (lines - (self.terminal.lines - 1) // 2) * self.per_line
        return [self.queries[:half], range(last, self.queries.stop)]

    def lines(self) -> Iterator[str]:
        for place, piece in enumerate(self.pieces()):
            if place:
                yield "⋮" if self.terminal.blocks else ":"
            yield from self._drawn(self._shares(piece))

    def _shares(self, queries: range) -> Tensor:
        tall = self.per_line // 2 if self.has_halves else self.per_line
        cells = cells_of(queries, self.keys, (tall, self.side))
        return shares_of(self.source, at(cells, self.row, self.head)).share

    def _drawn(self, share: Tensor) -> Iterator[str]:
        if self.is_detailed:
            dot = "·" if self.terminal.blocks else "."
            return (" ".join("x" if seen else dot for seen in row) for row in (share > 0).tolist())
        if self.terminal.colour:
            return _in_colour(levels_of(share), _ON_LIGHT if self.terminal.is_light else _ON_DARK)
        if self.has_halves:
            return _by_halves((share > 0).tolist())
        shades = _SHADES if self.terminal.blocks else _ASCII
        return ("".join(shades[level] for level in row) for row in levels_of(share).tolist())

    def caption(self) -> list[str]:
        """What is drawn, where that is not all of the mask, pair by pair."""
        said = []
        if self.source.batch.varies or self.source.heads.varies:
            said.append(f"{self.source.batch.name(self.row)}, {self.source.heads.name(self.head)}")
        if self.side > 1:
            said.append(
                f"{self.source.q_len} queries × {self.source.kv_len} keys, a character is {self.per_line} × {self.side}"
            )
        pieces = self.pieces()
        if len(pieces) > 1:
            said.append(f"queries {pieces[0].stop} to {pieces[1].start - 1} left out")
        return ["; ".join(said)] if said else []


def levels_of(share: Tensor) -> Tensor:
    """The shade of each share: 0 where nothing is visible, 4 where all is, and 1 to 3 between."""
    between = 1 + (share * 3).long().clamp(0, 2)
    return torch.where(share == 0, 0, torch.where(share == 1, 4, between))


def _by_halves(rows: list[list[bool]]) -> Iterator[str]:
    if len(rows) % 2:
        rows = [*rows, [False] * len(rows[0])]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return ("".join(_HALVES[pair] for pair in zip(*two, strict=True)) for two in pairs)


def _in_colour(levels: Tensor, colours: tuple[int, ...]) -> Iterator[str]:
    """Two rows of cells in a line: the upper one is the colour of ``▀``, the lower one that of its ground."""
    codes = [[f"8;5;{colours[level]}" for level in row] for row in levels.tolist()]
    if len(codes) % 2:
        codes.append(["9"] * len(codes[0]))  # the ground of the terminal
    for upper, lower in zip(codes[::2], codes[1::2], strict=True):
        runs = groupby(zip(upper, lower, strict=True))
        yield "".join(f"\x1b[3{up};4{down}m" + "▀" * len(list(run)) for (up, down), run in runs) + "\x1b[0m"
