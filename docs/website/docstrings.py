"""How docstrings become pages: drawings are code, and a public name in backticks is a link to it."""

import re
from typing import Any

import griffe

from docs.website import reference

_DRAWING = re.compile(r"^( *)(.*?) ?::\n", re.MULTILINE)
_NAME = re.compile(r"(?<![`\[\w])`(\w+)`(?!`)")
_ERRORS = re.compile(r"^( +)(\w+(?:, \w+)*): (.*?)(?=\Z|\n\n)", re.MULTILINE | re.DOTALL)


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

        text = _DRAWING.sub(lambda mark: f"{mark[1]}{mark[2]}{':' * bool(mark[2])}\n", text)
        return _NAME.sub(linked, text)
