"""Masks through compiled FlexAttention: every way to write one, every length, many kinds, no fallback."""

import importlib.util
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import and_masks as torch_and
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import or_masks as torch_or
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.backends import choose
from maskloom.errors import FallbackError
from tests.evidence import gather, plain_reference

BATCH, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 64
LONGEST = 1199
BACKENDS = ["TRITON", "FLASH"] if importlib.util.find_spec("flash_attn") else ["TRITON"]

LENS = torch.tensor([700, 333, 1199], device="cuda")


def shorter_than(lens):
    def mask_mod(b, h, q_idx, kv_idx):
        return (q_idx < lens[b]) & (kv_idx < lens[b])

    return mask_mod


def torch_causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def kinds():
    """Twenty masks, no two of one structure: ours, torch's, closures, and mixtures."""
    pads = torch.rand(BATCH, LONGEST, device="cuda", generator=torch.Generator("cuda").manual_seed(0)) < 0.2
    ids = torch.arange(LONGEST, device="cuda") // 97
    offsets = torch.tensor([0, 5, 400, 1199], device="cuda")
    lengths, padding, documents = loom.lengths(LENS), loom.padding(pads), loom.documents(ids)
    return {
        "causal": loom.causal,
        "causal & lengths": loom.causal & lengths,
        "causal & padding": loom.causal & padding,
        "causal & documents(offsets)": loom.causal & loom.documents(offsets=offsets),
        "documents": documents,
        "window | sinks": loom.window(back=100) | loom.sinks(4),
        "(window | sinks) & lengths": (loom.window(back=100) | loom.sinks(4)) & lengths,
        "~causal": ~loom.causal,
        "~causal & documents": ~loom.causal & documents,
        "causal ^ documents": loom.causal ^ documents,
        "causal | prefix": loom.causal | loom.prefix(torch.tensor([9, 200, 1], device="cuda")),
        "(causal | prefix) & padding": (loom.causal | loom.prefix(50)) & padding,
        "window": loom.window(back=64, ahead=64),
        "real": loom.real(~pads),
        "key_padding": loom.key_padding(pads),
        "everything": loom.everything,
        "closure": shorter_than(LENS),
        "causal & closure": loom.causal & shorter_than(LENS),
        "torch and(causal, lengths)": torch_and(loom.causal, lengths),
        "torch or(and(closure, ours), window)": torch_or(torch_and(torch_causal, padding), loom.window(back=9)),
    }


