"""The mask as an expression of operands: expression.js against Python."""

import itertools
import json
from random import Random

import pytest

import maskloom as loom
from maskloom.show.explorer.programs import operands_of
from tests.show.explorer.engine import value

A, B, C, D = loom.causal, loom.window(back=2), loom.sinks(3), loom.prefix(5)
MASKS = [A, A & B, A & B | C, ~(A & ~B) ^ C, (A | B) & (C | D), A ^ B ^ C ^ D, ~A, A & ~(B | C & ~D), (A | B) & A]


def truth(whole, values):
    if whole is None:
        return True
    if "leaf" in whole:
        return values[whole["leaf"]]
    parts = [truth(part, values) for part in whole["of"]]
    joins = {"and": all, "or": any, "xor": lambda parts: sum(parts) % 2 == 1, "not": lambda parts: not parts[0]}
    return bool(joins[whole["join"]](parts))


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_values_and_what_decides_them(mask):
    whole, operands = operands_of(mask)
    for values in itertools.product([False, True], repeat=len(operands)):
        flips = [[flip ^ (place == leaf) for place, flip in enumerate(values)] for leaf in range(len(operands))]
        decide = [leaf for leaf, flipped in enumerate(flips) if truth(whole, flipped) != truth(whole, values)]
        given = f"{json.dumps(whole)}, (leaf) => {json.dumps(values)}[leaf]"
        assert value(f"[truth({given}), deciding({given}).sort()]") == [truth(whole, values), decide]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_states_of_tiles_never_say_too_much(mask):
    whole, operands = operands_of(mask)
    rnd = Random(0)
    for _ in range(30):
        pairs = [[rnd.random() < rnd.choice([0, 0.5, 1]) for _ in range(3)] for _ in operands]
        states = [2 if all(pair) else 1 if any(pair) else 0 for pair in pairs]
        (found,) = value(f"[...statesOf({json.dumps(whole)}, 1, (leaf) => Uint8Array.of({states}[leaf]))]")
        answers = [truth(whole, [pair[place] for pair in pairs]) for place in range(3)]
        assert found == 1 or answers == [found == 2] * 3


def test_operands_that_are_off_are_not_there():
    whole, _ = operands_of(A & B | ~C)

    def left(*off):
        return value(f"without({json.dumps(whole)}, new Set({list(off)}))")

    assert left() == whole
    assert left(2) == whole["of"][0]
    assert left(0) == {"join": "or", "of": [{"leaf": 1}, whole["of"][1]]}
    assert left(0, 1) == {"join": "not", "of": [{"leaf": 2}]}
    assert left(0, 1, 2) is None
    assert value("[truth(null, null), [...statesOf(null, 1, null)], leavesOf(null)]") == [True, [2], []]
