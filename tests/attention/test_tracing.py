"""`attend` with its options inside somebody's torch.compile, and under torch.func."""

import functools

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.backends import choose, decode, flash
from maskloom.attention.backends import compiled as pool
from maskloom.attention.backends.flash import Flash
from maskloom.attention.backends.reference import Reference
from maskloom.attention.backends.triton import Triton
from maskloom.attention.request import Attended, Request
from tests.evidence import gather

B, H, HKV, Q, K, D, E = 3, 2, 1, 13, 17, 8, 5
LENS = torch.tensor([5, 7, 11])
MASK = loom.causal & loom.lengths(LENS)
OF_THE_FIRST = create_block_mask(lambda b, h, q_idx, kv_idx: kv_idx < LENS[b], None, None, Q, K, device="cpu")
TWO = loom.masks.per_head([loom.causal, loom.prefix(2)])
FOUR = loom.masks.per_head([loom.causal, loom.everything, loom.prefix(2), loom.causal])


def inputs(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((B, H, Q, D), (B, HKV, K, D), (B, HKV, K, E))]


def sums(query, key, value, **options):
    out, aux = loom.attend(query, key, value, loom.causal, return_aux=AuxRequest(lse=True), **options)
    return out + aux.lse[..., None]


CALLS = {
    "int offset": lambda q, k, v, n: loom.attend(q, k, v, loom.causal, q_offset=n),
    "tensor offset": lambda q, k, v, n: loom.attend(q, k, v, MASK, q_offset=torch.tensor(n)),
    "offset of rows": lambda q, k, v, n: loom.attend(q, k, v, loom.causal, q_offset=torch.full((B,), n)),
    "score_mod": lambda q, k, v, n: loom.attend(q, k, v, loom.causal, q_offset=n, score_mod=loom.scores.alibi(H)),
    "heads": lambda q, k, v, n: loom.attend(q, k, v, FOUR, h_offset=n),
    "log-sum-exp": lambda q, k, v, n: sums(q, k, v),
    "sinks": lambda q, k, v, n: sums(q, k, v, sinks=torch.full((H,), 0.5)),
    "clean padding": lambda q, k, v, n: loom.attend(q, k, v, MASK, clean_padding=True),
    "deterministic": lambda q, k, v, n: loom.attend(q, k, v, MASK, deterministic=True),
    "slow": lambda q, k, v, n: loom.attend(q, k, v, MASK, allow_slow=True),
    "kernel options": lambda q, k, v, n: loom.attend(q, k, v, MASK, kernel_options={"BLOCK_M": 32}),
}


@pytest.mark.parametrize("name", CALLS)
def test_under_a_full_graph_compile(name):
    torch._dynamo.reset()
    call = CALLS[name]
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    for number in (0, 1, 2):

        def plainly(query, key, value, table, *, number=number, **how):
            return call(query, key, value, number), None

        gather(
            lambda *qkv, number=number: compiled(*qkv, number), *inputs(), table=None, plain=plainly
        ).check()  # fmt: skip


class Reader:
    def reads(self, b, h, q_idx, kv_idx):
        return LENS[b] > kv_idx


def shifted(by, b, h, q_idx, kv_idx):
    return q_idx + by >= kv_idx


def made(kind, lengths):
    """A mask_mod of a kind that torch has no object of while it traces, but only the code that makes it."""
    if kind == "function":

        def of(b, h, q_idx, kv_idx):
            return lengths[b] > kv_idx

        return of
    if kind == "lambda":
        return lambda b, h, q_idx, kv_idx: lengths[b] > kv_idx
    return functools.partial(shifted, 2) if kind == "partial" else Reader().reads


