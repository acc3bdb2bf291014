"""The recorded program of a mask_mod, and what is read from it."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import maskloom as loom
from maskloom.masks.program import Ref, record
from maskloom.masks.reading import read, reading_of
from tests.blocks.random_masks import differing

PADS = torch.zeros(3, 50, dtype=torch.bool)


def _names(mask):
    return [step.op.overloadpacket.__name__ for step in record(mask, "cpu").steps]


def test_only_what_depends_on_an_index_is_a_step():
    offset = torch.tensor(3)
    assert _names(lambda b, h, q, kv: q >= kv + (offset * 2 + 1)) == ["add", "ge"]


def test_table_reads_are_lookups():
    assert _names(lambda b, h, q, kv: PADS[b][kv]) == ["index", "index"]
    assert _names(lambda b, h, q, kv: PADS[b, kv]) == ["index"]
    assert _names(lambda b, h, q, kv: PADS[b, 3]) == ["index"]


CUBE = torch.arange(3 * 5 * 7).reshape(3, 5, 7)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, kv: CUBE[:, kv][b, q],
        lambda b, h, q, kv: CUBE[b, :, q][kv],
        lambda b, h, q, kv: CUBE[..., q][b, kv],
        lambda b, h, q, kv: CUBE[b, ..., q][kv],
        lambda b, h, q, kv: CUBE[b, ...][kv][q],
        lambda b, h, q, kv: CUBE[b, None, kv][0, q],
        lambda b, h, q, kv: CUBE[None, b, :, None, q][0, kv, 0],
        lambda b, h, q, kv: CUBE[0, :, q][kv],
        lambda b, h, q, kv: CUBE[-1, kv, 1:][q % 6],
        lambda b, h, q, kv: CUBE[b, ::2, q].sum(),
        lambda b, h, q, kv: CUBE[b, 1:3].amax(0)[q],
    ],
)
def test_reads_beside_slices_are_those_of_torch(function):
    def mask(b, h, q_idx, kv_idx):
        return function(b, h, q_idx, kv_idx) % 4 > 1

    program = record(mask, "cpu")
    assert program.obstacle is None and program.steps[0].op is torch.ops.aten.index.Tensor
    theirs = create_block_mask(mask, 3, 1, 7, 5, device="cpu", BLOCK_SIZE=(2, 3))
    assert differing(loom.create_block_mask(mask, 3, 1, 7, 5, "cpu", (2, 3)), theirs) == []


def test_an_answer_that_depends_on_nothing_is_a_constant():
    program = record(loom.everything, "cpu")
    assert program.steps == () and isinstance(program.answer, torch.Tensor)


def test_writes_in_place_become_values():
    def mask(b, h, q, kv):
        seen = q >= kv
        seen &= q < 7
        return seen

    program = record(mask, "cpu")
    assert program.obstacle is None and _names(mask) == ["ge", "lt", "bitwise_and"]
    assert program.answer == Ref(6)


def test_marks_and_sizes():
    reading = read(lambda b, h, q, kv: PADS[b][kv] & (q >= 0), "cpu")
    assert reading.marks == {"b", "q_idx", "kv_idx"}
    assert reading.sizes["b"] == {3} and reading.sizes["kv_idx"] == {50} and reading.sizes["q_idx"] == frozenset()


def test_a_table_of_one_row_depends_on_no_row():
    assert read(lambda b, h, q, kv: PADS[:1][b, kv], "cpu").marks == {"kv_idx"}


def test_marks_survive_an_obstacle():
    def mask(b, h, q, kv):
        seen = q >= kv
        view = seen[None]
        seen &= h < 2
        return view[0]

    program = record(mask, "cpu")
    assert program.obstacle is not None
    assert reading_of(program).marks == {"h", "q_idx", "kv_idx"}


@pytest.mark.parametrize("ask", [lambda q: q.item(), int, bool, lambda q: PADS[0, :q]])
def test_the_value_of_an_index_cannot_be_asked_for(ask):
    with pytest.raises(TypeError, match="is run for all indices at once"):
        record(lambda b, h, q, kv: (q >= kv) & (ask(q) is not None), "cpu")


def test_the_value_of_a_captured_tensor_can():
    offset = torch.tensor(3)
    assert _names(lambda b, h, q, kv: q >= kv + int(offset)) == ["add", "ge"]