def inputs(q_len, *, dtype=torch.bfloat16, head_dim=HEAD_DIM, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = [(BATCH, heads, q_len, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape, device="cuda", generator=generator).to(dtype) for shape in shapes]


def checked(mask, q_len, backend, **how):
    """Forward and backward at one length against the float64 reference; the worst relative error."""
    table = loom.as_mask(mask).dense(q_len, q_len, batch=None, device="cuda")
    blocks = loom.block_mask(mask, q_len, q_len)

    def attention(q, k, v):
        return loom.attend(q, k, v, blocks, kernel_options={"BACKEND": backend})

    evidence = gather(attention, *inputs(q_len, **how), table=table)
    evidence.check()
    return evidence.worst


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


DTYPES = {"TRITON": (torch.bfloat16, torch.float16, torch.float32), "FLASH": (torch.bfloat16, torch.float16)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_kinds_of_mask_dtype_and_head_size_in_one_process(backend):
    before, worst, met = graphs(), {}, set()
    sizes = itertools.cycle(itertools.product(DTYPES[backend], (64, 128)))
    for (name, mask), (dtype, head_dim) in zip(kinds().items(), sizes, strict=False):
        worst[name] = checked(mask, 517, backend, dtype=dtype, head_dim=head_dim)
        met.add((dtype, head_dim))
    print(f"\n{backend}: {graphs() - before} graphs for {len(worst)} masks, worst error {max(worst.values()):.4f}")
    assert len(worst) == 20 and len(met) == 2 * len(DTYPES[backend])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_change_freely(backend):
    mask = loom.causal & loom.lengths(LENS)
    checked(mask, 200, backend)
    before = graphs()
    for q_len in range(237, LONGEST, 137):
        checked(mask, q_len, backend, seed=q_len)
    assert graphs() - before <= 2  # one, and one more where two sizes that were equal no longer are


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_in_a_mask_change_freely(backend):
    for back in (3, 50, 51, 120, 300, 301, 302, 303, 304, 305):  # more than the recompile limit
        checked(loom.window(back=back) & loom.lengths(LENS), 517, backend)


def test_batches_and_dtypes_change_freely():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        checked(loom.causal & loom.lengths(LENS), 300, "TRITON", dtype=dtype)


@pytest.mark.parametrize("q_len", [1, 2, 127, 128, 129])
def test_short_lengths(q_len):
    checked(loom.causal & loom.lengths(LENS), q_len, "TRITON")


def test_a_query_that_sees_nothing_gives_zero():
    q, k, v = (tensor.requires_grad_() for tensor in inputs(300))
    out = loom.attend(q, k, v, loom.lengths(torch.tensor([1, 0, 300], device="cuda")))
    out.sum().backward()
    assert not out[1].any() and not q.grad[1].any() and not v.grad[1].any()
    assert not out[0, :, 1:].any() and out[2].all()


def test_lengths_change_freely_inside_an_outer_compile():
    """Of a mask that differs from row to row (pytorch#186775): six of 28 lengths, each with rows of its own."""

    @torch.compile(fullgraph=True)
    def model(q, k, v, blocks):
        return loom.attend(q.sin(), k.cos(), v * 2.0, blocks).cos()

    def plainly(q, k, v, table, **how):
        out, lse = plain_reference(q.sin(), k.cos(), v * 2.0, table, **how)
        return out.cos(), lse

    before = graphs()
    for q_len in [*range(200, 1200, 37)][::5]:
        lens = torch.tensor([q_len, q_len // 3, q_len - 7], device="cuda")
        mask = loom.causal & loom.lengths(lens)
        blocks = loom.block_mask(mask, q_len, q_len)
        table = mask.dense(q_len, q_len)
        gather(lambda *qkv, b=blocks: model(*qkv, b), *inputs(q_len, seed=q_len), table=table, plain=plainly).check()
    assert graphs() - before <= 3


@pytest.mark.parametrize("kind", ["torch and(causal, lengths)", "window | sinks"])
def test_inside_an_outer_compile(kind):
    mask = kinds()[kind]

    @torch.compile(fullgraph=True, dynamic=True)
    def model(q, k, v, blocks):
        return loom.attend(q * 1.0, k, v, blocks)

    for q_len in (300, 411):
        table = loom.as_mask(mask).dense(q_len, q_len, device="cuda")
        blocks = loom.block_mask(mask, q_len, q_len)
        gather(lambda q, k, v, blocks=blocks: model(q, k, v, blocks), *inputs(q_len), table=table).check()


@pytest.mark.parametrize("kind", ["torch and(causal, lengths)", "window | sinks"])
def test_checkpointed_inside_an_outer_compile(kind):
    mask = kinds()[kind]

    @torch.compile(fullgraph=True)
    def model(q, k, v, blocks):
        return checkpoint(lambda q, k, v: loom.attend(q * 1.0, k, v, blocks), q, k, v, use_reentrant=False)

    table = loom.as_mask(mask).dense(411, 411, device="cuda")
    blocks = loom.block_mask(mask, 411, 411)
    gather(lambda q, k, v: model(q, k, v, blocks), *inputs(411), table=table).check()


def masks_of_many_tiles():
    """Masks of rows of 33,001 positions from a tensor, (values of it, how to make it)."""
    cuts = torch.tensor([0, 5, 9000, 9001, 33_001], device="cuda")
    lens = torch.tensor([33_001, 20_000], device="cuda")
    return {
        "documents": (cuts, lambda cuts: loom.causal & loom.documents(offsets=cuts, length=33_001)),
        "lengths": (lens, lambda lens: loom.causal & loom.lengths(lens)),
        "padding": (
            torch.arange(33_001, device="cuda") >= lens[:, None],
            lambda pads: loom.window(back=3000) & loom.key_padding(pads),
        ),
    }


@pytest.mark.parametrize("kind", ["documents", "lengths", "padding"])
def test_rows_of_many_tiles_inside_an_outer_compile(kind):
    """258 tiles: of rows of 256 entries and more Inductor writes other kernels."""
    torch._dynamo.reset()
    values, make = masks_of_many_tiles()[kind]
    given = [torch.randn(2, heads, 33_001, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)]
    given = [tensor.requires_grad_() for tensor in given]

    def results(attend):
        out = attend(*given, values)
        return out, *torch.autograd.grad(out.float().square().sum(), given)

    def attention(q, k, v, values):
        return loom.attend(q, k, v, make(values), backend="triton")

    for found, expected in zip(results(torch.compile(attention, fullgraph=True)), results(attention), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def near(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 900) | (kv_idx < 4)


UNALIGNED = 3300
"""A length above 1,024 that is no multiple of 32: Inductor pads what a graph of such constants computes, and torch 2.11 forgets it."""


def block_mask_of_torch(lens):
    return create_block_mask(near, 2, 4, UNALIGNED, UNALIGNED, device="cuda")


OF_CONSTANTS = {
    "a function": (lambda lens: near, {}),
    "chunks": (lambda lens: loom.causal & loom.masks.chunked(1000) & loom.lengths(lens), {}),
    "lengths": (lambda lens: loom.causal & loom.lengths(lens), {}),
    "torch's block mask": (block_mask_of_torch, {}),
    "sinks": (lambda lens: loom.causal & loom.lengths(lens), {"sinks": True}),
    "dropout": (lambda lens: loom.causal & loom.lengths(lens), {"dropout": 0.3, "dropout_seed": 5}),
}


@pytest.mark.parametrize("kind", OF_CONSTANTS)
def test_a_graph_whose_lengths_are_constants(kind):
    torch._dynamo.reset()
    make, options = OF_CONSTANTS[kind]
    lens = torch.tensor([UNALIGNED, UNALIGNED // 2], device="cuda")
    leaves = [torch.randn(2, heads, UNALIGNED, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    if "sinks" in options:
        options = {"sinks": torch.randn(4, device="cuda", requires_grad=True)}
        leaves.append(options["sinks"])

    def attention(q, k, v, lens):
        return loom.attend(q, k, v, make(lens), backend="triton", **options)

    def results(attend):
        out = attend(*leaves[:3], lens)
        return out, *torch.autograd.grad(out.float().square().sum(), leaves)

    compiled = torch.compile(attention, fullgraph=True, dynamic=False)
    for found, expected in zip(results(compiled), results(attention), strict=True):
        assert (found.float() - expected.float()).norm() < 1e-2 * expected.float().norm()


OFFSETS = torch.linspace(0, 300, 34, device="cuda").long()
OF_WHAT_A_GRAPH_COMPUTES = {
    "lengths": lambda real: loom.causal & loom.lengths(real.sum(1) - 1),
    "padding": lambda real: loom.causal & loom.padding(F.pad(real, (0, 1))[:, 1:] == 0),
    "documents": lambda real: loom.causal & loom.documents(F.pad(real, (1, 0))[:, :-1].cumsum(1)),
    "offsets": lambda real: (
        loom.causal & loom.documents(offsets=real[0].cumsum(0)[::9] * 0 + OFFSETS, length=real.shape[1])
    ),
    "positions": lambda real: loom.causal & loom.documents(position_ids=real.cumsum(1) - 1),
    "a column": lambda real: loom.causal & loom.lengths(torch.stack([real.sum(1) // 3, real.sum(1)], 1)[:, 1]),
    "a bias": lambda real: loom.causal & loom.lengths(real.sum(1)),
}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", OF_WHAT_A_GRAPH_COMPUTES)
def test_tensors_that_the_graph_computes(kind, dynamic, trains):
    """One position is added too: of sizes that are symbols with a number added."""
    torch._dynamo.reset()
    make = OF_WHAT_A_GRAPH_COMPUTES[kind]
    table = torch.randn(4, 9, device="cuda")  # of relative positions -4 to 4

    def attention(q, k, v, real):
        q, k, v = (F.pad(one, (0, 0, 0, 1)) for one in (q, k, v))
        bend = loom.scores.relative_bias(F.pad(table, (1, 1)) - table.sum()) if kind == "a bias" else None
        return loom.attend(q, k, v, make(F.pad(real, (0, 1))), score_mod=bend, backend="triton")

    compiled = torch.compile(attention, fullgraph=True, dynamic=dynamic)
    for length in (299, 299 + 128) if dynamic and kind != "offsets" else (299,):
        qkv = [torch.randn(2, heads, length, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)]
        real = (
            torch.arange(length, device="cuda") < torch.tensor([length, length // 2], device="cuda")[:, None]
        ).long()
        with torch.set_grad_enabled(trains):
            found, expected = (
                attend(*[one.requires_grad_(trains) for one in qkv], real) for attend in (compiled, attention)
            )
        assert (found.float() - expected.float()).norm() < 1e-2 * expected.float().norm()


def test_a_table_on_another_device_is_named_in_a_graph_too():
    q = torch.randn(2, 4, 64, 64, device="cuda", dtype=torch.bfloat16)
    for options in ({"score_mod": loom.scores.alibi(4)}, {"mask": loom.lengths([64, 3])}):
        with pytest.raises(Exception, match="tensors are on cpu and the attention on cuda"):
            torch.compile(lambda q, options=options: loom.attend(q, q, q, **options), fullgraph=True)(q)


def test_small_heads_are_widened():
    q, k, v = (torch.randn(2, 3, 65, 8, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    table = loom.causal.dense(65, 65, device="cuda")
    gather(lambda q, k, v: loom.attend(q, k, v, loom.causal), q, k, v, table=table).check()


def test_float64_runs_on_the_reference():
    q, k, v = inputs(65, dtype=torch.float64)
    table = loom.causal.dense(65, 65, device="cuda")
    gather(lambda q, k, v: loom.attend(q, k, v, loom.causal), q, k, v, table=table).check()


def test_a_forced_eager_stance_is_an_error():
    q, k, v = inputs(200)
    with torch.compiler.set_stance("force_eager"), pytest.raises(FallbackError, match="not compiled"):
        loom.attend(q, k, v, loom.window(back=50))


LEAST = [0]  # a global list: its entry is a constant of the graph, so each value needs a graph of its own


def reads_a_global(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (kv_idx >= LEAST[0])


def test_an_exhausted_recompile_limit_is_an_error():
    q, k, v = inputs(200)
    with pytest.raises(FallbackError, match="recompile_limit"):
        for least in range(2, torch._dynamo.config.recompile_limit + 4):
            LEAST[0] = least
            loom.attend(q, k, v, reads_a_global)


def test_shared_tables_that_stand_for_one_row_only_are_an_error():
    from torch.nn.attention.flex_attention import create_block_mask

    lens = torch.tensor([70, 150, 200], device="cuda")  # the first needs one tile, the others more
    blocks = create_block_mask(loom.lengths(lens), None, None, 200, 200, device="cuda")
    with pytest.raises(ValueError, match="B=3"):
        q, k, v = inputs(200)
        loom.attend(q, k, v, blocks)


def test_masks_trace_in_torchs_create_block_mask():
    from torch.nn.attention.flex_attention import create_block_mask

    build = torch.compile(create_block_mask, fullgraph=True, backend="eager")
    for mask in (loom.causal & loom.lengths(LENS), loom.window(back=3) | loom.sinks(2), ~loom.causal):
        torch._dynamo.reset()
        built = build(mask, BATCH, None, 200, 200, device="cuda")
        expected = create_block_mask(mask, BATCH, None, 200, 200, device="cuda")
        assert torch.equal(built.kv_num_blocks, expected.kv_num_blocks)


def in_graph():
    """Masks that "auto" runs on flash inside the user's torch.compile, and what it does with others."""
    pads = torch.rand(BATCH, LONGEST, device="cuda", generator=torch.Generator("cuda").manual_seed(0)) < 0.2
    offsets = torch.tensor([0, 5, 400, 1199], device="cuda")
    return {
        "causal & lengths": (loom.causal & loom.lengths(LENS), "flash"),
        "causal & padding": (loom.causal & loom.padding(pads), "flash"),
        "documents": (loom.causal & loom.documents(torch.arange(LONGEST, device="cuda") // 97), "flash"),
        "documents(offsets)": (loom.causal & loom.documents(offsets=offsets), "flash"),
        "window | sinks": ((loom.window(back=100) | loom.sinks(4)) & loom.lengths(LENS), "flash"),
        "per head": (loom.masks.per_head([loom.window(back=100 * head) for head in range(HEADS)]).to("cuda"), "flash"),
        "chunked": (loom.masks.chunked(100), "triton"),
        "closure": (shorter_than(LENS), "triton"),
    }


@pytest.mark.skipif("FLASH" not in BACKENDS, reason="needs flash-attn-4")
@pytest.mark.parametrize("form", ["mask", "block mask"])
@pytest.mark.parametrize("name", in_graph())
def test_auto_inside_an_outer_compile_takes_what_it_takes_outside(monkeypatch, name, form):
    monkeypatch.setattr(choose, "LITTLE", 0)
    torch._dynamo.reset()
    mask, backend = in_graph()[name]
    tensors = inputs(LONGEST)
    given = loom.block_mask(mask, LONGEST, LONGEST, batch=BATCH, heads=HEADS) if form == "block mask" else mask
    assert loom.explain(*tensors, given, compiled=True).backend == backend
    attend = torch.compile(lambda *qkv: loom.attend(*qkv, given), fullgraph=True)
    table = loom.as_mask(mask).dense(LONGEST, LONGEST, batch=BATCH, device="cuda")
    gather(attend, *tensors, table=table).check()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        attend(*tensors)
        torch.cuda.synchronize()
    ran = any("flash_attncute" in event.key or "cutlass" in event.key for event in profile.key_averages())
    assert ran == (backend == "flash")


@pytest.mark.skipif("FLASH" not in BACKENDS, reason="needs flash-attn-4")
@pytest.mark.parametrize("trains", [False, True])
def test_tensors_of_a_mask_that_the_graph_uses_elsewhere_live_until_flash_has_run(monkeypatch, trains):
    """Inductor does not count what the mask reads among the inputs of FLASH's kernel, forward or backward."""
    monkeypatch.setattr(choose, "LITTLE", 0)
    torch._dynamo.reset()
    tensors = [tensor.requires_grad_(trains) for tensor in inputs(LONGEST)]
    blocks = loom.block_mask(loom.causal & loom.lengths(LENS), LONGEST, LONGEST, batch=BATCH)

    def step(q, k, v, lens):
        real = (torch.arange(LONGEST, device="cuda") < lens[:, None])[:, None, :, None]
        first = loom.attend(q * real, k * real, v * real, blocks)
        return (loom.attend(first, k, v, blocks).float().sin() * real).sum()

    assert loom.explain(*tensors, blocks, compiled=True).backend == "flash"
    found = torch.compile(step, fullgraph=True)(*tensors, LENS)
    expected = step(*tensors, LENS)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1.0)
    if trains:
        for ours, theirs in zip(
            torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
