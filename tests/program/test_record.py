"""The program of a mask_mod, recorded."""

import numpy as np
import pytest
import torch

import maskloom as loom
from maskloom.program.dependence import dependence_of
from maskloom.program.program import Value
from maskloom.program.record import record

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


def test_an_answer_that_depends_on_nothing_is_a_constant():
    program = record(loom.everything, "cpu")
    assert program.steps == () and isinstance(program.answer, torch.Tensor)


def test_writes_in_place_become_values():
    def mask(b, h, q, kv):
        seen = q >= kv
        seen &= q < 7
        return seen

    program = record(mask, "cpu")
    assert program.unsupported_reason is None and _names(mask) == ["ge", "lt", "bitwise_and"]
    assert program.answer == Value(6)


@pytest.mark.parametrize(
    "ask",
    [
        lambda q: q.item(), int, bool, lambda q: PADS[0, :q], lambda q: q.tolist(), lambda q: q.numpy(), np.asarray,
        lambda q: torch.tensor([q, 3]), lambda q: torch.tensor(data=[q]), lambda q: torch.as_tensor([[q]]), lambda q: q.new_tensor([q]),
    ],
)  # fmt: skip
def test_the_value_of_an_index_cannot_be_asked_for(ask):
    with pytest.raises(TypeError, match="is run for all indices at once"):
        record(lambda b, h, q, kv: (q >= kv) & (ask(q) is not None), "cpu")


def test_the_value_of_a_captured_tensor_can():
    offset = torch.tensor(3)
    assert _names(lambda b, h, q, kv: q >= kv + int(offset)) == ["add", "ge"]


def test_what_nothing_reads_is_left_out():
    table = torch.arange(7)

    def mask(b, h, q_idx, kv_idx):
        _ = table[kv_idx] + 1
        return table[q_idx] >= b

    program = record(mask, "cpu")
    used = program.without_unused()
    assert [step.op.overloadpacket.__name__ for step in program.steps] == ["index", "add", "index", "ge"]
    assert [step.op.overloadpacket.__name__ for step in used.steps] == ["index", "ge"]
    assert dependence_of(program).sizes["kv_idx"] == {7} and used.answer == program.answer
