"""How errors show values: never a whole tensor, whatever is given where."""

import inspect

import numpy as np
import pytest
import torch

import maskloom as loom
from maskloom.core.words import brief, brief_name, is_array, what_it_is
from maskloom.testing import public_names

LARGE = 1303


def large_values():
    """Values whose repr is long, or reads a whole tensor."""
    numbers = torch.arange(LARGE)
    return {
        "tensor": numbers,
        "table": numbers.view(-1, 1) * torch.rand(2, generator=torch.Generator().manual_seed(0)),
        "list": list(range(LARGE)),
        "tuple": tuple(range(LARGE)),
        "text": "a" * LARGE,
        "array": np.arange(LARGE),
        "tensors": [numbers, numbers],
        "dict": {"kernel": numbers},
        "mask": loom.masks.global_tokens(list(range(LARGE))),
        "block mask": loom.block_mask(loom.masks.global_tokens(list(range(LARGE))), 3, 5, device="cpu"),
        "function": lambda score, b, h, q_idx, kv_idx: score,
    }


LARGE_VALUES = large_values()
OTHERS = ("parse", "save_figure")  # a text is shown with a mark under the place that is wrong
CALLABLES = [name for name, value in public_names().items() if inspect.isfunction(value) and name not in OTHERS]


def said(call):
    """The words of the error that a call raises, none if it raises none."""
    try:
        call()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CALLABLES)
def test_no_error_prints_a_whole_value(name):
    function = public_names()[name]
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "device"]  # torch says those
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    for kind, value in LARGE_VALUES.items():
        for p in parameters:
            if p.kind is p.VAR_POSITIONAL:
                words = said(lambda value=value: function(value, loom.causal))
            else:
                others = dict.fromkeys(required, 3)
                words = said(lambda value=value, p=p, others=others: function(**{**others, p.name: value}))
            assert len(words) < 900, (kind, p.name, len(words), words[:300])
            assert "tensor(" not in words, (kind, p.name, words[:300])


def test_brief():
    assert brief(torch.zeros(2, 3)) == "float32[2, 3]"
    assert brief(np.zeros((5, 7), dtype=np.int64)) == "int64[5, 7]"
    assert brief([torch.zeros(3), 2]) == "[float32[3], 2]"
    assert brief({"a": torch.zeros(3)}) == "{'a': float32[3]}"
    assert brief(3) == "3" and brief("abc") == "'abc'" and brief(None) == "None"
    assert brief(loom.causal & loom.window(back=3)) == "causal & window(back=3, ahead=0)"
    assert brief_name(loom.causal) == "causal" and brief_name(test_what_it_is) == "test_what_it_is"
    assert all(len(brief(value)) <= 200 and len(brief_name(value)) <= 200 for value in LARGE_VALUES.values())


def test_what_it_is():
    assert what_it_is(torch.zeros(2, 3)) == "Tensor float32[2, 3]"
    assert what_it_is(np.zeros(3)) == "ndarray float64[3]"
    assert what_it_is(3) == "int"
    assert not is_array(loom.causal)


def test_a_tensor_that_is_combined_with_a_mask():
    table = torch.zeros(1, 7, dtype=torch.bool)
    for tensor in (table, table.numpy(), table.float(), table.long()):
        for combine in (
            lambda t: loom.causal & t,
            lambda t: t & loom.causal,
            lambda t: loom.causal | t,
            lambda t: t | loom.causal,
            lambda t: loom.causal ^ t,
            lambda t: t ^ loom.causal,
            lambda t: loom.and_masks(loom.causal, t),
            lambda t: loom.masks.shifted(t, q_offset=3),
            lambda t: loom.masks.per_head([loom.causal, t]),
        ):
            with pytest.raises(
                TypeError, match=r"got (Tensor|ndarray) .*\[1, 7\].* padding\(t\) or key_padding\(t\)"
            ) as raised:
                combine(tensor)
            assert "real(t)" in str(raised.value) and "from_dense(t)" in str(raised.value)
