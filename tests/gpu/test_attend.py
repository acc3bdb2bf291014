"""`attend` on the GPU: each backend by name, what auto chooses, and what every one of them must keep to."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, noop_mask
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import maskloom as loom
from maskloom.attention.backends import choose
from maskloom.attention.backends.compiled import compiled_kinds
from maskloom.attention.backends.flash import has_flash
from maskloom.attention.zeros import zeros_both_ways
from maskloom.blocks.dense import dense_of
from tests.evidence import gather, plain_reference
from tests.gpu.test_compile import BATCH, HEAD_DIM, HEADS, LENS, graphs, inputs
from tests.reported import REPORTED, check_report

FLEX = ["triton", "flash"] if has_flash() else ["triton"]
EVERY = [*FLEX, "varlen", "sdpa", "reference"]
Q = 517
LSE = AuxRequest(lse=True)


def documents(length=Q, end=None):
    offsets = torch.tensor([0, 100, 101, 300, end or length], device="cuda")
    return loom.documents(offsets=offsets, length=length)


def masks():
    return {
        "documents": documents(),
        "documents & causal": documents() & loom.causal,
        "documents & window": loom.window(back=30, ahead=5) & documents(end=400),
        "documents & causal & window": loom.window(back=30) & documents(end=400) & loom.causal,
        "causal & lengths": loom.causal & loom.lengths(LENS),
        "causal": loom.causal,
        "everything": loom.everything,
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("backend", EVERY)
def test_backends_by_name(backend, name):
    mask = masks()[name]
    if backend == "varlen" and not name.startswith("documents"):
        with pytest.raises(ValueError, match=r"documents\(offsets="):
            loom.attend(*inputs(Q), mask, backend=backend)
        return
    table = mask.dense(Q, Q, batch=BATCH, device="cuda")
    gather(lambda *qkv: loom.attend(*qkv, mask, backend=backend), *inputs(Q), table=table).check()


def test_auto(monkeypatch):
    monkeypatch.setattr(choose, "LITTLE", 0)
    q, k, v = inputs(Q)
    assert loom.explain(q, k, v, loom.causal & loom.lengths(LENS)).backend == FLEX[-1]
    assert loom.explain(q.double(), k.double(), v.double(), loom.causal).backend == "reference"
    bias = torch.zeros(HEADS, 9, device="cuda", requires_grad=True)
    trained = loom.explain(q, k, v, score_mod=loom.scores.relative_bias(bias))
    assert trained.backend == "triton"
    if has_flash():
        assert "gradients are wrong" in trained.ruled_out["flash"]
        assert "remainder" in loom.explain(q, k, v, loom.masks.dilated(back=9, step=3)).ruled_out["flash"]
        number = torch.tensor(3, device="cuda")
        reading = loom.explain(q, k, v, lambda b, h, q_idx, kv_idx: q_idx + number >= kv_idx)
        assert "a tensor without dimensions" in reading.ruled_out["flash"]


@pytest.mark.parametrize("backend", FLEX)
def test_lengths_that_tiles_fit_and_others(backend):
    """They are kinds of their own: what the one need not look at, the other must."""
    before = compiled_kinds()
    for length in (256, 384, 300, 640, 517):
        mask = loom.causal & loom.lengths(torch.tensor([length, 1, length - 100][:BATCH], device="cuda"))
        table = mask.dense(length, length)
        gather(lambda *qkv, m=mask: loom.attend(*qkv, m, backend=backend), *inputs(length), table=table).check()
    assert compiled_kinds() - before <= (2 if backend == "triton" else 1)


@pytest.mark.parametrize("backend", FLEX)
def test_tables_count_where_the_mask_sees_everything(backend):
    tiles = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]], device="cuda", dtype=torch.bool)
    numbers, indices = tiles.sum(-1).int()[None, None], (~tiles).int().argsort(stable=True).int()[None, None]
    given = BlockMask.from_kv_blocks(torch.zeros_like(numbers), indices, numbers, indices, 128, noop_mask, (384, 384))
    constants = (noop_mask, loom.everything, loom.nothing, loom.masks.shifted(loom.everything, q_offset=3))
    for mask_mod in (*constants, lambda b, h, q_idx, kv_idx: q_idx >= 0):
        given.mask_mod = mask_mod
        table = dense_of(given, BATCH, HEADS)
        assert not table.all()
        gather(lambda *qkv: loom.attend(*qkv, given, backend=backend), *inputs(384), table=table).check()


@pytest.mark.parametrize("backend", EVERY)
def test_padding_never_leaks(backend):
    end = 333
    lens = torch.full((BATCH,), end, device="cuda")
    mask = (documents(end=end) if backend == "varlen" else loom.lengths(lens)) & loom.causal
    clean, grad = inputs(Q), inputs(Q, seed=5)[0]
    results = []
    for poison in (0.0, math.nan, math.inf, 1e30):
        leaves = [tensor.clone() for tensor in clean]
        for tensor in leaves:
            tensor[:, :, end:] = poison
            tensor.requires_grad_()
        incoming = grad.clone()
        incoming[:, :, end:] = poison
        out = loom.attend(*leaves, mask, backend=backend, clean_padding=True)
        out.backward(incoming)
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for poisoned in results[1:]:
        for ours, expected in zip(poisoned, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0 if backend in ("triton", "reference") else 1e-2)
            assert not ours[:, :, end:].any()


def padded(backend):
    """A mask that hides padding, of a whole row of the batch where the backend can, and where that is."""
    if backend == "varlen":
        return documents(end=333) & loom.causal, (torch.arange(Q, device="cuda") >= 333).expand(BATCH, Q)
    lens = torch.tensor([333, 0, Q], device="cuda")
    return loom.causal & loom.lengths(lens), torch.arange(Q, device="cuda") >= lens[:, None]


def zero_over_zero_at(where):
    """A score_mod whose derivative is infinite where query and key are both padding."""
    real = (~where).float()

    def over_visible(score, b, h, q_idx, kv_idx):
        return score / (real[b, q_idx] + real[b, kv_idx])

    return over_visible


def filled(query, key, value, mask, where, **options):
    """What clean_padding amounts to, every tensor filled in both directions by torch's own operations."""
    rows = where[:, None, :, None]
    out, aux = loom.attend(*(tensor.masked_fill(rows, 0.0) for tensor in (query, key, value)), mask, **options)
    lse = None if aux.lse is None else torch.where(where[:, None], aux.lse.detach(), aux.lse)
    return torch.where(rows, out.detach(), out), lse


