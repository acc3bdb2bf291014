"""A page to explore each mask of the gallery: data of its own, and one script and one style sheet for all."""

import html
import re
from collections.abc import Iterator

from docs import make_masks
from docs.website import links, reference
from maskloom.show.explorer import parts, script, style

POSITIONS, TILE = 96, 16
_PICTURE = re.compile(r"^(!\[.*?\]\(pictures/masks/(.*?)\.svg\))\n\n", re.MULTILINE)


def pages() -> Iterator[tuple[str, str]]:
    """Every file of the explorers, as its place in the site and its text."""
    yield "gallery/explorer.js", script()
    yield "gallery/explorer.css", style() + _BAR
    yield "gallery/theme.js", _THEME
    for name, example in make_masks.named().items():
        yield f"gallery/{name}.html", page(example)


def page(example: make_masks.Example) -> str:
    """The page of one mask: what it is, and the mask itself."""
    found = parts(example.mask(POSITIONS), POSITIONS, POSITIONS, block_size=TILE, title=example.expression)
    words, source = make_masks.words_of(example)
    back = f'<a href="../masks.html#{links.slug(example.expression)}">← All masks</a>'
    said = f"n = {POSITIONS}, tiles of {TILE}. {words}" + (f" Source: {source}" if source else "")
    said = said.replace("`", "")
    parts_of_page = {
        "title": html.escape(found.title),
        "back": back,
        "words": html.escape(said),
        "element": found.element,
    }
    return re.sub(r"\{(\w+)\}", lambda name: parts_of_page[name[1]], _PAGE)


def linked(markdown: str) -> str:
    """The page of masks, with links from each picture to its explorer and to the API."""
    anchors, examples = reference.anchors(), make_masks.named()

    def more(picture: re.Match[str]) -> str:
        page, name = f"gallery/{picture[2]}.html", examples[picture[2]].of
        arguments = f"[`{name}` in the API](api/masks.md#{anchors[name]})"
        return f"[{picture[1]}]({page})\n\n[Explore it]({page}) · {arguments}\n\n"

    return _PICTURE.sub(more, markdown)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · maskloom</title>
<link rel="icon" href="../website/favicon.svg">
<link rel="stylesheet" href="explorer.css">
</head>
<body class="explorer-page">
<nav>{back} <span title="{words}">{words}</span></nav>
{element}
<script src="theme.js"></script>
<script src="explorer.js"></script>
</body>
</html>
"""

_BAR = """
.explorer-page nav {
  display: flex; gap: 1.2em; padding: 0 16px; height: 36px; align-items: center; box-sizing: border-box; background: #1d3b58;
  color: #d6e1ec; font: 13px/1.4 system-ui, sans-serif; white-space: nowrap;
}
.explorer-page nav a { color: #fff; }
.explorer-page nav span { overflow: hidden; text-overflow: ellipsis; }
.explorer-page nav + .explorer { height: calc(100vh - 36px); height: calc(100dvh - 36px); }
"""

_THEME = """// Light or dark as it was chosen on the site's other pages.
(() => {
  const key = Object.keys(localStorage).find((name) => name.endsWith("__palette"));
  const scheme = key && JSON.parse(localStorage.getItem(key))?.color?.scheme;
  if (scheme) document.querySelector(".explorer").dataset.theme = scheme === "slate" ? "dark" : "light";
})();
"""
