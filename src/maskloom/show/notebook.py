"""HTML of masks, block masks and reports for notebooks: text, and a small picture that needs no matplotlib.

The colours can be seen on a light and on a dark page; hidden cells are half transparent.
"""

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.inspect import Summary, summary
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask
from maskloom.show.measure.lengths import own_lengths
from maskloom.show.measure.shares import Shares, at, cells_of, shares_of
from maskloom.show.measure.source import Source, source_of
from maskloom.show.measure.tiles import tiles_of

_SIDE = 192  # pixels on the page
_CELLS = 96  # along a side of a small picture
_SHORTEST, _LONGEST = 32, 1 << 20  # positions of a mask that has no length of its own
_MOST_COUNTED = 1 << 18  # tiles of a block mask whose numbers are computed at once

Colour = tuple[int, int, int, int]
_HIDDEN, _PARTIAL, _VISIBLE = (128, 128, 128, 48), (224, 146, 32, 255), (46, 124, 214, 255)
_STATES = {SKIPPED: ("skipped", _HIDDEN), PARTIAL: ("partial", _PARTIAL), FULL: ("full", _VISIBLE)}


def html_of(value: Any) -> str:
    """A mask, a BlockMask, or a report as HTML."""
    try:
        if isinstance(value, BlockMask):
            return _of_block_mask(value)
        if isinstance(value, Mask):
            return _of_mask(value, *_lengths(value))
        if isinstance(getattr(value, "mask", None), Mask):  # the plan of several ranks
            return _joined(_of_mask(value.mask, value.length, value.length), _text(str(value)))
        return _of_report(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a picture is not worth an error: the text says what it is
        return _joined(_text(brief(value)), f"<div>no picture: {html.escape(str(error))}</div>")


# -- masks -------------------------------------------------------------------------------------------------------------


def _lengths(mask: Mask) -> tuple[int, int]:
    q_len, kv_len = own_lengths(mask)
    if q_len is None and kv_len is None:
        reach = max(_numbers(mask), default=0)
        length = min(max(_SHORTEST, 1 << (2 * reach).bit_length()), _LONGEST)
        return length, length
    return q_len or kv_len or _SHORTEST, kv_len or q_len or _SHORTEST


def _numbers(held: object) -> list[int]:
    """The numbers in a mask: its windows reach so far."""
    if isinstance(held, int):
        return [] if isinstance(held, bool) else [abs(held)]
    names = getattr(held, "__dataclass_fields__", ()) if isinstance(held, Mask) else ()
    parts = held if isinstance(held, tuple) else [getattr(held, name) for name in names]
    return [number for part in parts for number in _numbers(part)]


def _of_mask(mask: Mask, q_len: int, kv_len: int) -> str:
    source = source_of(mask, q_len, kv_len)
    shares = _first(source)
    words = [repr(mask), f"{q_len} queries × {kv_len} keys, {_which(source)}"]
    cells = shares.cells
    if (cells.q_block, cells.kv_block) != (1, 1):
        words.append(f"a cell is {cells.q_block} × {cells.kv_block} pairs")
    return _joined(_image(_shaded(shares.share), q_len, kv_len, repr(mask)), *map(_line, words))


def _first(source: Source) -> Shares:
    """What is visible in the first batch row and head."""
    block = -(-source.q_len // _CELLS), -(-source.kv_len // _CELLS)
    return shares_of(source, at(cells_of(range(source.q_len), range(source.kv_len), block), 0, 0))


def _which(source: Source) -> str:
    return f"{source.batch.name(0)}, {source.heads.name(0)}"


def _shaded(share: Tensor) -> Tensor:
    """The colours of shares: uint8 (rows, columns, 4)."""
    part = torch.where((share > 0) & (share < 1), 0.3 + 0.5 * share, share)[..., None]
    low, high = torch.tensor(_HIDDEN, dtype=torch.float64), torch.tensor(_VISIBLE, dtype=torch.float64)
    return (low + (high - low) * part).round().to(torch.uint8)


def _of_block_mask(block_mask: BlockMask) -> str:
    source = source_of(block_mask)
    drawn = tiles_of(source, block_mask.BLOCK_SIZE, range(source.q_len), range(source.kv_len), 0, 0)
    palette = torch.tensor([colour for _, colour in _STATES.values()], dtype=torch.uint8)
    picture = _image(palette[drawn.states.long()], source.q_len, source.kv_len, "tiles")
    words = [source.title, f"drawn: {_which(source)}"]
    if math.prod(block_mask.kv_indices.shape) > _MOST_COUNTED:
        return _joined(picture, *map(_line, words))
    numbers = summary(block_mask)
    return _joined(picture, *map(_line, words), _text(str(numbers)), _bar(_counts(numbers)))


# -- reports -----------------------------------------------------------------------------------------------------------


def _of_report(report: Any) -> str:
    """What a report prints, and a bar of the tiles that it counts."""
    counts = _counts(report)
    if sum(counts):
        return _joined(_bar(counts), _text(str(report)))
    return _text(str(report))


def _counts(report: Summary | Any) -> list[int]:
    return [getattr(report, name, None) or 0 for name, _ in _STATES.values()]


def _bar(counts: Sequence[int]) -> str:
    """The share of skipped, partial and full tiles as a bar with a legend."""
    total = max(1, sum(counts))
    pieces = [
        f'<div title="{name} {count}" style="width:{100 * count / total:.2f}%;background:{_css(colour)}"></div>'
        for count, (name, colour) in zip(counts, _STATES.values(), strict=True)
    ]
    legend = [
        f'<span style="display:inline-block;width:0.8em;height:0.8em;background:{_css(colour)}"></span> {name} {count} '
        for count, (name, colour) in zip(counts, _STATES.values(), strict=True)
    ]
    style = f"display:flex;width:{2 * _SIDE}px;height:12px"
    return f'<div style="{style}">{"".join(pieces)}</div><div style="font-size:smaller">{"".join(legend)}</div>'


# -- HTML --------------------------------------------------------------------------------------------------------------


def _joined(*parts: str) -> str:
    return f'<div class="maskloom" style="line-height:1.4">{"".join(parts)}</div>'


def _line(words: str) -> str:
    return f"<div>{html.escape(words)}</div>"


def _text(words: str) -> str:
    return f'<pre style="margin:0">{html.escape(words)}</pre>'


def _css(colour: Colour) -> str:
    red, green, blue, alpha = colour
    return f"rgba({red},{green},{blue},{alpha / 255:.2f})"


def _image(pixels: Tensor, q_len: int, kv_len: int, words: str) -> str:
    """Cells as an image whose sides are as long as the sequences are."""
    scale = _SIDE / max(q_len, kv_len)
    width, height = max(6, round(kv_len * scale)), max(6, round(q_len * scale))
    data = base64.b64encode(png(pixels)).decode()
    style = f"width:{width}px;height:{height}px;image-rendering:pixelated;border:1px solid rgba(128,128,128,0.5)"
    return f'<img alt="{html.escape(words)}" style="{style}" src="data:image/png;base64,{data}">'


def png(pixels: Tensor) -> bytes:
    """An image as a PNG. pixels: uint8 (rows, columns, 4)."""
    rows, columns = pixels.shape[:2]
    lines = torch.cat([torch.zeros(rows, 1, dtype=torch.uint8), pixels.reshape(rows, -1)], 1)
    body = zlib.compress(bytes(lines.flatten().tolist()), 9)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