def cleaned(query, key, value, mask, where, **options):
    out, aux = loom.attend(query, key, value, mask, clean_padding=True, **options)
    return out, aux.lse


BENT = [
    *[(backend, "nothing") for backend in EVERY],
    *[(backend, "softcap") for backend in (*FLEX, "reference")],
    *[(backend, more) for backend in ("triton", "reference") for more in ("0 / 0", "sinks")],
]


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize(("backend", "more"), BENT)
def test_clean_padding_gives_what_filling_everything_gives(backend, more, poison):
    mask, where = padded(backend)
    score_mod = {"softcap": loom.scores.softcap(5.0), "0 / 0": zero_over_zero_at(where)}.get(more)
    lse = more == "sinks"
    results = []
    for attention in (cleaned, filled):
        leaves = [tensor.masked_fill(where[:, None, :, None], poison).requires_grad_() for tensor in inputs(Q)]
        sinks = torch.tensor([0.5, -1.0, 3.0, 0.0], device="cuda", requires_grad=True) if lse else None
        found = attention(
            *leaves, mask, where,
            backend=backend, score_mod=score_mod, sinks=sinks, return_aux=AuxRequest(lse=lse),
        )  # fmt: skip
        outputs = [output for output in found if output is not None]
        grads = [inputs(Q, seed=5)[0].masked_fill(where[:, None, :, None], poison)]
        if sinks is not None:
            leaves.append(sinks)
            grads.append(grads[0][..., 0].to(outputs[1].dtype))
        results.append([output.detach() for output in outputs] + list(torch.autograd.grad(outputs, leaves, grads)))
    exact = backend in ("triton", "reference")
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0 if exact else 1e-2)
    ours = results[0]
    for tensor in (ours[0], *ours[2 if lse else 1 :][:3]):
        assert tensor.isfinite().all() and not tensor.transpose(1, 2)[where].any()


