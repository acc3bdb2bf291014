"""Random expressions over every mask, up to five deep: tables, Boolean laws, simplification, text, and tiles."""

import hypothesis.strategies as st
import torch
from hypothesis import given

import maskloom as loom
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.core import captures
from tests.catalog import EVERY

B, H, Q, K = 3, 2, 13, 17


def tables() -> dict[loom.Mask, torch.Tensor]:
    """The masks of the catalogue that fit one batch size, number of heads and pair of lengths, and their tables."""
    found = {}
    for make, q_len, kv_len in EVERY.values():
        mask = make()
        batch, heads = mask.dense(q_len, kv_len).shape[:2]
        if (q_len, kv_len) == (Q, K) and batch in (1, B) and heads in (1, H):
            found[mask] = mask.dense(Q, K, batch=B, heads=H)
    return found


TABLES = tables()
Pair = tuple[loom.Mask, torch.Tensor]

leaves = st.sampled_from(list(TABLES.items()))


def deeper(parts: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    two = st.tuples(parts, parts)
    return st.one_of(
        parts.map(lambda m: (~m[0], ~m[1])),
        two.map(lambda m: (m[0][0] & m[1][0], m[0][1] & m[1][1])),
        two.map(lambda m: (m[0][0] | m[1][0], m[0][1] | m[1][1])),
        two.map(lambda m: (m[0][0] ^ m[1][0], m[0][1] ^ m[1][1])),
    )


expressions = leaves
for _ in range(4):
    expressions = st.one_of(leaves, deeper(expressions))


def dense(mask: loom.Mask) -> torch.Tensor:
    return mask.dense(Q, K, batch=B, heads=H)


def test_there_is_something_to_draw_from():
    assert len(TABLES) > 60


@given(expressions)
def test_an_expression_is_the_expression_of_its_tables(pair):
    mask, table = pair
    assert torch.equal(dense(mask), table)


@given(expressions, expressions, expressions)
def test_boolean_laws(first, second, third):
    (a, _), (b, _), (c, _) = first, second, third
    for left, right in (
        (a & (b | c), (a & b) | (a & c)),
        (a | (b & c), (a | b) & (a | c)),
        (a & (a | b), a),
        (a | (a & b), a),
        (~(a & b), ~a | ~b),
        (~(a | b), ~a & ~b),
        (a ^ b, (a & ~b) | (~a & b)),
        ((a ^ b) ^ c, a ^ (b ^ c)),
        (a & ~a, loom.nothing),
        (a | ~a, loom.everything),
        (a & b, b & a),
    ):
        assert torch.equal(dense(left), dense(right)), f"{left} and {right}"


@given(expressions)
def test_simplified_and_parsed_expressions_are_equal(pair):
    mask, table = pair
    assert torch.equal(dense(loom.masks.simplify(mask)), table)
    if not captures.tensors(mask):
        assert loom.parse(str(mask)) == mask


@given(expressions, st.sampled_from([(4, 4), (3, 5), (8, 2)]))
def test_intervals_never_skip_what_is_visible_nor_fill_what_is_hidden(pair, block):
    mask, table = pair
    for exact in (True, False):
        states = tile_states(loom.block_mask(mask, Q, K, batch=B, heads=H, block_size=block, exact=exact))
        for place in range(states.numel()):
            b, h, row, column = (int(index) for index in torch.unravel_index(torch.tensor(place), states.shape))
            tile = table[b, h, row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
            state = states[b, h, row, column]
            whole = tile.shape == block
            right = FULL if bool(tile.all()) and whole else PARTIAL if bool(tile.any()) else SKIPPED
            assert state == right if exact else state in (right, PARTIAL)