@pytest.mark.parametrize("kind", ["function", "lambda", "partial", "method"])
def test_functions_that_the_graph_makes_join_masks(kind):
    torch._dynamo.reset()

    def call(query, key, value, lengths):
        seen = loom.causal & (loom.as_mask(made(kind, lengths)) | loom.prefix(2))
        return loom.attend(query, key, value, seen)

    query, key, value = inputs()
    table = loom.causal & (loom.as_mask(made(kind, LENS)) | loom.prefix(2))
    found = torch.compile(call, backend="eager", fullgraph=True)(query, key, value, LENS)
    torch.testing.assert_close(found, loom.attend(query, key, value, table, backend="reference"))


CHOOSING = {
    "per_head": lambda mask: loom.masks.per_head([loom.causal, mask]),
    "per_batch": lambda mask: loom.masks.per_batch([loom.causal, mask, loom.causal]),
    "per_document": lambda mask: loom.masks.within(
        loom.documents([0] * 4 + [1] * 13), loom.masks.per_document([mask, mask])
    ),
    "repeat_heads": lambda mask: loom.masks.repeat_heads(mask, 2, heads=1),
}


@pytest.mark.parametrize("kind", ["function", "partial"])
@pytest.mark.parametrize("name", CHOOSING)
def test_functions_that_the_graph_makes_are_among_those_that_are_chosen(name, kind):
    torch._dynamo.reset()
    lens = torch.tensor([4, 9, 13])

    def call(query, key, value, lens):
        return loom.attend(query, key, value, loom.causal & CHOOSING[name](made(kind, lens)))

    query, key, value = inputs()
    found = torch.compile(call, backend="eager", fullgraph=True)(query, key, value, lens)
    torch.testing.assert_close(found, call(query, key, value, lens))