def test_the_log_sum_exp_of_padding_needs_no_filling():
    mask, where = padded("triton")
    q, k, v = (tensor.masked_fill(where[:, None, :, None], math.nan) for tensor in inputs(Q))
    for trained in (False, True):
        out, aux = loom.attend(
            q.requires_grad_(trained), k, v, mask, backend="triton", clean_padding=True, return_aux=LSE
        )
        assert (aux.lse.transpose(1, 2)[where] == -math.inf).all() and not out.transpose(1, 2)[where].any()


@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize("width", [HEAD_DIM, HEAD_DIM - 1])
def test_zeros_in_words_of_eight_bytes(width, heads_last):
    _, where = padded("triton")
    tensor = torch.randn(BATCH, HEADS, Q, width, device="cuda").to(torch.bfloat16)
    if heads_last:
        tensor = tensor.transpose(1, 2).contiguous().transpose(1, 2)
    dirty = tensor.masked_fill(where[:, None, :, None], math.nan).requires_grad_()
    found = zeros_both_ways(dirty, where[:, None, :, None])
    (grad,) = torch.autograd.grad(found, dirty, dirty.detach())
    expected = tensor.masked_fill(where[:, None, :, None], 0.0)
    assert torch.equal(found, expected) and torch.equal(grad, expected)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_log_sum_exp(backend):
    q, k, v = inputs(Q, dtype=torch.float32)
    mask = loom.causal & loom.lengths(LENS.clamp(max=400))
    with torch.no_grad():
        _, aux = loom.attend(q, k, v, mask, backend=backend, return_aux=LSE)
    _, expected = loom.reference(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(aux.lse.double(), expected, rtol=2e-3, atol=2e-3)


def test_log_sum_exp_has_a_gradient_or_is_refused():
    q, k, v = (tensor.requires_grad_() for tensor in inputs(Q))
    table = loom.causal.dense(Q, Q, device="cuda")

    def both(query, key, value):  # so that the evidence sees a gradient through the log-sum-exp
        out, aux = loom.attend(query, key, value, loom.causal, backend="triton", return_aux=LSE)
        return out * aux.lse[..., None].to(out.dtype)

    def plainly(query, key, value, mask, **how):
        out, lse = plain_reference(query, key, value, mask, **how)
        return out * lse[..., None].to(out.dtype), lse

    gather(both, q, k, v, table=table, plain=plainly).check()
    if has_flash():
        with pytest.raises(ValueError, match="has no gradient before torch"):
            loom.attend(q, k, v, loom.causal, backend="flash", return_aux=LSE)
    assert loom.explain(q, k, v, loom.causal, return_aux=LSE).backend == "triton"


def test_split_keys_merge():
    q, k, v = inputs(Q)
    parts = []
    for first, last in ((0, 200), (200, Q)):
        mask = loom.masks.shifted(loom.causal, kv_offset=first)
        out, aux = loom.attend(q, k[:, :, first:last], v[:, :, first:last], mask, return_aux=LSE, backend="triton")
        parts += [out, aux.lse]
    merged, _ = loom.merge(*parts)
    whole, _ = loom.reference(q.double(), k.double(), v.double(), loom.causal)
    assert (merged.double() - whole).norm() / whole.norm() < 0.01


def test_sinks():
    sinks = torch.tensor([0.5, -1.0, 3.0, 0.0], device="cuda", requires_grad=True)
    same = sinks.detach().double().requires_grad_()
    q, k, v = inputs(Q)
    out = loom.attend(q, k, v, loom.causal, sinks=sinks)
    expected = loom.attend(q.double(), k.double(), v.double(), loom.causal, sinks=same)
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    grad = inputs(Q, seed=4)[0]
    out.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(sinks.grad.double(), same.grad, rtol=0.05, atol=0.5)


def score_mods():
    return {"softcap": loom.scores.softcap(5.0), "alibi": loom.scores.alibi(HEADS).to("cuda"),
            "both": loom.scores.compose(loom.scores.alibi(HEADS).to("cuda"), loom.scores.softcap(5.0)), "by distance": closer}  # fmt: skip


def closer(score, b, h, q_idx, kv_idx):
    return score - (q_idx - kv_idx) * 0.01


@pytest.mark.parametrize("name", score_mods())
@pytest.mark.parametrize("backend", FLEX)
def test_score_mods(backend, name):
    score_mod, table = score_mods()[name], loom.causal.dense(Q, Q, device="cuda")
    if backend == "flash" and name != "softcap":
        with pytest.raises(ValueError, match="with others its gradients are wrong"):
            loom.attend(*inputs(Q), loom.causal, score_mod=score_mod, backend=backend)
        return
    gather(
        lambda *qkv: loom.attend(*qkv, loom.causal, score_mod=score_mod, backend=backend),
        *inputs(Q), table=table, score_mod=score_mod,
    ).check()  # fmt: skip


def test_a_learned_bias_gets_its_gradient():
    table = torch.randn(HEADS, 41, device="cuda", requires_grad=True)
    same = table.detach().double().requires_grad_()
    q, k, v = inputs(200)
    grad = inputs(200, seed=4)[0]
    loom.attend(q, k, v, loom.causal, score_mod=loom.scores.relative_bias(table)).backward(grad)
    out, _ = loom.reference(q.double(), k.double(), v.double(), loom.causal, score_mod=loom.scores.relative_bias(same))
    out.backward(grad.double())
    assert (table.grad.double() - same.grad).norm() / same.grad.norm() < 0.02


@pytest.mark.parametrize("heads", [(4, 2), (6, 2), (3, 1)])
def test_decoding_a_static_cache(heads):
    mask, kv_len = loom.causal & loom.window(back=300), 900
    q, k, v = (torch.randn(2, h, kv_len, 64, device="cuda", dtype=torch.bfloat16) for h in (heads[0], *[heads[1]] * 2))
    whole, _ = loom.reference(q.double(), k.double(), v.double(), mask)
    before = None
    with torch.no_grad():
        for at in (0, 1, 127, 128, 500, 899):
            position = torch.tensor(at, device="cuda")
            blocks = loom.block_mask(mask, 1, kv_len, q_offset=position)
            out = loom.attend(q[:, :, at : at + 1], k, v, blocks, backend="triton")
            torch.testing.assert_close(out.double(), whole[:, :, at : at + 1], rtol=0.02, atol=0.02)
            direct = loom.attend(q[:, :, at : at + 1], k, v, mask, q_offset=position, backend="triton")
            torch.testing.assert_close(direct, out, rtol=0, atol=0)
            before = graphs() if before is None else before
    assert graphs() == before


def test_decoding_a_growing_cache():
    q, k, v = (torch.randn(2, 4, 400, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    alibi = loom.scores.alibi(4).to("cuda")
    whole, _ = loom.reference(q.double(), k.double(), v.double(), loom.causal, score_mod=alibi)
    before = graphs()
    with torch.no_grad():
        for length in (200, 201, 202, 255, 256, 257, 300):
            queries = q[:, :, length - 3 : length]
            position = torch.tensor(length - 3, device="cuda")
            out = loom.attend(
                queries,
                k[:, :, :length],
                v[:, :, :length],
                loom.causal,
                score_mod=alibi,
                q_offset=position,
                backend="triton",
            )
            torch.testing.assert_close(out.double(), whole[:, :, length - 3 : length], rtol=0.02, atol=0.02)
    assert graphs() - before <= 3  # one, one where the length first changes, one where the number of key tiles does


def test_heads_of_one_device_among_many():
    masks = loom.masks.per_head([loom.causal, loom.window(back=3), loom.window(back=30), loom.everything]).to("cuda")
    mask = masks & loom.lengths(LENS)
    alibi = loom.scores.alibi(4).to("cuda")
    q, k, v = inputs(300)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    whole = loom.attend(q, k, v, mask, score_mod=alibi, backend="triton")
    part = loom.attend(
        q[:, 2:], k[:, 2:], v[:, 2:], mask, score_mod=alibi, h_offset=torch.tensor(2, device="cuda"), backend="triton"
    )
    torch.testing.assert_close(part, whole[:, 2:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_the_same_gradients_twice(backend):
    tensors, grad = inputs(Q), inputs(Q, seed=9)[0]

    def gradients():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        out = loom.attend(*leaves, loom.causal & loom.lengths(LENS), backend=backend, deterministic=True)
        return torch.autograd.grad(out, leaves, grad)

    for _ in range(3):
        assert all(torch.equal(*pair) for pair in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("backend", [*FLEX[1:], "varlen", "sdpa"])
def test_backends_that_are_not_deterministic_say_so(backend):
    leaves = [tensor.requires_grad_() for tensor in inputs(Q)]
    with pytest.raises(ValueError, match=f"{backend}.*not the same at every run"):
        loom.attend(*leaves, documents(), backend=backend, deterministic=True)
    assert loom.explain(*leaves, documents(), deterministic=True).backend == "triton"


def test_a_fallback_may_be_allowed():
    q, k, v = inputs(200)
    with torch.compiler.set_stance("force_eager"), pytest.warns(RuntimeWarning, match="runs on the reference"):
        out = loom.attend(q, k, v, loom.window(back=50), allow_slow=True)
    expected, _ = loom.reference(q, k, v, loom.window(back=50))
    torch.testing.assert_close(out, expected)


def test_a_microbatch_needs_its_own_block_mask():
    blocks = loom.block_mask(loom.causal & loom.lengths(LENS), Q, Q)
    with pytest.raises(ValueError, match="for 3 batch rows; the attention has 2"):
        loom.attend(*(tensor[:2] for tensor in inputs(Q)), blocks)


@pytest.mark.parametrize("selective", [False, True])
def test_activation_checkpointing(selective):
    mask = loom.causal & loom.lengths(LENS)

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if "flex" in str(op) or "mm" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = {"context_fn": lambda: create_selective_checkpoint_contexts(policy)} if selective else {}

    def attention(q, k, v):
        return checkpoint(
            lambda q, k, v: loom.attend(q.sin(), k, v, mask, backend="triton"), q, k, v, use_reentrant=False, **contexts
        )

    plainly = lambda q, k, v, table, **how: plain_reference(q.sin(), k, v, table, **how)  # noqa: E731
    gather(attention, *inputs(Q), table=mask.dense(Q, Q, device="cuda"), plain=plainly).check()


@pytest.mark.parametrize("backend", FLEX)
def test_strange_strides(backend):
    mask = loom.causal & loom.lengths(LENS)
    table = mask.dense(Q, Q, device="cuda")
    q, k, v = inputs(Q)

    def arranged(query, key, value):
        query = query.transpose(1, 2).contiguous().transpose(1, 2)  # (B, Q, H, D) in memory
        key = torch.stack([key, key], -1).flatten(-2)[..., ::2]
        return loom.attend(query, key, value[:, :1].expand_as(value), mask, backend=backend)

    def plainly(query, key, value, mask, **how):
        return plain_reference(query, key, value[:, :1].expand_as(value), mask, **how)

    gather(arranged, q, k, v, table=table, plain=plainly).check()


def test_kernel_options_reach_the_kernel():
    table = loom.causal.dense(Q, Q, device="cuda")
    for options in ({"BLOCK_M": 32, "BLOCK_N": 32}, {"BACKEND": "TRITON"}):
        gather(
            lambda *qkv, o=options: loom.attend(*qkv, loom.causal, kernel_options=o), *inputs(Q), table=table
        ).check()
    with pytest.raises(Exception, match="BLOCK_M"):
        loom.attend(*inputs(Q), loom.causal, kernel_options={"BLOCK_M": 48, "BLOCK_N": 32})


@pytest.fixture
def tuned():
    """How many ways to run each kernel were timed. Three at most of each, or it would take a minute; none is remembered."""
    from torch._inductor import config, select_algorithm

    timed = {}

    def note(timings, name, nodes, choices, *more):
        timed[name] = len([time for time in timings.values() if math.isfinite(time)])

    def first_three(choices):
        return choices[:3]

    select_algorithm.add_feedback_saver(note)
    select_algorithm.add_preprocessing_fn(first_three)
    with config.patch(force_disable_caches=True, autotune_local_cache=False):
        yield timed
    select_algorithm.clear_feedback_savers()
    select_algorithm.clear_preprocessing_fns(clear_defaults=False)


def test_max_autotune_reaches_the_kernel(tuned):
    """Where torch is told to tune, attend has a kernel of its own for that."""
    mask = loom.causal & loom.lengths(LENS)
    table = mask.dense(Q, Q)

    def attention(*qkv):
        return loom.attend(*qkv, mask, backend="triton")

    gather(attention, *inputs(Q), table=table).check()
    assert not tuned
    before = compiled_kinds()
    with torch._inductor.config.patch(max_autotune=True):
        gather(attention, *inputs(Q), table=table).check()
    assert compiled_kinds() == before + 1
    assert tuned.keys() == {"flex_attention", "flex_attention_backward"} and min(tuned.values()) > 1


def test_max_autotune_of_an_outer_compile_reaches_the_kernel(tuned):
    mask = loom.causal & loom.lengths(LENS)
    q, k, v = inputs(Q)
    model = torch.compile(lambda *given: loom.attend(*given), fullgraph=True, mode="max-autotune-no-cudagraphs")
    with torch.no_grad():
        out = model(q * 1.0, k, v, loom.block_mask(mask, Q, Q))
    expected, _ = loom.reference(q.double(), k.double(), v.double(), mask)
    assert (out.double() - expected).norm() / expected.norm() < 0.01
    assert tuned["flex_attention"] > 1


@pytest.mark.skipif(not has_flash(), reason="needs FlashAttention 4")
def test_flash_inside_an_outer_compile():
    mask = loom.causal & loom.lengths(LENS)

    @torch.compile(fullgraph=True, dynamic=True)
    def model(q, k, v, blocks):
        return loom.attend(q * 1.0, k, v, blocks, backend="flash")

    blocks = loom.block_mask(mask, Q, Q)
    gather(lambda *qkv: model(*qkv, blocks), *inputs(Q), table=mask.dense(Q, Q, device="cuda")).check()


# -- wrong gradients reported upstream ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", REPORTED)
@pytest.mark.parametrize("backend", EVERY)
def test_reported_gradients(backend, number):
    check_report(number, backend, "cuda")


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_a_scale_that_changes(backend):
    if backend == "flash" and not has_flash():
        pytest.skip("flash-attn-4 is not installed")
    generator = torch.Generator().manual_seed(3)
    qkv = [torch.randn(BATCH, HEADS, 300, 64, generator=generator).to("cuda", torch.bfloat16) for _ in range(3)]
    mask = loom.window(back=77)
    table = mask.dense(300, 300, device="cuda")
    before = compiled_kinds()
    for scale in (0.125, 0.3, 0.05):

        def attention(*given, scale=scale):
            return loom.attend(*given, mask, scale=scale, backend=backend)

        gather(attention, *qkv, table=table, scale=scale).check()
    assert backend == "flash" or compiled_kinds() - before <= 2
