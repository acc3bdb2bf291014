"""How docstrings become pages: drawings are code, and a public name in backticks is a link to it."""

import re
from typing import Any

import griffe

from docs.website import reference

_DRAWING = re.compile(r"^( *)(.*?) ?::\n", re.MULTILINE)
_NAME = re.compile(r"(?<![`\[\w])`(\w+)`(?!`)")
_RAISES = re.compile(r"^( *)Raises:\n(?P<errors>(?:\1 +.*\n?)+)", re.MULTILINE)
_NEXT_ERROR = re.compile(r"(?<=[.)])\s+(?=\w*Error(?:, \w*Error)*: )")


class Docstrings(griffe.Extension):
    """Reads the docstrings of the source as Markdown."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors = reference.anchors()

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = self.as_markdown(obj.docstring.value, obj.name)

    def as_markdown(self, text: str, own: str = "") -> str:
        """The docstring without the marks of reStructuredText, and with links."""

        def linked(name: re.Match[str]) -> str:
            anchor = self.anchors.get(name[1])
            return f"[`{name[1]}`][{anchor}]" if anchor and name[1] != own else name[0]

        text = _RAISES.sub(lambda found: f"{found[1]}Raises:\n{_one_by_one(found['errors'])}", text)
        text = _DRAWING.sub(lambda mark: f"{mark[1]}{mark[2]}{':' * bool(mark[2])}\n", text)
        return _NAME.sub(linked, text)


def _one_by_one(errors: str) -> str:
    """Errors that stand in one paragraph, each in a line of its own."""
    indent = re.match(" *", errors)
    return _NEXT_ERROR.sub("\n" + (indent[0] if indent else ""), errors)
