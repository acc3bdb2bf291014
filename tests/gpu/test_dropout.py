"""Dropout of probabilities on the GPU: Triton's kernel drops the pairs that the table and the reference drop."""

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.backends.compiled import compiled_kinds
from tests.evidence import gather, plain_reference
from tests.gpu.test_compile import BATCH, HEADS, LENS, inputs

Q = 517
SEED = 17
LSE = AuxRequest(lse=True)


def seed(number=SEED):
    return torch.tensor(number, device="cuda")


def masks():
    return {
        "none": None,
        "causal": loom.causal,
        "padded": loom.causal & loom.lengths(LENS),
        "packed": loom.documents(offsets=torch.tensor([0, 100, 101, 300, Q], device="cuda"), length=Q) & loom.causal,
        "window": loom.window(back=30, ahead=5),
        "block mask": loom.block_mask(loom.causal, Q, Q, device="cuda"),
    }


def kept(rate, q_len=Q, kv_len=Q, number=SEED):
    """Values that name their keys show which pairs are kept: bool (B, H, Q, K), by the reference."""
    query = torch.zeros(BATCH, HEADS, q_len, 1, device="cuda")
    key, value = torch.zeros(BATCH, HEADS, kv_len, 1, device="cuda"), torch.eye(kv_len, device="cuda")
    value = value.expand(BATCH, HEADS, -1, -1)
    return loom.attend(query, key, value, backend="reference", dropout=rate, dropout_seed=seed(number)) > 0


def dropped(table, rate):
    """The dense computation with a table of what is kept, as `gather` calls it."""

    def plain(query, key, value, mask, *, score_mod=None, scale=None):
        options = {"score_mod": score_mod, "scale": scale}
        lse = plain_reference(query, key, value, mask, **options)[1]
        joined = table if mask is None else table & mask
        out, some = plain_reference(query, key, value, joined, **options)
        share = torch.exp(some.masked_fill(some.isneginf(), 0) - lse.masked_fill(some.isneginf(), 0))
        return (out * share.masked_fill(some.isneginf(), 0)[..., None] / (1 - rate)).to(query.dtype), lse

    return plain


@pytest.mark.parametrize("rate", [0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
def test_output_and_gradients(backend, dtype, rate):
    """0.9 with a window leaves rows that keep nothing."""
    qkv = [tensor.to(dtype) for tensor in inputs(Q)]
    for name in ("none", "window", "padded"):
        mask = masks()[name]
        table = None if mask is None else mask.dense(Q, Q, batch=BATCH, device="cuda")
        gather(
            lambda *qkv, mask=mask: loom.attend(*qkv, mask, backend=backend, dropout=rate, dropout_seed=seed()),
            *qkv,
            table=table,
            plain=dropped(kept(rate), rate),
        ).check()


@pytest.mark.parametrize("name", masks())
def test_the_pairs_are_the_same_on_every_backend(name):
    """With scores of 0 and values that name keys, an output is the probabilities themselves."""
    mask, table = masks()[name], kept(0.3, kv_len=Q)
    query = torch.zeros(BATCH, HEADS, Q, 64, device="cuda", dtype=torch.bfloat16)
    found = []
    for first in range(0, Q, 64):  # 64 of the keys are named at a time
        value = torch.zeros(BATCH, HEADS, Q, 64, device="cuda", dtype=torch.bfloat16)
        keys = torch.arange(first, min(first + 64, Q), device="cuda")
        value[:, :, keys, keys - first] = 1
        out = loom.attend(query, query, value, mask, backend="triton", dropout=0.3, dropout_seed=seed())
        found.append(out[..., : len(keys)] > 0)
    found = torch.cat(found, -1)
    if isinstance(mask, loom.masks.Mask):
        table = table & mask.dense(Q, Q, batch=BATCH, device="cuda")
    elif mask is not None:
        table = table & loom.causal.dense(Q, Q, device="cuda")
    assert torch.equal(found, table)


def test_auto_takes_triton_and_nothing_compiles_for_a_new_seed_or_rate():
    q, k, v = (tensor.requires_grad_() for tensor in inputs(Q))
    assert loom.explain(q, k, v, loom.causal, dropout=0.1).backend == "triton"
    loom.attend(q, k, v, loom.causal, dropout=0.1).sum().backward()
    kinds = compiled_kinds()
    for number, rate in ((1, 0.1), (2, 0.2), (3, 0.5)):
        loom.attend(q, k, v, loom.causal, dropout=rate, dropout_seed=seed(number)).sum().backward()
    assert compiled_kinds() == kinds


def test_score_mods_that_learn_sinks_and_the_log_sum_exp():
    q, k, v = (tensor.requires_grad_() for tensor in inputs(Q, dtype=torch.float32))
    generator = torch.Generator("cuda").manual_seed(4)
    bias, sinks = (
        torch.randn(HEADS, *more, device="cuda", generator=generator).requires_grad_() for more in ((33,), ())
    )
    results = []
    for backend in ("triton", "reference"):
        out, aux = loom.attend(
            q, k, v, masks()["padded"], score_mod=loom.scores.relative_bias(bias), sinks=sinks, return_aux=LSE,
            backend=backend, dropout=0.3, dropout_seed=seed(),
        )  # fmt: skip
        results.append([out, aux.lse, *torch.autograd.grad(out.square().sum(), (q, k, v, bias, sinks))])
    ours, theirs = (found.pop(5) for found in results)  # an entry of the bias sums thousands of terms, which may cancel
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)


def test_offsets():
    q, k, v = inputs(Q)
    options = {"backend": "triton", "dropout": 0.3, "dropout_seed": seed()}
    whole = loom.attend(q, k, v, loom.causal, **options)
    for at in (200, torch.tensor(200, device="cuda"), torch.full((BATCH,), 200, device="cuda")):
        part = loom.attend(q[:, :, 200:397], k, v, loom.causal, q_offset=at, **options)
        torch.testing.assert_close(part, whole[:, :, 200:397], rtol=2e-2, atol=2e-2)


def test_drawn_seeds_and_checkpointing():
    qkv, found = [tensor.requires_grad_() for tensor in inputs(Q)], []
    for run in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        torch.manual_seed(3)
        out = run(lambda *qkv: loom.attend(*qkv, loom.causal, dropout=0.5), *qkv)
        found.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


def test_inside_a_full_graph_compile():
    blocks = loom.block_mask(loom.causal & loom.lengths(LENS), Q, Q, device="cuda")
    qkv = [tensor.requires_grad_() for tensor in inputs(Q)]

    def attention(query, key, value, at):
        return loom.attend(query, key, value, blocks, dropout=0.3, dropout_seed=at)

    compiled, found = torch.compile(attention, fullgraph=True), []
    for number in (3, 4, 5):
        for run in (compiled, attention):
            out = run(*qkv, seed(number))
            found.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
        for ours, eager in zip(*found[-2:], strict=True):  # a query that sees few keys has large gradients that cancel
            assert (ours - eager).float().norm() < 0.01 * eager.float().norm()


def test_no_wait_for_the_device():
    qkv = [tensor.requires_grad_() for tensor in inputs(Q)]
    loom.attend(*qkv, loom.causal, dropout=0.1).sum().backward()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loom.attend(*qkv, loom.causal, dropout=0.1).sum().backward()
        loom.attend(*qkv, loom.causal, dropout=0.1, dropout_seed=3).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_rate_of_many_pairs():
    table = kept(0.1, 1009, 2003)
    expected = (0.1 * 0.9 / table.numel()) ** 0.5
    assert abs(float((~table).double().mean()) - 0.1) < 5 * expected
