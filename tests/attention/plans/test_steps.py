"""Few queries with a table in place of a mask: one plan for all tables and all numbers of keys, and the same answers."""

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest
from torch.testing import assert_close

import maskloom as loom
from maskloom.attention import attend
from maskloom.attention.backends import decode
from maskloom.attention.plans import steps
from maskloom.attention.request import Request
from maskloom.core.cache import LRU
from tests.attention.test_host_cost import count_calls

B, H, HKV, D, E = 3, 6, 2, 5, 7


def inputs(q_len, kv_len, **options):
    generator = torch.Generator().manual_seed(q_len * kv_len)
    sizes = (H, q_len, D), (HKV, kv_len, D), (HKV, kv_len, E)
    return [torch.randn(B, *size, generator=generator).requires_grad_(bool(options.get("trains"))) for size in sizes]


def table(q_len, kv_len, batch=B, heads=1):
    generator = torch.Generator().manual_seed(kv_len)
    return torch.rand(batch, heads, q_len, kv_len, generator=generator) < 0.6


def check(qkv, given):
    expanded = given.expand(B, given.shape[1], qkv[0].shape[2], given.shape[3])
    out = loom.attend(*qkv, given)
    expected = loom.reference(*qkv, loom.masks.from_dense(expanded.clone()))[0]
    assert_close(out, expected)
    return out, expected


@pytest.mark.parametrize("heads", [1, H])
@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("q_len", [1, 2, 13, 17])
def test_each_table_is_that_of_its_call(q_len, rows, batch, heads):
    for kv_len in (17, 19, 23, 19):
        check(inputs(q_len, kv_len), table(q_len if rows > 1 else 1, kv_len, batch, heads))


def test_another_number_of_keys_checks_nothing_again(monkeypatch):
    loom.attend(*inputs(1, 17), table(1, 17))
    monkeypatch.setattr(attend, "_request", lambda *_: pytest.fail("the arguments were checked again"))
    qkv, given = inputs(1, 19), table(1, 19)
    assert count_calls(lambda: loom.attend(*qkv, given)) <= 30
    given[1] = ~given[1]
    check(qkv, given)


def test_gradients_with_a_table():
    for kv_len in (17, 19):
        qkv = inputs(2, kv_len, trains=True)
        out, expected = check(qkv, table(2, kv_len))
        weight = torch.randn_like(out)
        found, right = (torch.autograd.grad(one, qkv, weight) for one in (out, expected))
        assert_close(found, right)


def test_what_comes_back_beside_the_output():
    for kv_len in (17, 19):
        qkv, given = inputs(2, kv_len), table(2, kv_len)
        sinks = torch.linspace(-1, 1, H)
        out, aux = loom.attend(*qkv, given, sinks=sinks, return_aux=AuxRequest(lse=True))
        right, lse = loom.reference(*qkv, loom.masks.from_dense(given), sinks=sinks)
        assert_close((out, aux.lse), (right, lse))


@pytest.mark.parametrize("change", ["autocast", "offset", "score mod", "clean padding"])
def test_what_has_no_plan_of_its_own(change):
    options = {
        "offset": {"q_offset": torch.tensor(3)}, "score mod": {"score_mod": loom.scores.softcap(2.0)},
        "clean padding": {"clean_padding": True},
    }.get(change, {})  # fmt: skip
    for kv_len in (17, 19):
        qkv, given = inputs(2, kv_len), table(2, kv_len)
        loom.attend(*qkv, given)
        with torch.autocast("cpu", enabled=change == "autocast"):
            out = loom.attend(*qkv, given, **options)
        assert out.dtype == (torch.bfloat16 if change == "autocast" else torch.float32)
        expected = loom.reference(*qkv, loom.masks.from_dense(given), score_mod=options.get("score_mod"))[0]
        assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def test_tables_that_do_not_fit_are_errors_whatever_came_before():
    qkv = inputs(2, 17)
    loom.attend(*qkv, table(2, 17))
    with pytest.raises(ValueError, match=r"here B = 3, H = 6, Q = 2, K = 17; got \(3, 1, 2, 13\)"):
        loom.attend(*qkv, table(2, 13))
    with pytest.raises(ValueError, match=r"here B = 3, H = 6, Q = 2, K = 17; got \(2, 1, 2, 17\)"):
        loom.attend(*qkv, table(2, 17, batch=2))
    with pytest.raises(TypeError, match=r"the mask is a bool tensor, .* got torch.int64; .* is table.bool\(\)"):
        loom.attend(*qkv, table(2, 17).long())
    with pytest.raises(ValueError, match="key and value have the same heads and length"):
        loom.attend(qkv[0], qkv[1], inputs(2, 19)[2], table(2, 17))
    check(qkv, torch.zeros(B, 1, 2, 17).masked_fill(~table(2, 17), -torch.inf) == 0)


def test_on_a_gpu_explain_says_what_runs(monkeypatch):
    ran = []
    monkeypatch.setattr(steps, "_table_plans", LRU(3))
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(decode, "has_triton", lambda: True)
    monkeypatch.setattr(decode, "_kernel", lambda: lambda *given: ran.append(given[3].shape) or (given[0], None))
    for kv_len in (17, 19):
        qkv, given = inputs(1, kv_len), table(1, kv_len)
        assert loom.explain(*qkv, given).backend == "decode"
        loom.attend(*qkv, given)
    assert ran == [(B, 1, 1, 17), (B, 1, 1, 19)]
