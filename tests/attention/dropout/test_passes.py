"""Dropout of probabilities: the same pairs on every backend, and the output and gradients of the dense computation."""

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.backends import sdpa
from tests.attention.dropout.pairs import kept
from tests.attention.test_host_cost import count_calls

B, H, HKV, Q, K, D, E = 3, 4, 2, 7, 11, 5, 13
SEED = torch.tensor(17)
BACKENDS = ["sdpa", "sliced", "reference"]
LSE = AuxRequest(lse=True)
MASKS = {
    "none": None,
    "causal": loom.causal,
    "padded": loom.causal & loom.lengths([5, 0, 7], [3, 2, 11]),
    "packed": loom.documents(torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])) & loom.causal,
    "table": torch.rand(B, H, Q, K, generator=torch.Generator().manual_seed(3)) < 0.4,
    "block mask": loom.block_mask(loom.window(back=2), Q, K, block_size=4),
    "function": lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 != h % 2,
}


def sample(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(**how):
    shapes = (B, H, Q, D), (B, HKV, K, D), (B, HKV, K, E)
    return [sample(*shape, seed=seed, **how).requires_grad_() for seed, shape in enumerate(shapes)]


def dense(query, key, value, mask, rate, table, *, sinks=None, **options):
    """The probabilities, those that are dropped 0, the others larger."""
    weights = loom.attention_weights(query, key, mask, sinks=sinks, **options)
    return (weights * table / (1 - rate)) @ value.repeat_interleave(H // HKV, 1)


def with_gradients(out, *leaves):
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return out, *torch.autograd.grad((out * weight).sum(), leaves)


@pytest.mark.parametrize("rate", [0.4, 0.9])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKS)
def test_output_and_gradients_are_those_of_the_dense_computation(name, backend, rate, monkeypatch):
    """At a rate of 0.9 many rows keep nothing."""
    monkeypatch.setattr(sdpa, "_DROPPED_CHUNK", 2 * B * H * 2 * K)  # some rows at a time
    qkv, table = inputs(), kept(rate, SEED, B, H, Q, K)
    out = loom.attend(*qkv, MASKS[name], backend=backend, dropout=rate, dropout_seed=SEED)
    expected = dense(*qkv, MASKS[name], rate, table)
    torch.testing.assert_close(with_gradients(out, *qkv), with_gradients(expected, *qkv), rtol=1e-10, atol=1e-12)
    assert rate == 0.4 or (~table).all(-1).any()


@pytest.mark.parametrize("backend", ["sliced", "reference"])
@pytest.mark.parametrize("name", ["causal", "padded", "block mask"])
def test_sinks_and_the_log_sum_exp_are_undropped(name, backend):
    qkv, sinks = inputs(), sample(H, seed=5).requires_grad_()
    options = {"sinks": sinks, "return_aux": LSE, "backend": backend}
    out, aux = loom.attend(*qkv, MASKS[name], dropout=0.4, dropout_seed=SEED, **options)
    torch.testing.assert_close(aux.lse, loom.attend(*qkv, MASKS[name], **options)[1].lse)
    expected = dense(*qkv, MASKS[name], 0.4, kept(0.4, SEED, B, H, Q, K), sinks=sinks)
    torch.testing.assert_close(with_gradients(out, *qkv, sinks), with_gradients(expected, *qkv, sinks))


SCORES = {
    "alibi": (lambda learned: loom.scores.alibi(H), False),
    "softcap": (lambda learned: loom.scores.softcap(2.0), False),
    "learned": (lambda learned: loom.scores.relative_bias(learned), True),
    "function": (lambda learned: lambda score, b, h, q_idx, kv_idx: score * score + learned[h, q_idx], True),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", SCORES)
def test_beside_score_mods(name, backend):
    make, learns = SCORES[name]
    learned = sample(H, 7, seed=6).requires_grad_()
    qkv, score_mod = inputs(), make(learned)
    leaves = (*qkv, learned) if learns else qkv
    options = {"score_mod": score_mod, "scale": 0.3}
    assert loom.explain(*qkv, loom.causal, dropout=0.4, **options).backend == "sliced"
    out = loom.attend(*qkv, loom.causal, backend=backend, dropout=0.4, dropout_seed=SEED, **options)
    expected = dense(*qkv, loom.causal, 0.4, kept(0.4, SEED, B, H, Q, K), **options)
    torch.testing.assert_close(with_gradients(out, *leaves), with_gradients(expected, *leaves))


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_are_of_absolute_places(backend):
    query, _, value = inputs()
    key = sample(B, HKV, K, D, seed=1)
    whole = loom.attend(query, key, value, loom.causal, backend=backend, dropout=0.4, dropout_seed=SEED)
    now, here = slice(3, 5), slice(2, 4)
    options = {"backend": backend, "dropout": 0.4, "dropout_seed": SEED}
    for at in (3, torch.tensor(3), torch.tensor([3, 3, 3])):
        part = loom.attend(query[:, :, now], key, value, loom.causal, q_offset=at, **options)
        torch.testing.assert_close(part, whole[:, :, now])
    part = loom.attend(query[:, here], key[:, 1:], value[:, 1:], loom.causal, h_offset=2, **options)
    torch.testing.assert_close(part, whole[:, here])


def test_a_cache_drops_by_true_positions():
    """Padding on the left and slots of a ring move tokens; the pairs that are dropped are those of their positions."""
    attention = loom.MultiheadFlexAttention(6, 8, 2, dropout=0.5).double()
    x = sample(2, 7, 6)
    expected = attention(x, loom.window(back=2), dropout_seed=SEED).out
    cache = loom.nn.KVCache(2, 2, 5, 4, window=3, dtype=torch.float64)
    with torch.no_grad():
        parts = [
            attention(x[:, at], loom.causal, cache=cache, dropout_seed=SEED).out
            for at in (slice(0, 3), slice(3, 4), slice(4, 6), slice(6, 7))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_of_them(backend):
    """A rate of 1, as torch's: nothing is left, and no NaN."""
    qkv = inputs()
    out = loom.attend(*qkv, MASKS["padded"], backend=backend, dropout=1, dropout_seed=SEED)
    assert not any(found.any() for found in with_gradients(out, *qkv))


@pytest.mark.parametrize("backend", BACKENDS)
def test_none_of_them(backend):
    """A rate of 0 draws nothing, and is a call without dropout, planned as that is."""
    qkv = inputs()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = loom.attend(*qkv, loom.causal, backend=backend)
    for rate in (0.0, 0):
        assert torch.equal(loom.attend(*qkv, loom.causal, backend=backend, dropout=rate, dropout_seed=SEED), expected)
    assert torch.equal(torch.get_rng_state(), before)
    plain = count_calls(lambda: loom.attend(*qkv, loom.causal, backend=backend))
    assert count_calls(lambda: loom.attend(*qkv, loom.causal, backend=backend, dropout=0.0)) == plain


def test_seeds_are_drawn_from_torchs_generator():
    qkv = inputs()
    torch.manual_seed(5)
    first, second = (loom.attend(*qkv, loom.causal, dropout=0.5) for _ in range(2))
    torch.manual_seed(5)
    again = loom.attend(*qkv, loom.causal, dropout=0.5)
    assert torch.equal(first, again) and not torch.equal(first, second)
    state = torch.get_rng_state()
    loom.explain(*qkv, loom.causal, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_forms_of_a_seed():
    qkv = inputs()
    options = {"dropout": 0.5, "mask": loom.causal}
    expected = loom.attend(*qkv, dropout_seed=SEED, **options)
    for seed in (17, torch.tensor([17]), torch.tensor(17, dtype=torch.int32), torch.tensor([[17]], dtype=torch.uint8)):
        assert torch.equal(loom.attend(*qkv, dropout_seed=seed, **options), expected)
    assert torch.equal(
        loom.attend(*qkv, dropout_seed=2**64 - 3, **options), loom.attend(*qkv, dropout_seed=-3, **options)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_counted_up_before_the_backward(backend, monkeypatch):
    monkeypatch.setattr(sdpa, "_DROPPED_CHUNK", 1)
    qkv, seed = inputs(), SEED.clone()
    out = loom.attend(*qkv, loom.causal, backend=backend, dropout=0.4, dropout_seed=seed)
    seed += 1
    expected = dense(*qkv, loom.causal, 0.4, kept(0.4, SEED, B, H, Q, K))
    torch.testing.assert_close(with_gradients(out, *qkv), with_gradients(expected, *qkv))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_again(reentrant):
    qkv, found = inputs(), []
    for run in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)):
        torch.manual_seed(3)
        out = run(lambda *qkv: loom.attend(*qkv, loom.causal, dropout=0.5), *qkv)
        leaves = [tensor.grad for tensor in qkv]
        out.square().sum().backward()
        found.append([out, *(tensor.grad.clone() for tensor in qkv)])
        assert leaves == [None] * 3
        for tensor in qkv:
            tensor.grad = None
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_and_autocast(backend, dtype):
    qkv, table = inputs(dtype=torch.float32), kept(0.4, SEED, B, H, Q, K)
    exact = dense(*(tensor.double() for tensor in qkv), loom.causal, 0.4, table)
    options = {"backend": backend, "dropout": 0.4, "dropout_seed": SEED}
    half = loom.attend(*(tensor.to(dtype) for tensor in qkv), loom.causal, **options)
    with torch.autocast("cpu", dtype=dtype):
        cast = loom.attend(*qkv, loom.causal, **options)
    for out in (half, cast):
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps * float(exact.detach().abs().max())
        )


def test_clean_padding_beside_it():
    pads = loom.batches.pads_from_lengths(torch.tensor([5, 0, 7]), Q)
    x = sample(3, B, H, Q, D).unbind(0)
    poisoned = [tensor.masked_fill(pads[:, None, :, None], torch.nan) for tensor in x]
    options = {"dropout": 0.4, "dropout_seed": SEED, "clean_padding": True}
    mask = loom.causal & loom.padding(pads)
    expected = loom.attend(*x, mask, **options)
    assert torch.equal(loom.attend(*poisoned, mask, **options), expected) and expected.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_vmap(backend):
    """Over queries with one seed, over seeds, and with a seed that vmap may not draw for each."""
    qkv = [tensor.detach() for tensor in inputs()]
    seeds = torch.tensor([17, 3])

    def attention(query, seed):
        return loom.attend(query, *qkv[1:], loom.causal, dropout=0.4, dropout_seed=seed, backend=backend)

    queries = torch.stack([qkv[0], -qkv[0]])
    for dims, seed in ((0, None), SEED), ((0, 0), seeds), ((None, 0), seeds):
        query = queries if dims[0] == 0 else qkv[0]
        found = torch.vmap(attention, in_dims=dims)(query, seed)
        each = [attention(query[at] if dims[0] == 0 else query, seed[at] if dims[1] == 0 else seed) for at in range(2)]
        torch.testing.assert_close(found, torch.stack(each))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(attention, in_dims=(0, None))(queries, None)
    found = torch.vmap(attention, in_dims=(0, None), randomness="different")(torch.stack([qkv[0]] * 2), None)
    assert not torch.equal(*found)


@pytest.mark.parametrize("of_seeds", ["tensor", "int", "drawn"])
def test_under_a_full_graph_compile(of_seeds):
    torch._dynamo.reset()
    qkv, graphs = inputs(), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    def attention(query, key, value, seed, rate):
        return loom.attend(query, key, value, loom.causal, dropout=rate, dropout_seed=seed)

    compiled = torch.compile(attention, backend=count, fullgraph=True)
    for number in (3, 4, 5, 6):
        seed = {"tensor": torch.tensor(number), "int": number, "drawn": None}[of_seeds]
        torch.manual_seed(number)
        out = compiled(*qkv, seed, 0.4)
        torch.manual_seed(number)
        torch.testing.assert_close(with_gradients(out, *qkv), with_gradients(attention(*qkv, seed, 0.4), *qkv))
    assert len(graphs) <= 2  # an int is a number of the first graph, and a symbol of the second


def test_it_is_explained():
    qkv = inputs()
    found = loom.explain(*qkv, loom.causal, dropout=0.1)
    assert found.backend == "sdpa" and found.dropout.startswith("one pass over each key twice")
    assert found.skips == "nothing, since the pairs that are kept go in as a table"
    said = loom.explain(*qkv, loom.causal, dropout=0.1, return_aux=LSE)
    assert said.backend == "sliced" and said.dropout.startswith("two passes forward and two backward")
    assert f"\ndropout: {said.dropout}\n" in str(said)
    assert loom.explain(*qkv, loom.causal).dropout is None
    assert "dropout" not in str(loom.explain(*qkv, loom.causal))
