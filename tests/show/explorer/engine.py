"""The page's JavaScript in V8 (mini-racer), without a browser."""

import functools
import json
from typing import Any

import torch

from maskloom.masks.algebra import Mask
from maskloom.show.explorer.instructions import Instructions
from maskloom.show.explorer.parts import SCRIPTS, script_file
from maskloom.show.explorer.programs import Operand, lowered
from maskloom.show.explorer.stored import stored
from tests.show.explorer.reading import unpacked

_WITHOUT_A_BROWSER = SCRIPTS[: SCRIPTS.index("colours.js") + 1]

_HELPERS = """

/** The answers of an operand, "1" or "0" for each pair. */
function answers({code, tables, slot, b, h, queries, keys}) {
  const held = tables.map((one) => tableOf(numbersIn(one, fromBase64(one.text))));
  const pairs = {b, h, queries: Float64Array.from(queries), keys: Float64Array.from(keys)};
  const [found] = new Machine(code, held).run([slot], pairs);
  return queries.map((_, row) => keys.map((_, col) => found.data[placeIn(found, row, col)]).join("")).join("");
}
"""


@functools.cache
def engine() -> Any:
    """V8 with the page's scripts."""
    from py_mini_racer import MiniRacer

    context = MiniRacer()
    context.eval("\n".join([*map(script_file, _WITHOUT_A_BROWSER), _HELPERS]))
    return context


def instructions_of(mask: Mask, rows: int = 3, heads: int = 2) -> tuple[Instructions, Operand]:
    """A mask's instructions for all batch rows and heads."""
    out = Instructions()
    return out, lowered(out, mask, set(range(rows)), set(range(heads)))


def in_javascript(
    found: tuple[Instructions, Operand], b: int, h: int, queries: list[int], keys: list[int]
) -> torch.Tensor:
    """The answers that the page computes: bool (queries, keys)."""
    out, operand = found
    assert operand.slot is not None, operand.reason
    asked = {"code": out.code, "tables": [unpacked(stored(table)) for table in out.tables], "slot": operand.slot}
    text = engine().call("answers", asked | {"b": b, "h": h, "queries": queries, "keys": keys})
    return torch.tensor([letter == "1" for letter in text]).reshape(len(queries), len(keys))


def value(expression: str) -> Any:
    """A JavaScript expression as a Python value."""
    return json.loads(engine().eval(f"JSON.stringify({expression})"))
