"""Parse masks from text, for command lines and configuration files: ``parse("causal & window(back=127) | sinks(4)")``.

The language is the repr of masks: names of masks, calls of the functions that make them, ``& ^ | ~`` with Python's
precedence, brackets, and as arguments numbers, True, False, None, lists and masks. Python's own parser (`ast`) reads
it; only the names in `VOCABULARY` are evaluated.
"""

import ast
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskloom.core.words import brief
from maskloom.errors import ParseError
from maskloom.masks import patterns
from maskloom.masks.algebra import Mask, everything, nothing
from maskloom.masks.synonyms import suggestion

VOCABULARY: dict[str, Mask | Callable[..., Any]] = {
    **{name: getattr(patterns, name) for name in patterns.__all__ if name not in patterns.OF_TENSORS},
    "everything": everything,
    "nothing": nothing,
}
"""The meaning of each name: a mask, or a function that makes one."""

LONGEST = 10_000  # characters; Python's parser needs much time and stack for more
_OPERATORS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor}


def parse(text: str, names: Mapping[str, Mask | Callable[..., object]] | None = None) -> Mask:
    """The mask that ``text`` describes. ``parse(str(mask)) == mask`` for masks without tensors.

    Args:
        text: an expression, ``~(causal & window(back=3, ahead=1)) | sinks(4)``. Tables are lists: ``lengths([5, 3])``.
        names: more names, or other meanings of known names; a name may stand for a mask that holds tensors.

    Raises:
        ParseError: a syntax error, marked in the text; also wrong arguments, and an argument that is given twice. For
            the word of another library (``sliding_window``) the error suggests maskloom's word.
        TypeError: not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"a mask is parsed from a string; got {type(text).__name__}: {brief(text)}")
    return _Reader(text, {**VOCABULARY, **(names or {})}).read()


class _Reader:
    """Reads the mask from the syntax tree of one text."""

    def __init__(self, text: str, names: Mapping[str, Mask | Callable[..., Any]]) -> None:
        self.text = " ".join(text.split())
        self.names = names

    def read(self) -> Mask:
        if len(self.text) > LONGEST:
            raise ParseError(f"an expression has at most {LONGEST} characters; got {len(self.text)}")
        if not self.text:
            raise ParseError("the expression is empty; write a mask, such as causal")
        try:
            tree = ast.parse(self.text, mode="eval").body
            return self._mask(tree)
        except SyntaxError as error:
            start = error.offset - 1 if error.offset else len(self.text)  # 0: the text ends too early
            raise self._error(f"this cannot be read: {error.msg}", start, start + 1) from None
        except (RecursionError, MemoryError):
            raise ParseError("the expression is nested too deeply") from None

    def _mask(self, node: ast.expr) -> Mask:
        found = self._mask_or_part(node)
        if not isinstance(found, Mask):
            raise self._at(node, "this is a part of a mask: write within(documents(...), per_document([...]))")
        return found

    def _mask_or_part(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._mask(node.left), self._mask(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~self._mask(node.operand)
        if isinstance(node, ast.Name):
            return self._named(node)
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            raise self._at(node, "masks are combined with & | ^ ~, not with and, or, not")
        raise self._at(node, "here stands a mask: a name, a call, or masks combined with & | ^ ~")

    def _named(self, node: ast.Name) -> Mask:
        found = self._look_up(node)
        if not isinstance(found, Mask):
            raise self._at(node, f"{node.id} takes arguments: write {node.id}(...)")
        return found

    def _called(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name):
            raise self._at(node.func, "here stands the name of a mask")
        make = self._look_up(node.func)
        if isinstance(make, Mask):
            raise self._at(node, f"{node.func.id} is itself a mask: write it without brackets")
        arguments = [self._argument(argument) for argument in node.args]
        options = self._options(node, _parameters(make, by_name=False)[: len(arguments)])
        try:
            return make(*arguments, **options)
        except (TypeError, ValueError) as error:
            of_arguments = re.search("unexpected keyword|positional argument", str(error))
            takes = f"; {node.func.id} takes {', '.join(_parameters(make))}" if of_arguments else ""
            raise self._at(node, f"{error}{takes}") from None

    def _options(self, node: ast.Call, by_position: Sequence[str]) -> dict[str, Any]:
        """The keyword arguments; an error if one is given twice."""
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self._at(keyword.value, "** has no meaning here")
            if keyword.arg in options or keyword.arg in by_position:
                first = "by position and by name" if keyword.arg in by_position else "twice"
                raise self._at(keyword, f"{keyword.arg} is given {first}; which is meant?")
            options[keyword.arg] = self._argument(keyword.value)
        return options

    def _look_up(self, node: ast.Name) -> Mask | Callable[..., Any]:
        if node.id in self.names:
            return self.names[node.id]
        hint = suggestion(node.id, self.names) or f"there are {', '.join(self.names)}"
        raise self._at(node, f"no mask is called {node.id!r}; {hint}")

    def _argument(self, node: ast.expr) -> Any:
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [self._argument(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str, type(None))):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return -self._argument(node.operand)
        return self._mask_or_part(node)

    def _at(self, node: ast.expr | ast.keyword, words: str) -> ParseError:
        return self._error(words, _column(self.text, node.col_offset), _column(self.text, node.end_col_offset or 0))

    def _error(self, words: str, start: int, end: int) -> ParseError:
        return ParseError(f"{words}\n  {self.text}\n  {' ' * start}{'^' * max(1, end - start)}")


def _parameters(make: Callable[..., Any], *, by_name: bool = True) -> list[str]:
    """The names of the arguments of a function, in order; with ``by_name`` also keyword-only ones; empty if unknown."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return []
    in_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = inspect.Parameter.KEYWORD_ONLY
    return [each.name for each in parameters if each.kind in in_place or (by_name and each.kind is named)]


def _column(text: str, byte_offset: int) -> int:
    """The column in characters; ast counts bytes of UTF-8."""
    return len(text.encode()[:byte_offset].decode(errors="ignore"))
