"""The parts of an explorer page, and one self-contained file of them.

A site that shows several masks has the script and the style once, as files, and of each mask only its data.
"""

import base64
import functools
import hashlib
import html
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from maskloom.show.explorer.stored import LIMIT

SCRIPTS = (
    "numbers.js", "loops.js", "operations.js", "machine.js", "data.js", "expression.js", "text.js", "view.js", "cells.js",
    "model.js", "reader.js", "colours.js", "layers.js", "axes.js", "painter.js", "elements.js", "toolbar.js", "panel.js",
    "link.js", "input.js", "explorer.js",
)  # fmt: skip
"""The files of the page's script, in the order in which they are joined."""


_COMMENT = re.compile(r"^ *(?://[^\n]*|/\*\*.*?\*/)?\n", re.MULTILINE | re.DOTALL)
"""Lines of comments alone, and empty ones: a page has no use for them."""


def _file(name: str) -> str:
    return resources.files("maskloom.show.explorer").joinpath(*name.split("/")).read_text("utf-8")


def script_file(name: str) -> str:
    """The text of one file of the script."""
    return _file(f"script/{name}")


@functools.cache
def script() -> str:
    """The script of all explorers: it fills every element with ``data-maskloom-explorer`` from the JSON in it."""
    return '(() => {\n"use strict";\n' + _COMMENT.sub("", "\n".join(map(script_file, SCRIPTS))) + "})();\n"


@functools.cache
def style() -> str:
    """The style sheet of all explorers."""
    return _file("style.css")


@dataclass(frozen=True)
class Parts:
    """What an explorer page is made of.

    Attributes:
        title: the title of the page, as text.
        data: the data of this mask, JSON that is safe inside a script element.
    """

    title: str
    data: str

    @property
    def element(self) -> str:
        """The HTML of the explorer alone; a page with it also needs `script` after it, and `style`."""
        return _file("element.html").replace("{data}", self.data)

    @property
    def html(self) -> str:
        """A whole page in one file, which loads nothing.

        Raises:
            ValueError: it is larger than `LIMIT` bytes.
        """
        security = (
            "default-src 'none'; base-uri 'none'; form-action 'none'; "
            f"script-src '{_hash(script())}'; style-src '{_hash(style())}'"
        )
        parts = {"security": security, "title": html.escape(_printable(self.title)), "style": style()}
        found = _filled(_file("page.html"), parts | {"script": script(), "element": self.element})
        if len(found) > LIMIT:
            raise ValueError(
                f"the page would have {len(found):,} bytes, and may have {LIMIT:,}: show fewer batch rows, heads"
            )
        return found


def parts_of(model: dict[str, Any]) -> Parts:
    """The parts of a page with this data."""
    return Parts(model["title"], _safe(json.dumps(model, separators=(",", ":"), allow_nan=False)))


def _safe(text: str) -> str:
    """JSON in ASCII without ``<``, ``>`` and ``&``: no token can end the script element or begin another."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(text: str) -> str:
    """Text without characters that HTML cannot hold, or that would turn what follows around."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _filled(template: str, parts: dict[str, str]) -> str:
    """The template with each ``{name}`` replaced; names in what is put in stay."""
    pieces = template.split("{")
    found = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}")
        found.append(parts[name] + rest)
    return "".join(found)
