"""Guards of compiled attention: what never changes is not asked for, what may change is."""

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.nn.attention.flex_attention import flex_attention

import maskloom as loom
from maskloom.attention.backends import compiled
from maskloom.attention.kernels.guards import that_may_fail
from maskloom.core.cache import LRU

B, H, L, D = 3, 2, 40, 16
LENS = torch.tensor([20, 5, 40])
BACK = 2


def near(b, h, q_idx, kv_idx):
    return (kv_idx <= q_idx) & (q_idx - kv_idx <= BACK)


def weighted(score, b, h, q_idx, kv_idx):
    return score * BACK


@pytest.fixture
def made(monkeypatch):
    """The functions that are compiled; graphs are traced and run eagerly."""
    functions, pooled = [], LRU(256)
    monkeypatch.setattr(compiled, "_pool", pooled)
    monkeypatch.setattr(compiled, "_COMPILER", "eager")
    with_code = compiled._with_its_own_code
    monkeypatch.setattr(
        compiled, "_with_its_own_code", lambda *named: functions.append(with_code(*named)) or functions[-1]
    )
    torch._dynamo.reset()
    return functions


def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, L, D, generator=generator) for _ in range(3)]


@torch.no_grad()
def attention(mask, score_mod=None):
    blocks = loom.block_mask(mask, L, L, block_size=16)
    how = {"score_mod": score_mod, "scale": None, "wants_lse": False, "kernel_options": None}
    return compiled.fused_attention(*qkv(), blocks, **how)[0]


def guards(function):
    """The guards of the one graph of a function, one a line."""
    (entry,) = _debug_get_cache_entry_list(function.__code__)
    lines = str(entry.guard_manager).splitlines()
    return [line for line in lines if "+- " in line and "Manager" not in line.partition(":")[0]]


def test_there_are_no_more_than_of_torch_s_own(made):
    attention(loom.causal & loom.lengths(LENS))
    (ours,) = map(guards, made)
    assert not any("__import_maskloom" in guard or "__import_torch_dot" in guard for guard in ours if "G['" in guard)

    def by_hand(b, h, q_idx, kv_idx):
        return (kv_idx <= q_idx) & (kv_idx < LENS[b]) & (q_idx < LENS[b])

    torch.compile(flex_attention, backend="eager", dynamic=True)(
        *qkv(), block_mask=loom.block_mask(by_hand, L, L, block_size=16)
    )
    assert len(ours) <= len(guards(flex_attention)) + 16  # the parts of the mask, and their classes


@pytest.mark.parametrize("how", [{"mask": near}, {"mask": loom.causal & near}])
def test_a_global_that_a_user_s_mask_reads_is_asked_for(made, monkeypatch, how):
    for back in (2, 5, 2):
        monkeypatch.setattr(f"{__name__}.BACK", back)
        expected = loom.reference(*qkv(), loom.as_mask(near).dense(L, L))[0]
        torch.testing.assert_close(attention(**how), expected, atol=1e-5, rtol=1e-5)
    assert len(made) == 1


def test_a_global_that_a_user_s_score_mod_reads_is_asked_for(made, monkeypatch):
    for back in (2, 5, 2):
        monkeypatch.setattr(f"{__name__}.BACK", back)
        expected = loom.reference(*qkv(), loom.causal, score_mod=weighted)[0]
        torch.testing.assert_close(attention(loom.causal, weighted), expected, atol=1e-5, rtol=1e-5)


def test_tensors_and_settings_are_asked_for(made):
    """New tensors need no new graph; gradients do."""
    for lens in (LENS, LENS.flip(0), LENS.clamp(max=7)):
        expected = loom.reference(*qkv(), loom.causal & loom.lengths(lens))[0]
        torch.testing.assert_close(attention(loom.causal & loom.lengths(lens)), expected, atol=1e-5, rtol=1e-5)
    (function,) = made
    assert len(_debug_get_cache_entry_list(function.__code__)) == 1


@pytest.mark.parametrize(
    ("source", "is_asked"),
    [
        ("L['query']", True),
        ("", True),
        ("G['rebuilt'].__code__", False),
        ("G['torch'].compiler", False),
        ("G['__import_torch'].x", False),
        ("G['__import_torch_dot_nn'].x", False),
        ("G['__import_torchvision'].x", True),
        ("G['__import_maskloom_dot_masks'].x", False),
        ("G['__import_maskloom_of_mine'].x", True),
        ("G['__import___main__'].WIDTH", True),
        ("G['___unnamed_scope_7']['WIDTH']", True),
        ("G['__builtins_dict___4']['len']", False),
    ],
)
def test_which_guards_are_asked(source, is_asked):
    class Entry:
        name = source

    assert that_may_fail([Entry()]) == [is_asked]
