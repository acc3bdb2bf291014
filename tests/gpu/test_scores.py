"""Score mods through compiled FlexAttention, forward and backward, learned tables too."""

import pytest
import torch

import maskloom as loom
from maskloom.attention import compiled
from tests.evidence import gather

B, H, HKV, D = 3, 6, 2, 64


def table(columns, heads=H):
    return torch.randn(heads, columns, device="cuda", generator=torch.Generator("cuda").manual_seed(columns))


ALL = {
    "alibi": lambda: loom.alibi(H).to("cuda"),
    "softcap": lambda: loom.softcap(2.5),
    "relative_bias": lambda: loom.relative_bias(table(33)),
    "relative_bias_t5": lambda: loom.relative_bias(table(32), buckets=loom.t5_buckets(32)),
    "compose": lambda: loom.compose(loom.softcap(2), loom.alibi(H).to("cuda"), loom.relative_bias(table(5))),
    "shifted": lambda: loom.shifted_score(loom.alibi(11).to("cuda"), q_offset=40, kv_offset=-2, h_offset=5),
    "shifted_by_row": lambda: loom.shifted_score(
        loom.relative_bias(table(9, heads=11)), q_offset=torch.tensor([4, 0, 7], device="cuda"), h_offset=3
    ),
}


def inputs(q_len, dtype):
    generator = torch.Generator("cuda").manual_seed(q_len)
    shapes = [(B, H, q_len, D), (B, HKV, q_len + 100, D), (B, HKV, q_len + 100, D)]
    return [torch.randn(shape, device="cuda", generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_forward_and_backward(name, dtype):
    score_mod = ALL[name]()
    gather(
        lambda *qkv: loom.attend(*qkv, loom.causal, score_mod=score_mod),
        *inputs(300, dtype),
        table=loom.causal.dense(300, 400, device="cuda"),
        score_mod=score_mod,
    ).check()


@pytest.mark.parametrize("buckets", [None, loom.t5_buckets(32, max_distance=100)])
def test_gradients_reach_the_table(buckets):
    def make(learned):
        return loom.relative_bias(learned, buckets=buckets)

    # every pair of a query and a key adds to an entry, atomically, in no order: errors grow like a random walk
    unordered = torch.finfo(torch.float32).eps * (3 * 300 * 400 / 33) ** 0.5
    gather(
        lambda q, k, v, learned: loom.attend(q, k, v, loom.causal, score_mod=make(learned)),
        *inputs(300, torch.float32),
        table=loom.causal.dense(300, 400, device="cuda"),
        score_mod=make,
        learned=(table(33 if buckets is None else 32),),
    ).check(more={"learned 0": unordered})


def test_tables_and_offsets_change_freely():
    before = compiled.compiled_kinds()
    for step in range(2, 14):
        bias = loom.shifted_score(loom.relative_bias(table(2 * step + 1)), q_offset=step)
        loom.attend(*inputs(200 + step, torch.bfloat16), loom.causal, score_mod=bias)
    assert compiled.compiled_kinds() == before + 1
