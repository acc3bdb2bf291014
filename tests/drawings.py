"""Reads the drawings in docstrings: each becomes an expression and a check that what it makes is what is drawn.

A drawing is a literal block, behind ``::``. Several may stand side by side, each with its expression in front of its first line:

- ``expression   k0 k1 k2``: rows of x under keys, labelled q0, q1, ...; ``head 1`` or ``row 1`` behind an expression, or in its
  place, says which one. Where keys stand further apart, the rows are scores;
- ``expression   Q x . .``: what the cell Q of a grid sees; ``expression   a a b b``: cells that see each other;
- ``expression   0  1  4  5``: where each position lies in a grid, or what a table holds;
- ``expression    formula``: a score mod and what it computes;
- lines ``name = ...`` in front of these, and plain code, which runs. What `NOT_RUN` names needs a data set and a model, or
  draws what has no expression (a cache after some tokens).
"""

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import maskloom as loom
from maskloom.masks.patterns.grids.layout import GridTiles
from maskloom.testing import public_names

PACKAGE = Path(loom.__file__).parent
Names = dict[str, Any]
NOT_RUN = {"Collator", "TokenBudgetSampler", "Slots", "register", "AtRank"}


class Block(NamedTuple):
    """A literal block: the public name whose docstring it stands in, and its lines."""

    owner: str
    lines: list[str]


class Drawing(NamedTuple):
    expression: str
    check: Callable[[], None]


