"""The drawings in docstrings are what the masks are: each is read, its expression evaluated, and the two compared.

A drawing begins with a line ``expression   k0 k1 k2``, several of them side by side; ``head 1`` or ``row 1`` behind an
expression, or in its place, says which one is drawn.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

import maskloom as loom
from maskloom.masks import arranged, blockwise, conversations, moved, position, relative, segments

MODULES = (relative, blockwise, position, segments, conversations, moved, arranged)
RULE = {"rule": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()}
NAMES: dict[str, Any] = {name: value for module in MODULES for name, value in vars(module).items()} | RULE


class Drawing(NamedTuple):
    expression: str
    batch_row: int
    head: int
    rows: list[str]


def drawings(docstring: str) -> Iterator[Drawing]:
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        expression = ""
        for header in re.finditer(r"(\S.*?)\s+(k0(?: k\d)*)", line):
            words = re.fullmatch(r"(.*?)\s*(?:\b(head|row)s? (\d)\S*(?: \d)?)?", header[1])
            assert words is not None
            expression = words[1] or expression
            which = {words[2]: int(words[3] or 0)}
            rows = list(marks(lines[number + 1 :], header.start(2), header.end(2)))
            yield Drawing(expression, which.get("row", 0), which.get("head", 0), rows)


def marks(lines: list[str], start: int, end: int) -> Iterator[str]:
    """Rows of x and . under the keys that stand from ``start`` to ``end``, as far as rows are labelled."""
    for number, line in enumerate(lines):
        if line[start - 4 : start - 2] != f"q{number}":
            return
        cells = line[start:end].ljust(end - start)
        yield "".join("x" if "x" in cells[at : at + 3] else "." for at in range(0, end - start, 3))


DRAWINGS = [
    drawing
    for module in MODULES
    for name, made in vars(module).items()
    if getattr(made, "__module__", "") == module.__name__ and not name.startswith("_")
    for drawing in drawings(made.__doc__ or "")
    if drawing.expression
]


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.expression)
def test_drawings(drawing):
    mask: loom.Mask = eval(drawing.expression, dict(NAMES))
    table = mask.dense(len(drawing.rows), len(drawing.rows[0]))[drawing.batch_row, drawing.head]
    assert ["".join("x" if seen else "." for seen in row) for row in table.tolist()] == drawing.rows


def test_every_maker_is_drawn():
    makers = [
        made
        for module in MODULES
        for name, made in vars(module).items()
        if not name.startswith("_") and type(made).__name__ == "function" and made.__module__ == module.__name__
    ]
    assert [made.__name__ for made in makers if not list(drawings(made.__doc__ or ""))] == []
