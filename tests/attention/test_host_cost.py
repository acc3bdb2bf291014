"""What `attend` costs in Python before a kernel runs, in calls of functions: they do not depend on the machine."""

import gc
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
    """How many Python functions run, without those of a garbage collection that happens to fall in."""
    counted = [0]

    def count(frame, event, argument):
        counted[0] += event == "call"

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
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
    calls = attention(clean_padding=True), attention(clean_padding=True, backend="triton")
    monkeypatch.setattr(attend, "_request", lambda *_: pytest.fail("the arguments were checked again"))
    assert count_calls(calls[0]) <= 108
    assert count_calls(calls[1]) <= 76  # of values alone


MOST_CALLS_WITH_A_SCORE_MOD = 72
SCORES = {
    "alibi": loom.scores.alibi(H),
    "softcap": loom.scores.softcap(30),
    "relative bias": loom.scores.relative_bias(torch.zeros(H, 7)),
    "composed": loom.scores.compose(loom.scores.softcap(30), loom.scores.relative_bias(torch.zeros(H, 7))),
}


@pytest.mark.parametrize("in_a_block_mask", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_a_later_call_with_a_score_mod_checks_nothing_again(launches, monkeypatch, name, in_a_block_mask):
    mask = loom.causal & loom.lengths(LENS)
    call = attention(mask=loom.block_mask(mask, L, L) if in_a_block_mask else mask, score_mod=SCORES[name])
    monkeypatch.setattr(attend, "_request", lambda *_: pytest.fail("the arguments were checked again"))
    assert count_calls(call) <= MOST_CALLS_WITH_A_SCORE_MOD
    assert launches[0][3] is SCORES[name] is launches[1][3]


@pytest.mark.parametrize("name", SCORES)
def test_a_later_call_with_a_score_mod_on_the_cpu_checks_nothing_again(monkeypatch, name):
    call = attention(score_mod=SCORES[name])
    monkeypatch.setattr(attend, "_request", lambda *_: pytest.fail("the arguments were checked again"))
    assert count_calls(call) <= 200  # 330 to 390 where they were


def test_a_score_mod_of_a_plain_function_is_looked_at_anew():
    """It may read anything."""
    grows = [1.0]
    qkv = [torch.randn(B, H, 13, D) for _ in range(3)]

    def scaled(score, b, h, q_idx, kv_idx):
        return score * grows[0]

    for grows[0] in (1.0, 2.0):
        out = loom.attend(*qkv, MASK, score_mod=scaled, q_offset=0)
        torch.testing.assert_close(out, loom.reference(*qkv, MASK, score_mod=scaled)[0])


@pytest.mark.parametrize("backend", ["sdpa", "sliced"])
def test_the_second_score_mod_of_a_structure_is_the_one_that_runs(backend):
    qkv = [torch.randn(B, H, 13, D).requires_grad_() for _ in range(3)]
    mask = loom.causal & loom.lengths(LENS)
    for table in (torch.randn(H, 7), torch.randn(H, 7), torch.zeros(H, 7), torch.randn(H, 9)):
        score_mod = loom.scores.relative_bias(table)
        out = loom.attend(*qkv, mask, score_mod=score_mod, backend=backend, q_offset=0)
        expected = loom.reference(*qkv, mask, score_mod=score_mod)[0]
        torch.testing.assert_close(out, expected)
        weight = torch.randn_like(out)
        found, right = (torch.autograd.grad(one, qkv, weight) for one in (out, expected))
        torch.testing.assert_close(found, right)


def test_each_learned_table_of_a_structure_gets_its_own_gradient():
    qkv = [torch.randn(B, H, 13, D) for _ in range(3)]
    for _ in range(3):
        table = torch.randn(H, 7, requires_grad=True)
        loom.attend(*qkv, MASK, score_mod=loom.scores.relative_bias(table), q_offset=0).square().sum().backward()
        same = table.detach().clone().requires_grad_()
        loom.reference(*qkv, MASK, score_mod=loom.scores.relative_bias(same))[0].square().sum().backward()
        torch.testing.assert_close(table.grad, same.grad, atol=1e-4, rtol=1e-4)


def test_a_table_that_is_written_to_after_the_forward_is_noticed():
    qkv = [torch.randn(B, H, 13, D) for _ in range(3)]
    table = torch.randn(H, 7, requires_grad=True)
    score_mod = loom.scores.relative_bias(table)
    for _ in range(3):
        out = loom.attend(*qkv, MASK, score_mod=score_mod, q_offset=0)
        with torch.no_grad():
            table.add_(1)
        with pytest.raises(RuntimeError, match=r"written to after the forward|modified by an inplace operation"):
            out.sum().backward()


def test_a_score_mod_for_other_heads_is_refused_at_each_call():
    qkv = [torch.randn(B, H, 13, D) for _ in range(3)]
    for heads in (H, H + 1, H, H + 1):
        if heads == H:
            loom.attend(*qkv, MASK, score_mod=loom.scores.alibi(heads), q_offset=0)
            continue
        with pytest.raises(ValueError, match=f"is for {heads} query heads; the attention has {H}"):
            loom.attend(*qkv, MASK, score_mod=loom.scores.alibi(heads), q_offset=0)


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