def blocks() -> Iterator[Block]:
    """Every literal block of every docstring of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                for lines in literal(ast.get_docstring(node) or ""):
                    yield Block(node.name, lines)


def literal(docstring: str) -> Iterator[list[str]]:
    for found in re.finditer(r"::\n\n((?: +\S.*\n|\n)*(?: +\S.*)?)", docstring):
        lines = inspect.cleandoc("\n" + found[1]).splitlines()
        if lines:
            yield lines


def drawings(block: Block) -> list[Drawing]:
    """What a block draws; plain code if it draws nothing."""
    if block.owner in NOT_RUN:
        return []
    code = "\n".join(block.lines)
    if "loom." in code:
        return [Drawing(code, lambda: exec(code, _sample()))]
    names = {**public_names(), "tensor": torch.tensor}
    lines = [line for line in block.lines if not _assigned(line, names)]
    for read in (tables, cells, places, formulas):
        found = list(read(block.owner, lines, names))
        if found:
            return found
    return [Drawing("\n".join(lines), lambda: exec("\n".join(lines), _sample()))]


def _assigned(line: str, names: Names) -> bool:
    is_assignment = re.match(r"[a-z]\w* = ", line) is not None and "  " not in line
    if is_assignment and "query" not in line:
        exec(line, names)
        return True
    return False


def _sample() -> Names:
    query, key, value = torch.randn(3, 2, 3, 7, 5, generator=torch.Generator().manual_seed(0)).unbind()
    module = {
        "nn": torch.nn, "x": torch.randn(3, 7, 64), "pads": torch.arange(7) >= torch.tensor([[7], [5], [2]]),
        "layer": torch.nn.TransformerEncoderLayer(64, 8, batch_first=True), "positions": torch.arange(9),
        "queries": torch.randn(2, 8, 9, 64), "keys": torch.randn(2, 8, 9, 64),
        "new_keys": torch.randn(2, 4, 9, 64), "new_values": torch.randn(2, 4, 9, 64),
    }  # fmt: skip
    names = {"torch": torch, "loom": loom, "query": query, "key": key, "value": value, "n": 4}
    return {**public_names(), **module, **names}


# -- rows under keys ---------------------------------------------------------------------------------------------------

_HEADER = re.compile(r"(?:(\S.*?)\s+)?\b(([kt])0(?: +[kt]\d)+)")
_WHICH = re.compile(r"(.*?),?\s*(?:\b(head|row)s? (\d)\S*(?: \d)?)?")


def tables(owner: str, lines: list[str], names: Names) -> Iterator[Drawing]:
    for number, line in enumerate(lines):
        expression = owner.lower()
        for header in _HEADER.finditer(line):
            words = _WHICH.fullmatch(header[1] or "")
            assert words is not None
            expression = words[1] or expression
            which = {words[2]: int(words[3] or 0)}
            rows = list(_rows(lines[number + 1 :], header))
            check = _same_scores if "  " in header[2] else _same_marks
            yield Drawing(expression, _later(check, expression, names, rows, which))


def _later(check: Callable[..., None], expression: str, names: Names, *drawn: Any) -> Callable[[], None]:
    return lambda: check(eval(expression, dict(names)), *drawn)


def _rows(lines: list[str], header: re.Match[str]) -> Iterator[list[str]]:
    """What stands under the keys, as far as rows are labelled."""
    start, end, keys = header.start(2), header.end(2), header[2].split()
    for number, line in enumerate(lines):
        label = list(re.finditer(rf"{'q' if header[3] == 'k' else 't'}{number}(?=\s|$)", line[:start]))
        if not label:
            return
        if "  " in header[2]:
            yield line[label[-1].end() :].split()[: len(keys)]
        else:
            yield [line[at : at + 3].strip()[:1] for at in range(start, end, 3)]


def _same_marks(made: Any, rows: list[list[str]], which: dict[str, int]) -> None:
    table = made if isinstance(made, Tensor) else _dense(made, len(rows), len(rows[0]), which)
    assert [["x" if seen else "" for seen in row] for row in table.tolist()] == rows


def _dense(mask: loom.Mask, q_len: int, kv_len: int, which: dict[str, int]) -> Tensor:
    return mask.dense(q_len, kv_len)[which.get("row", 0), which.get("head", 0)]


def _same_scores(score_mod: Any, rows: list[list[str]], which: dict[str, int]) -> None:
    zero, head = torch.tensor(0.0), torch.tensor(which.get("head", 0))
    for q, row in enumerate(rows):
        scores = [score_mod(zero, zero.long(), head, torch.tensor(q), torch.tensor(k)).item() for k in range(len(row))]
        assert scores == [float(Fraction(cell)) for cell in row]


# -- grids -------------------------------------------------------------------------------------------------------------

_CELLS = re.compile(r"(?:(?<=  )|^)[Qx.](?: [Qx.])+(?=\s\s|$)")
_LETTERS = re.compile(r"(?<=  )[a-w](?: [a-w])+(?=\s\s|$)")


def cells(owner: str, lines: list[str], names: Names) -> Iterator[Drawing]:
    """Grids that stand side by side, each as tall as the block."""
    for look, check in ((_CELLS, _seen_from), (_LETTERS, _same_letters)):
        expression, behind = "", 0
        for found in look.finditer(lines[0]):
            expression = lines[0][behind : found.start()].strip() or expression
            behind = found.end()
            grid = [line.ljust(found.end())[found.start() : found.end()].split() for line in lines]
            yield Drawing(expression, _later(check, expression, names, grid))


def _seen_from(mask: Any, grid: list[list[str]]) -> None:
    """Of `grid_tiles` the cells that are drawn are tiles, which see each other whole."""
    marks = [mark for row in grid for mark in row]
    inside = math.prod(mask.tile) if isinstance(mask, GridTiles) else 1
    table = (
        mask.dense(len(marks) * inside, len(marks) * inside)[0, 0].unflatten(0, (-1, inside)).unflatten(2, (-1, inside))
    )
    assert torch.equal(table.any(1).any(-1), table.all(1).all(-1))
    seen = table.all(1).all(-1)[marks.index("Q")].tolist()
    assert ["x" if see else "." for see in seen] == ["x" if mark == "Q" else mark for mark in marks]


def _same_letters(mask: Any, grid: list[list[str]]) -> None:
    letters = [letter for row in grid for letter in row]
    assert mask.dense(len(letters), len(letters))[0, 0].tolist() == [[q == k for k in letters] for q in letters]


# -- numbers and formulas ----------------------------------------------------------------------------------------------

_NUMBERS = re.compile(r"(?<=  )\d+(?: {1,2}\d+)+(?=\s\s|$)")


def places(owner: str, lines: list[str], names: Names) -> Iterator[Drawing]:
    """Where each position lies in a grid, or the numbers of a table in a line of its own."""
    if re.search(r"\)\s{2,}\d", "\n".join(lines)) is None:
        return
    for line in lines:
        expression, behind = "", 0
        for found in _NUMBERS.finditer(line):
            expression, behind = line[behind : found.start()].strip(), found.end()
            if not expression.endswith(")"):
                continue
            rows = [other[found.start() - 1 : found.end()].split() for other in lines]
            grid = [[int(number) for number in row] for row in rows if row]
            alone = found[0].split()
            yield Drawing(expression, _later(_same_places, expression, names, expression, names, grid, alone))


def _same_places(made: Any, expression: str, names: Names, grid: list[list[int]], alone: list[str]) -> None:
    if isinstance(made, Tensor):
        assert made.tolist() == [int(number) for number in alone]
        return
    at = torch.tensor(grid)
    lie = torch.unravel_index(at.flatten().argsort(), at.shape)
    for axis in (0, 1):  # a mask of rows and one of columns tell where each position lies
        mask = eval(expression.replace("axis=0", f"axis={1 - axis}"), dict(names))
        assert torch.equal(mask.dense(at.numel(), at.numel())[0, 0], lie[axis][:, None] == lie[axis])


def formulas(owner: str, lines: list[str], names: Names) -> Iterator[Drawing]:
    for line in lines:
        words = re.fullmatch(r"(\w+\(.*?\)) {4}(\S.*)", line)
        if words is not None:
            yield Drawing(words[1], _later(_computes, words[1], names, words[2]))


def _computes(score_mod: Any, formula: str) -> None:
    slope = loom.scores.alibi(8).slopes
    for score, q, k in ((70.0, 2, 5), (-3.0, 7, 1)):
        given = [torch.tensor(value) for value in (score, 0, 3, q, k)]
        names = {
            "tanh": torch.tanh,
            "slope": slope,
            **dict(zip(("score", "b", "h", "q_idx", "kv_idx"), given, strict=True)),
        }
        torch.testing.assert_close(score_mod(*given), eval(formula, names))
