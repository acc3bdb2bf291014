"""What `attend` costs in Python before a kernel runs, in calls of functions: they do not depend on the machine."""

import sys

import pytest
import torch

import maskloom as loom
from maskloom.attention import attend
from maskloom.attention.backends import choose, compiled, flash, table_reads
from maskloom.attention.request import Request
from maskloom.core import captures
from tests.attention.test_attend import inputs

LENS = torch.tensor([5, 7, 11])
MASK = loom.causal & loom.lengths(LENS)
B, H, L, D = 3, 2, 150, 64


@pytest.fixture
def launches(monkeypatch):
    """Requests that say that they are on a Hopper GPU, and no kernel behind them: what it would have got."""
    got = []

    def launched(*arguments):
        got.append(arguments)
        return arguments[0], None

    monkeypatch.setattr(compiled, "_compiled_for", lambda kind, dynamic: launched)
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    monkeypatch.setattr(flash, "_HAS_FLASH", True)
    monkeypatch.setattr(choose, "LITTLE", 0)
    return got


def attention(**options):
    """A call of `attend` that was made before."""
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(B, H, L, D, generator=generator, dtype=torch.bfloat16) for _ in range(3)]
    options.setdefault("mask", MASK)

    def call():
        return loom.attend(*qkv, **options)

    call()
    return call


def count_calls(function):
    """How many Python functions run."""
    counted = [0]

    def count(frame, event, argument):
        counted[0] += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counted[0]


OPTIONS = {
    "mask": {},
    "causal": {"mask": loom.causal},
    "block mask": {"mask": loom.block_mask(MASK, L, L, batch=B, heads=1)},
    "triton": {"backend": "triton"},
    "score mod": {"score_mod": loom.scores.alibi(H)},
    "softcap": {"score_mod": loom.scores.softcap(30)},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_second_call_walks_nothing(launches, monkeypatch, kind):
    call = attention(**OPTIONS[kind])
    monkeypatch.setattr(captures, "flatten", lambda held: pytest.fail(f"{held!r} was opened again"))
    call()
    assert len(launches) == 2


MOST_CALLS = 48


def test_a_later_call_is_few_calls(launches):
    for options in ({}, {"backend": "triton"}, {"backend": "flash"}, OPTIONS["causal"], OPTIONS["block mask"]):
        assert count_calls(attention(**options)) <= MOST_CALLS, options


def test_a_later_call_that_cleans_padding_checks_nothing_again(launches, monkeypatch):
    call = attention(clean_padding=True)
    monkeypatch.setattr(attend, "_request", lambda *_: pytest.fail("the arguments were checked again"))
    assert count_calls(call) <= 128


@pytest.mark.parametrize("form", ["everything", "causal", "mask", "block mask", "bool tensor"])
def test_a_later_call_on_the_cpu_is_few_calls(form):
    mask = {
        "everything": None, "causal": loom.causal, "mask": MASK, "block mask": OPTIONS["block mask"]["mask"],
        "bool tensor": torch.ones(L, L, dtype=torch.bool),
    }[form]  # fmt: skip
    assert count_calls(attention(mask=mask)) <= (MOST_CALLS if form != "bool tensor" else 150)


def test_a_later_position_is_few_calls():
    q, k, v = (torch.randn(B, H, length, D) for length in (1, L, L))
    for at in (5, 6, 7):
        loom.attend(q, k, v, MASK, q_offset=at)
    assert count_calls(lambda: loom.attend(q, k, v, MASK, q_offset=8)) <= 64


def test_the_kernel_gets_the_same_blocks_until_a_tensor_is_written_to(launches):
    lens = LENS.clone()
    call = attention(mask=loom.causal & loom.lengths(lens))
    call()
    first, second = (arguments[4] for arguments in launches)
    assert first is second
    lens[0] = 2
    call()
    assert launches[-1][4] is not first


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_a_change_of_a_mask_s_values_records_no_program(launches, monkeypatch, backend):
    """Which reads a kernel must be spared follows from the mask's program, which is that of every mask of its kind."""
    pads = torch.arange(L) >= LENS[:, None]
    call = attention(mask=loom.causal & loom.padding(pads), backend=backend)
    monkeypatch.setattr(table_reads, "record", lambda *_, **__: pytest.fail("a program was recorded again"))
    pads[0, 2] = True
    call()
    attention(mask=loom.causal & loom.padding(~pads), backend=backend)
    assert len(launches) == 3


def test_what_a_kernel_gets_for_a_mask_equals_it_and_does_not_hold_it(launches):
    mask = loom.window(back=3, ahead=1) & loom.lengths(LENS)
    attention(mask=mask, backend="triton")
    given = launches[-1][4].mask_mod
    assert given == mask and given is not mask


def test_a_table_that_begins_to_learn_gets_a_gradient():
    table = torch.zeros(H, 7)
    bias, qkv = loom.scores.relative_bias(table), inputs()
    loom.attend(*qkv, MASK, score_mod=bias)
    table.requires_grad_()
    out = loom.attend(*qkv, MASK, score_mod=bias)
    out.square().sum().backward()
    assert table.grad is not None and table.grad.any()
    table.requires_grad_(False)
    assert not loom.attend(*qkv, MASK, score_mod=bias).requires_grad
