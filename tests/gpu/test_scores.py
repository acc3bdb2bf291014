"""Score mods through compiled FlexAttention, forward and backward, learned tables too."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import maskloom as loom
from maskloom.attention.backends import compiled
from tests.evidence import gather

B, H, HKV, D = 3, 6, 2, 64


def table(columns, heads=H):
    return torch.randn(heads, columns, device="cuda", generator=torch.Generator("cuda").manual_seed(columns))


ALL = {
    "alibi": lambda: loom.scores.alibi(H).to("cuda"),
    "softcap": lambda: loom.scores.softcap(2.5),
    "relative_bias": lambda: loom.scores.relative_bias(table(33)),
    "relative_bias_t5": lambda: loom.scores.relative_bias(table(32), buckets=loom.scores.t5_buckets(32)),
    "compose": lambda: loom.scores.compose(
        loom.scores.softcap(2), loom.scores.alibi(H).to("cuda"), loom.scores.relative_bias(table(5))
    ),
    "shifted": lambda: loom.scores.shifted_score(
        loom.scores.alibi(11).to("cuda"), q_offset=40, kv_offset=-2, h_offset=5
    ),
    "shifted_by_row": lambda: loom.scores.shifted_score(
        loom.scores.relative_bias(table(9, heads=11)), q_offset=torch.tensor([4, 0, 7], device="cuda"), h_offset=3
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


@pytest.mark.parametrize("buckets", [None, loom.scores.t5_buckets(32, max_distance=100)])
def test_gradients_reach_the_table(buckets):
    def make(learned):
        return loom.scores.relative_bias(learned, buckets=buckets)

    # every pair of a query and a key adds to an entry, atomically, in no order: errors grow like a random walk
    unordered = torch.finfo(torch.float32).eps * (3 * 300 * 400 / 33) ** 0.5
    gather(
        lambda q, k, v, learned: loom.attend(q, k, v, loom.causal, score_mod=make(learned)),
        *inputs(300, torch.float32),
        table=loom.causal.dense(300, 400, device="cuda"),
        score_mod=make,
        learned=(table(33 if buckets is None else 32),),
    ).check(more={"learned 0": unordered})


def learning():
    """A table, a table by batch row, and one number, that learn."""
    shapes = [(H, 300), (B, H, 300, 400), (1,)]
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(shape, device="cuda", generator=generator).requires_grad_() for shape in shapes]


TAKEN = {
    "one read": lambda t, p, n: lambda s, b, h, i, j: s + t[h, i],
    "four indices": lambda t, p, n: lambda s, b, h, i, j: s * p[b, h, i, j],
    "numbers": lambda t, p, n: lambda s, b, h, i, j: s * n[0] - t[H - 1, j % 300],
    "a choice": lambda t, p, n: lambda s, b, h, i, j: torch.where(i > j, t[h, i], s),
    "sizes": lambda t, p, n: lambda s, b, h, i, j: s + t[h, (i - j).clamp(0, t.shape[1] - 1)],
    "three": lambda t, p, n: lambda s, b, h, i, j: s * n[0] + p[b, h, i, j] + t[h, i],
    "clones": lambda t, p, n: two_reads(t, t.clone()),
}
REFUSED = {
    "two reads": lambda t, p, n: two_reads(t, t),
    "chained": lambda t, p, n: lambda s, b, h, i, j: s + p[b][h][i][j],
    "joined": lambda t, p, n: lambda s, b, h, i, j: s + p[b, h][i, j],
    "transposed": lambda t, p, n: lambda s, b, h, i, j: s + t.T[i, h],
    "without dimensions": lambda t, p, n: shrunk(n.sum()),
    "computed": lambda t, p, n: lambda s, b, h, i, j: torch.stack([s, 2 * s])[0],
}


def two_reads(first, second):
    return lambda s, b, h, i, j: s + first[h, i] + second[h, j % 300]


def shrunk(number):
    return lambda s, b, h, i, j: s * number


def gradients(attention, score_mod_of):
    leaves = [tensor.requires_grad_() for tensor in inputs(300, torch.float32)]
    held = learning()
    out = attention(*leaves, score_mod_of(*held))
    return torch.autograd.grad(out.square().sum(), [*leaves, *held], allow_unused=True, materialize_grads=True)


def exact(score_mod_of):
    def attention(*arguments):
        *qkv, score_mod = arguments
        return loom.reference(*(tensor.double() for tensor in qkv), loom.causal, score_mod=score_mod)[0]

    return gradients(attention, score_mod_of)


def check(found, right):
    """Some of the gradients are 0, but for rounding: what is added to all scores of a query cancels out."""
    for grad, exactly in zip(found, right, strict=True):
        assert (grad - exactly).norm() <= 1e-3 * exactly.norm() + 1e-3


@pytest.mark.parametrize("name", TAKEN)
def test_learned_tensors_that_triton_takes(name):
    found = gradients(
        lambda q, k, v, mod: loom.attend(q, k, v, loom.causal, score_mod=mod, backend="triton"), TAKEN[name]
    )
    check(found, exact(TAKEN[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_learned_tensors_that_triton_does_not_take(name):
    """They are refused before anything is launched, run on the reference, and torch's own kernel has no backward for them."""
    score_mod_of = REFUSED[name]

    def triton(q, k, v, mod):
        return loom.attend(q, k, v, loom.causal, score_mod=mod, backend="triton")

    with pytest.raises(ValueError, match="backend 'triton' cannot do this: score_mod"):
        gradients(triton, score_mod_of)
    found = gradients(lambda q, k, v, mod: loom.attend(q, k, v, loom.causal, score_mod=mod), score_mod_of)
    check(found, exact(score_mod_of))
    if name == "transposed":  # which torch's kernel happens to take
        return
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True)
    with pytest.raises(Exception, match=r"multiple indexing|scatter|assert|Error|not supported|Unsupported"):
        gradients(lambda q, k, v, mod: compiled(q, k, v, score_mod=mod, enable_gqa=True), score_mod_of)


def test_a_gradient_that_is_differentiated_again_says_who_can():
    leaves = [tensor.requires_grad_() for tensor in inputs(300, torch.float32)]
    out = loom.attend(*leaves, loom.causal, backend="triton")
    with pytest.raises(RuntimeError, match=r"has no second derivative, .* backend='reference'"):
        torch.autograd.grad(out.square().sum(), leaves, create_graph=True)


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_forward_mode_derivatives_name_who_can(backend):
    query, key, value = inputs(300, torch.float32)
    with pytest.raises(ValueError, match="has no forward-mode derivative"):
        torch.func.jvp(lambda q: loom.attend(q, key, value, loom.causal, backend=backend), (query,), (query,))


def test_tables_and_offsets_change_freely():
    before = compiled.compiled_kinds()
    for step in range(2, 14):
        bias = loom.scores.shifted_score(loom.scores.relative_bias(table(2 * step + 1)), q_offset=step)
        loom.attend(*inputs(200 + step, torch.bfloat16), loom.causal, score_mod=bias)
    assert compiled.compiled_kinds() == before + 1
