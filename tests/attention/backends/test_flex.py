"""What the fused kernels are told beside what attention was asked for."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.attend import run_backend as run
from maskloom.attention.backends import flash, flex
from maskloom.attention.backends.flash import Flash
from maskloom.attention.backends.triton import Triton
from maskloom.attention.request import Request


@pytest.fixture
def describe(monkeypatch):
    """The kernel options and inputs of each call."""
    calls = []

    def stub(query, key, value, blocks, **how):
        calls.append((how["kernel_options"], query, key, value))
        return torch.zeros(*query.shape[:3], value.shape[-1]), None

    monkeypatch.setattr(flex, "fused_attention", stub)
    return calls


def request(q_len, kv_len, **how):
    query, key, value = torch.randn(2, 4, q_len, 24), torch.randn(2, 4, kv_len, 24), torch.randn(2, 4, kv_len, 40)
    return Request(query, key, value, loom.window(back=5), **how)


@pytest.mark.parametrize(
    "q_len, kv_len, fit", [(128, 256, True), (256, 384, True), (128, 300, False), (100, 128, False), (130, 77, False)]
)
def test_tiles_that_fit_both_lengths_are_told(describe, q_len, kv_len, fit):
    run(Triton(), request(q_len, kv_len))
    assert describe[0][0] == ({"IS_DIVISIBLE": True} if fit else {})


@pytest.mark.parametrize(
    "q_len, kv_len, block_size, options",
    [
        (256, 512, 256, {"IS_DIVISIBLE": True}),
        (256, 384, 256, {"IS_DIVISIBLE": False}),
        (384, 256, (256, 128), {"IS_DIVISIBLE": False}),
        (384, 256, (128, 256), {"IS_DIVISIBLE": True}),
        (384, 384, (192, 128), {"IS_DIVISIBLE": True}),
        (128, 256, 64, {"IS_DIVISIBLE": True}),
        (192, 192, 64, {}),
    ],
)
def test_tiles_that_end_behind_a_length_do_not_fit_it(describe, q_len, kv_len, block_size, options):
    blocks = loom.block_mask(loom.everything, q_len, kv_len, block_size=block_size)
    run(Triton(), request(q_len, kv_len)._replace(mask=blocks))
    assert describe[0][0] == options


def test_options_that_were_given_stay(describe):
    given = {"IS_DIVISIBLE": False, "BLOCK_M": 64}
    run(Triton(), request(128, 128, kernel_options=given))
    assert describe[0][0] == given == {"IS_DIVISIBLE": False, "BLOCK_M": 64}


def test_flash_gets_no_strides_of_0(describe, monkeypatch):
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    asked = request(128, 128)
    asked = asked._replace(key=asked.key[:, :1].expand(2, 4, 128, 24), value=asked.value[:1].expand(2, 4, 128, 40))
    run(Flash(), asked)
    options, query, key, value = describe[0]
    assert options == {"BACKEND": "FLASH"} and query is asked.query
    assert 0 not in (*key.stride(), *value.stride())
    assert torch.equal(key, asked.key) and torch.equal(value, asked.value)
    run(Triton(), asked)
    assert describe[1][2] is asked.key
