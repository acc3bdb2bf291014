"""Small pictures of masks as SVG: a row is a query, a column a key. Their colours can be seen on light and on dark pages."""

from collections.abc import Mapping
from itertools import groupby

from torch import Tensor

from docs.website.links import slug

CELL, GAP, MARGIN, MOST = 6, 14, 13, 3
VISIBLE, HIDDEN, WORDS = "#3b78b8", "#80808033", "#808080"


def drawn(dense: Tensor, name: str) -> str:
    """A dense mask (B, H, Q, K): its batch rows and heads side by side, three at most, with the same cells of each.

    Args:
        dense: bool, True = may attend.
        name: what the picture is of, for readers who do not see it.
    """
    tables = [(panel_name(dense, b, h), dense[b, h]) for b in range(len(dense)) for h in range(dense.shape[1])][:MOST]
    q_len, kv_len = dense.shape[-2:]
    step = kv_len * CELL + GAP
    width, height = MARGIN + len(tables) * step - GAP + 1, MARGIN + q_len * CELL + 1
    panels = [panel(words, table, MARGIN + at * step) for at, (words, table) in enumerate(tables)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{name}">',
            f'<g font-family="sans-serif" font-size="9" fill="{WORDS}">',
            f'<text transform="translate(9 {MARGIN + q_len * CELL / 2:g}) rotate(-90)" text-anchor="middle">query</text>',
            *panels,
            "</g></svg>\n",
        ]
    )


def panel_name(dense: Tensor, row: int, head: int) -> str:
    """What stands above a table: key, and which batch row and head, where they differ."""
    rows, heads = dense.shape[:2]
    return "key" + f" · row {row}" * (rows > 1) + f" · head {head}" * (heads > 1)


def panel(words: str, table: Tensor, left: int) -> str:
    """One table, from this column of the picture on."""
    q_len, kv_len = table.shape
    runs = "".join(
        f"M{start} {query}h{size}v1h-{size}z" for query, row in enumerate(table) for start, size in runs_of(row)
    )
    cells = f'<path transform="translate({left} {MARGIN}) scale({CELL})" fill="{VISIBLE}" d="{runs}"/>' if runs else ""
    return (
        f'<text x="{left + kv_len * CELL / 2:g}" y="9" text-anchor="middle">{words}</text>'
        f'<rect x="{left}" y="{MARGIN}" width="{kv_len * CELL}" height="{q_len * CELL}" fill="{HIDDEN}"/>{cells}'
    )


def runs_of(row: Tensor) -> list[tuple[int, int]]:
    """Where runs of visible keys start, and how long they are."""
    found, at = [], 0
    for visible, cells in groupby(row.tolist()):
        size = len(list(cells))
        if visible:
            found.append((at, size))
        at += size
    return found


def glance(titles: Mapping[str, str]) -> str:
    """Pictures in a row, each with a link to the section of this title."""
    links = [
        f'<a href="#{slug(title)}"><img src="{picture}" alt="{quoted(title)}" height="76"></a>'
        for picture, title in titles.items()
    ]
    return "\n".join(["<p>", *links, "</p>", ""])


def quoted(text: str) -> str:
    """A text inside the quotes of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
