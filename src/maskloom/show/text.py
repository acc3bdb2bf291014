"""Masks as text, for a terminal.

- short masks: one character for each query and key, ``x`` where the query may attend to the key;
- longer masks: two queries in each line, by half blocks ``▀ ▄ █``;
- masks wider than the terminal: one character for each tile, ``█`` all visible, ``▒`` partly visible, ``·`` hidden.
"""

from torch import Tensor

from maskloom.program.program import MaskMod
from maskloom.show.mask_map import one_table

DETAILED = 32
"""Maximum number of queries for which every query has its own line."""

_HALVES = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}

_Rows = list[list[bool]]


def picture(
    mask: MaskMod | Tensor,
    q_len: int,
    kv_len: int,
    *,
    batch_idx: int = 0,
    head_idx: int = 0,
    batch: int | None = None,
    heads: int | None = None,
    width: int = 80,
) -> str:
    """A mask drawn with characters: queries down, keys across.

    Args:
        mask: a Mask or a mask_mod, or a table as in `attend`.
        q_len, kv_len: Q and K, in positions.
        batch_idx, head_idx: the batch row and head; any, if the mask is the same for all.
        batch, heads: B and H, if the mask's tables do not have them.
        width: maximum number of characters in a line. A wider mask is drawn in tiles.

    Raises:
        TypeError, ValueError: not a mask, lengths below 1, a batch row or head that does not exist, a width below 8.
    """
    if width < 8:
        raise ValueError(f"width is a number of characters, at least 8; got {width}")
    rows = one_table(mask, q_len, kv_len, batch_idx, head_idx, batch, heads)
    if q_len <= DETAILED and 2 * kv_len <= width:
        return "\n".join(" ".join("x" if seen else "·" for seen in row) for row in rows)
    if kv_len <= width:
        return _by_halves(rows)
    return _by_tile(rows, -(-kv_len // width))


def _by_halves(rows: _Rows) -> str:
    if len(rows) % 2:
        rows = [*rows, [False] * len(rows[0])]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join("".join(_HALVES[pair] for pair in zip(*two, strict=True)) for two in pairs)


def _by_tile(rows: _Rows, side: int) -> str:
    """A character is twice as high as wide, so a tile is ``2 * side`` queries by ``side`` keys."""
    lines = []
    for top in range(0, len(rows), 2 * side):
        band = rows[top : top + 2 * side]
        tiles = ([seen for row in band for seen in row[left : left + side]] for left in range(0, len(rows[0]), side))
        lines.append("".join("█" if all(tile) else "▒" if any(tile) else "·" for tile in tiles))
    return "\n".join(lines)