def checkpointed(mask):
    def attention(q, k, v):
        return checkpoint(lambda q, k, v: loom.attend(q, k, v, mask), q, k, v, use_reentrant=False)

    torch._dynamo.reset()
    return torch.compile(attention, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("mask", [loom.window(back=3), MASK, loom.block_mask(MASK, Q, K), TWO], ids=repr)
def test_checkpointed_under_a_full_graph_compile(mask):
    table = MASK.dense(Q, K) if isinstance(mask, BlockMask) else mask.dense(Q, K)
    gather(checkpointed(mask), *inputs(), table=table).check()


def test_a_plain_function_has_no_table_there():
    for mask in (lambda b, h, q, k: q >= k, loom.causal & (lambda b, h, q, k: LENS[b] > k)):
        with pytest.raises(Exception, match=r"cannot lift a plain mask_mod .* give a Mask"):
            checkpointed(mask)(*inputs())


class Learned(torch.nn.Module):
    """Score mods that learn, made in every forward."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(5)
        self.table = torch.nn.Parameter(torch.randn(H, 7, generator=generator))
        self.cube = torch.nn.Parameter(torch.randn(B, H, 29, 29, generator=generator))
        self.line, self.embed = torch.nn.Linear(1, H), torch.nn.Embedding(32, H)

    def score_mod(self):
        return {
            "relative": lambda: loom.scores.relative_bias(self.table),
            "T5": lambda: loom.scores.relative_bias(self.embed.weight.T, buckets=loom.scores.t5_buckets(32)),
            "composed": lambda: loom.scores.compose(
                loom.scores.softcap(3.0), loom.scores.alibi(H), loom.scores.relative_bias(self.table)
            ),
            "layer": lambda: lambda s, b, h, i, j: s + self.line((i - j).float()[None])[h],
            "embedding": lambda: lambda s, b, h, i, j: s + self.embed((i - j).abs())[h],
            "chained": lambda: lambda s, b, h, i, j: s + self.cube[b][h][i][j] * torch.stack([s, 2 * s])[1],
        }[self.kind]()

    def forward(self, query, key, value):
        return loom.attend(query, key, value, loom.causal, score_mod=self.score_mod())


@pytest.mark.parametrize(
    ("kind", "backend", "dynamic"),
    [
        *((kind, "eager", None) for kind in ("relative", "T5", "composed", "layer", "embedding", "chained")),
        ("relative", "aot_eager", True),
        ("chained", "aot_eager", True),
        ("relative", "inductor", False),
    ],
)
def test_learned_score_mods_under_a_full_graph_compile(kind, backend, dynamic):
    torch._dynamo.reset()
    if kind == "layer" and torch.__version__ < "2.13":  # torch 2.11's vmap multiplies no matrices of dynamic sizes
        dynamic = False
    model = Learned(kind)
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    for q_len, kv_len in ((13, 17), (5, 29))[: 1 if backend == "inductor" else 2]:
        generator = torch.Generator().manual_seed(q_len)
        shapes = ((B, H, q_len, D), (B, HKV, kv_len, D), (B, HKV, kv_len, E))
        tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        inputs = [*tensors, *model.parameters()]
        found, expected = (
            (out, torch.autograd.grad(out.square().sum(), inputs, allow_unused=True))
            for out in (compiled(*tensors), model(*tensors))
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_score_mods_checkpointed_under_a_full_graph_compile():
    table, plain = torch.zeros(H, 7).requires_grad_(), lambda s, b, h, i, j: s + i
    tensors = inputs()

    def attention(query, key, value, score_mod):
        return checkpoint(
            lambda *qkv: loom.attend(*qkv, loom.causal, score_mod=score_mod), query, key, value, use_reentrant=False
        )

    for score_mod in (loom.scores.relative_bias(table), loom.scores.shifted_score(loom.scores.alibi(H), q_offset=2)):
        torch._dynamo.reset()
        compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*tensors, score_mod), attention(*tensors, score_mod))
    compiled(*tensors, loom.scores.relative_bias(table)).square().sum().backward()
    assert table.grad.all(0).any()
    for score_mod in (
        plain,
        loom.scores.compose(loom.scores.alibi(H), plain),
        loom.scores.shifted_score(plain, q_offset=1),
    ):
        with pytest.raises(Exception, match=r"torch cannot lift a plain score_mod .* give one of maskloom's"):
            torch.compile(attention, backend="eager", fullgraph=True)(*tensors, score_mod)


@pytest.mark.parametrize("name", CALLS)
def test_torch_func(name):
    call, tensors = CALLS[name], inputs()
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    call(*leaves, 1).square().sum().backward()
    found = torch.func.grad(lambda *qkv: call(*qkv, 1).square().sum(), argnums=(0, 1, 2))(*tensors)
    torch.testing.assert_close(found, tuple(leaf.grad for leaf in leaves))
    two = [torch.stack(pair) for pair in zip(tensors, inputs(seed=5), strict=True)]
    out = torch.vmap(lambda *qkv: call(*qkv, 1))(*two)
    torch.testing.assert_close(out, torch.stack([call(*tensors, 1), call(*inputs(seed=5), 1)]))


def test_padding_does_not_leak_under_a_full_graph_compile():
    torch._dynamo.reset()
    compiled = torch.compile(CALLS["clean padding"], backend="eager", fullgraph=True)
    q, k, v = inputs()
    expected = loom.attend(q, k, v, MASK)
    q[0, :, 5:], k[0, :, 5:], v[0, :, 5:] = torch.nan, torch.inf, 1e30
    assert torch.equal(compiled(q, k, v, 0), expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, k, v: loom.attend(q, k, v, MASK, backend="flash"), "it needs a GPU"),
        (lambda q, k, v: loom.attend(q, k, v, loom.causal, clean_padding=True), "clean_padding needs a mask"),
        (lambda q, k, v: loom.attend(q, k, v, q_offset=torch.tensor([1, 2])), "q_offset is for 2 batch rows"),
        (lambda q, k, v: loom.attend(q, k, v, sinks=torch.ones(3)), r"sinks has shape \(H,\) = \(2,\)"),
        (lambda q, k, v: loom.attend(q, k[:2], v), "have one batch size"),
        (lambda q, k, v: loom.attend(q[:2], k[:2], v[:2], MASK), r"\(B\) is 2, and the mask reads a table for 3"),
        (lambda q, k, v: loom.attend(q[:2], k[:2], v[:2], lambda b, h, i, j: LENS[b] > j), r"\(B\) is 2"),
        (lambda q, k, v: loom.attend(q, k, v, FOUR), r"\(H\) is 2, and the mask reads a table for 4 heads"),
        (lambda q, k, v: loom.attend(q, k, v, FOUR, h_offset=3), "heads up to number 4 are asked for"),
        (lambda q, k, v: loom.attend(q, k, v, loom.documents(torch.arange(16))), "table with 16 positions.* 17 keys"),
        (lambda q, k, v: loom.attend(q, k, v, OF_THE_FIRST), "was built with B=None"),
        (lambda q, k, v: loom.attend(q[:2], k[:2], v[:2], OF_THE_FIRST), r"\(B\) is 2"),
    ],
)
def test_what_does_not_fit_is_an_error_there_too(call, words):
    torch._dynamo.reset()
    with pytest.raises(Exception, match=words):
        torch.compile(call, backend="eager", fullgraph=True)(*inputs())


def test_under_an_outer_compile_deterministic_takes_no_triton_for_what_may_get_a_gradient(monkeypatch):
    """Whether score_mod reads a tensor that gets one is not known there, so it is taken to."""
    tensors = [torch.empty(2, 3, 5, 16, device="meta") for _ in range(3)]
    request = Request(*tensors, None, score_mod=loom.scores.softcap(3.0), deterministic=True)
    assert choose.BACKENDS["triton"].refuse(request) is None
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    assert "no fixed order" in choose.BACKENDS["triton"].refuse(request)


@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_a_call_takes_the_kernel_and_a_transform_does_not(monkeypatch, compiled):
    """On a GPU that is pretended: torch.compile gets the backend of plain calls, and torch.func one that it can transform."""
    taken = []
    for kind in (Triton, Reference):
        monkeypatch.setattr(kind, "prepare", lambda self, request: None)
        monkeypatch.setattr(
            kind, "run", lambda self, request, run=kind.run: taken.append(self.name) or run(self, request)
        )
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    monkeypatch.setattr(decode, "has_triton", lambda: False)
    monkeypatch.setattr(pool, "_COMPILER", "eager")
    monkeypatch.setattr(
        torch.nn.attention.flex_attention, "_validate_device", lambda *qkv: None
    )  # which has no backward on a CPU
    torch._dynamo.reset()
    q, k, v = inputs()
    v = v[..., :D] if D < E else torch.nn.functional.pad(v, (0, D - E))

    def attend(query):
        return loom.attend(query, k, v, loom.window(back=3))

    many = torch.vmap(attend)
    if compiled:
        attend, many = (torch.compile(function, backend="eager", fullgraph=True) for function in (attend, many))
    expected = loom.attend(q, k, v, loom.window(back=3), backend="reference")
    taken.clear()
    query = q.clone().requires_grad_()
    out = attend(query)
    out.sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(many(q[None].expand(2, *q.shape))[1], expected)
    assert taken == ["triton", "reference"]


IN_GRAPH = {
    "window": (lambda: loom.window(back=3), "flash", "flash"),
    "causal & lengths": (lambda: loom.causal & loom.lengths(torch.tensor([5, 7])), "flash", "flash"),
    "documents": (lambda: loom.causal & loom.documents(ids=torch.arange(150) // 100), "flash", "flash"),
    "chunked": (lambda: loom.masks.chunked(4), "triton", "triton"),
    "shifted": (lambda: loom.masks.shifted(loom.window(back=3), q_offset=torch.tensor(0)), "flash", "triton"),
    "function": (lambda: lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, "flash", "triton"),
}


@pytest.mark.parametrize("form", ["mask", "block mask"])
@pytest.mark.parametrize("name", IN_GRAPH)
def test_auto_takes_flash_inside_a_compile_where_the_mask_is_known_to_suit_it(monkeypatch, name, form):
    make, outside, inside = IN_GRAPH[name]
    taken = []
    for kind in (Flash, Triton):
        monkeypatch.setattr(kind, "prepare", lambda self, request: None)
        monkeypatch.setattr(kind, "run", lambda self, request: taken.append(self.name) or Attended(request.value, None))
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    monkeypatch.setattr(flash, "_HAS_FLASH", True)
    monkeypatch.setattr(choose, "LITTLE", 0)
    torch._dynamo.reset()
    q, k, v = (torch.zeros(2, 3, 150, 64, dtype=torch.bfloat16) for _ in range(3))
    mask = make()
    if form == "block mask":
        mask = loom.create_block_mask(mask, 2, None, 150, 150, device="cpu")
    loom.attend(q, k, v, mask)
    torch.compile(lambda *qkv: loom.attend(*qkv, mask), backend="eager", fullgraph=True)(q, k, v)
    assert taken == [outside, inside]
    assert loom.explain(q, k, v, mask).backend == outside
    found = loom.explain(q, k, v, mask, compiled=True)
    assert found.backend == inside
    if outside != inside:
        assert found.ruled_out["flash"].startswith(
            "inside torch.compile it takes Masks that are known to suit it; this has a"
        )


def test_a_number_that_changes_takes_triton_in_the_graph_that_holds_it_as_a_symbol(monkeypatch):
    for kind, mark in ((Flash, 1), (Triton, 2)):  # a list of names would be guarded by its length
        monkeypatch.setattr(kind, "run", lambda self, request, mark=mark: Attended(request.value + mark, None))
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    monkeypatch.setattr(flash, "_HAS_FLASH", True)
    monkeypatch.setattr(choose, "LITTLE", 0)
    torch._dynamo.reset()
    graphs = []
    q, k, v = (torch.zeros(2, 3, 150, 64, dtype=torch.bfloat16) for _ in range(3))

    @torch.compile(backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    def attend(back):
        return loom.attend(q, k, v, loom.window(back=back))

    assert [int(attend(back)[0, 0, 0, 0]) for back in range(3, 15)] == [1] + [2] * 11
    assert len(graphs) == 2


class OfDocuments(torch.nn.Module):
    def __init__(self, crossed):
        super().__init__()
        self.crossed = crossed

    def forward(self, query, offsets):
        keys = {"kv_offsets": offsets, "kv_length": 211} if self.crossed else {}
        return loom.attend(query, query, query, loom.documents(offsets=offsets, length=211, **keys))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_one_exported_program_serves_any_number_of_documents(crossed, strict):
    """A mask holds more than 16 as a power of two; in a trace they stay as many as they are."""
    module, query = OfDocuments(crossed), torch.randn(1, 2, 211, 8)
    shapes = {"query": None, "offsets": {0: torch.export.Dim("documents", min=2, max=1000)}}
    program = torch.export.export(module, (query, ends(20)), dynamic_shapes=shapes, strict=strict).module()
    for number in (5, 16, 17, 33):
        torch.testing.assert_close(program(query, ends(number)), module(query, ends(number)))


def ends(number):
    return torch.linspace(0, 211, number + 1).long()


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_number_in_a_score_mod_that_is_made_inside_may_vary(dynamic):
    """From its second value on torch.compile holds a number as a symbol."""
    torch._dynamo.reset()

    def call(q, k, v, cap):
        return loom.attend(q, k, v, loom.causal, score_mod=loom.scores.softcap(cap))

    compiled = torch.compile(call, backend="eager", fullgraph=True, dynamic=dynamic)
    for cap in (30.0, 0.5, 2.5e-3, 7, 11, 30.0):
        torch.testing.assert_close(compiled(*inputs(), cap), call(*inputs(), cap))


def test_torch_jit_trace_is_refused_in_words():
    """It makes tensors of sizes."""
    with pytest.raises(ValueError, match=r"torch.jit.trace makes tensors of sizes, .* use torch.export.export"):
        torch.jit.trace(lambda q, k, v: loom.attend(q, k, v, MASK), inputs(), check_trace=False)
