"""Few queries: which calls take the kernel, what it gets, and what stays the same over the steps. tests/gpu runs the kernel."""

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.attention.backends import compiled, decode, flash
from maskloom.attention.plans import steps
from maskloom.attention.reference import reference
from maskloom.attention.request import Request
from maskloom.program import mask_program

B, H, HKV, L, D, E = 3, 4, 2, 17, 8, 5
LSE = AuxRequest(lse=True)


def written_out(query, key, value, table, scale):
    """What the kernel computes."""
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    scores = (query @ key.mT * scale).masked_fill(~table, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ value, scores.logsumexp(-1).float()


@pytest.fixture
def tables(monkeypatch):
    """The tables that the kernel got, on a GPU that is pretended."""
    got = []

    def kernel(query, key, value, table, scale, *, in_graph=False):
        got.append(table)
        return written_out(query, key, value, table, scale)

    monkeypatch.setattr(decode, "_kernel", lambda: kernel)
    monkeypatch.setattr(decode, "has_triton", lambda: True)
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    steps._plans.clear()
    yield got
    steps._plans.clear()


def inputs(q_len=2, kv_len=L, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, H, q_len, D), (B, HKV, kv_len, D), (B, HKV, kv_len, E)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


PADS = torch.rand(B, L, generator=torch.Generator().manual_seed(5)) < 0.3
MASKS = {
    "causal": lambda: loom.causal,
    "causal & lengths": lambda: loom.causal & loom.lengths([5, 0, 17]),
    "window | sinks": lambda: loom.window(back=3) | loom.sinks(2),
    "padding": lambda: loom.padding(PADS) & loom.causal,
    "documents": lambda: loom.documents(ids=torch.arange(L) // 5),
    "left padding": lambda: loom.causal & loom.key_padding(torch.arange(L) < torch.tensor([[3], [0], [7]])),
    "heads": lambda: loom.masks.per_head([loom.causal, loom.window(back=2), loom.everything, loom.prefix(3)]),
    "function": lambda: lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (kv_idx % 3 != h % 2),
    "everything": lambda: loom.everything,
}
OFFSETS = {
    "int": 11, "tensor": torch.tensor(11), "one element": torch.tensor([11]), "int32": torch.tensor(11, dtype=torch.int32),
    "rows": torch.tensor([3, 11, 7]),
}  # fmt: skip


def test_the_kernel_knows_that_it_runs_in_a_graph(monkeypatch):
    """There the memory may be a CUDA graph's, which keeps nothing for a later call."""
    asked = []

    def kernel(*tensors, in_graph=False):
        asked.append(in_graph)
        return written_out(*tensors)

    monkeypatch.setattr(decode, "_kernel", lambda: kernel)
    q, k, v = inputs()
    table = torch.ones(1, 1, 2, L, dtype=torch.bool)
    decode._operator(q, k, v, table, 0.5)
    decode.Decode().with_table(q, k, v, table, 0.5)
    assert asked == [True, False]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", MASKS)
def test_a_step_is_rows_of_the_whole(tables, name, offset):
    mask, q_offset, (q, k, v) = MASKS[name](), OFFSETS[offset], inputs()
    placed = loom.masks.shifted(mask, q_offset=q_offset)
    expected, lse = reference(q, k, v, placed)
    for _ in range(3):
        torch.testing.assert_close(loom.attend(q, k, v, mask, q_offset=q_offset), expected)
    out, aux = loom.attend(q, k, v, mask, q_offset=q_offset, return_aux=LSE)
    torch.testing.assert_close((out, aux.lse), (expected, lse))
    assert len(tables) == 4 and loom.explain(q, k, v, mask, q_offset=q_offset).backend == "decode"
    by_row = (offset == "rows" and name != "everything") or name in ("causal & lengths", "padding", "left padding")
    sizes = (B if by_row else 1, H if name in ("heads", "function") else 1, 2, L)
    assert tables[-1].shape == ((1, 1, 1, 1) if placed is loom.everything else sizes) and tables[-1].dtype == torch.bool


@pytest.mark.parametrize("form", ["mask", "block mask", "table", "none"])
def test_without_an_offset(tables, form):
    q, k, v = inputs()
    mask = {
        "mask": loom.lengths(torch.tensor([2, 1, 2]), torch.tensor([5, 3, 17])),
        "block mask": loom.block_mask(loom.causal, 2, L, q_offset=7, block_size=(2, 4)),
        "table": torch.arange(L) % 3 < torch.tensor([[1], [2]]),
        "none": None,
    }[form]
    expected, lse = reference(q, k, v, mask)
    for _ in range(2):
        out, aux = loom.attend(q, k, v, mask, return_aux=LSE)
        torch.testing.assert_close((out, aux.lse), (expected, lse))
    assert len(tables) == 2
    sinks = torch.linspace(-1, 1, H)
    torch.testing.assert_close(loom.attend(q, k, v, mask, sinks=sinks), reference(q, k, v, mask, sinks=sinks)[0])
    torch.testing.assert_close(loom.attend(q, k, v, mask, scale=0.3), reference(q, k, v, mask, scale=0.3)[0])


def test_one_plan_for_all_positions_and_all_values(tables, monkeypatch):
    lens, position, (q, k, v) = torch.tensor([5, 7, 11]), torch.tensor(3), inputs()
    mask = loom.causal & loom.lengths(lens)
    for _ in range(3):
        loom.attend(q, k, v, mask, q_offset=position)
    monkeypatch.setattr(mask_program, "record", lambda *_, **__: pytest.fail("the mask was recorded again"))
    for at in range(4, 10):
        position += 1
        lens += 1
        out = loom.attend(q, k, v, mask, q_offset=position)
        table = (torch.arange(2)[:, None] + at >= torch.arange(L)) & (torch.arange(L) < lens[:, None, None, None])
        torch.testing.assert_close(
            out, written_out(q, k, v, table & (torch.arange(2)[:, None] + at < lens[:, None, None, None]), D**-0.5)[0]
        )
        fresh = loom.causal & loom.lengths(lens.clone())
        assert torch.equal(loom.attend(q, k, v, fresh, q_offset=position.clone()), out)
    assert len(steps._plans.entries()) == 1


def test_a_mask_may_hold_the_tensor_of_the_position(tables):
    position, (q, k, v) = torch.tensor(3), inputs()
    own, other = (loom.masks.shifted(loom.causal, kv_offset=at) for at in (position, position.clone()))
    for _ in range(3):
        for mask in (own, other):
            expected, _ = reference(q, k, v, mask.dense(2, L, q_offset=int(position)))
            torch.testing.assert_close(loom.attend(q, k, v, mask, q_offset=position), expected)
        position += 2


def test_positions_before_the_first(tables):
    q, k, v = inputs()
    mask, position = loom.padding(PADS) & loom.causal, torch.tensor([-2, -1, 3])
    for _ in range(3):
        expected, _ = reference(q, k, v, loom.masks.shifted(mask, q_offset=position))
        torch.testing.assert_close(loom.attend(q, k, v, mask, q_offset=position), expected)


def test_a_position_behind_the_table_is_an_error_at_each_step(tables):
    q, k, v = inputs()
    for _ in range(3):
        loom.attend(q, k, v, loom.padding(PADS), q_offset=L - 2)
        with pytest.raises(ValueError, match="a table with 17 positions, and there are 18 quer"):
            loom.attend(q, k, v, loom.padding(PADS), q_offset=L - 1)


@pytest.mark.parametrize("kind", ["new", "in place"])
def test_in_the_user_s_compile_it_is_one_operator_and_steps_make_no_graphs(tables, monkeypatch, kind):
    monkeypatch.setattr(compiled, "_COMPILER", "eager")
    torch._dynamo.reset()
    graphs = []

    def keeps(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(backend=keeps, fullgraph=True)
    def step(q, k, v, position):
        return loom.attend(q, k, v, loom.window(back=5), q_offset=position)

    q, k, v = inputs()
    position = torch.tensor(3)
    with torch.no_grad():
        for at in range(3, 9):
            expected, _ = reference(q, k, v, loom.window(back=5).dense(2, L, q_offset=at))
            torch.testing.assert_close(step(q, k, v, position), expected)
            position = position + 1 if kind == "new" else position.add_(1)
    (graph,) = graphs
    assert sum(node.target is torch.ops.maskloom.decode.default for node in graph.graph.nodes) == 1


def refusal(tensors, mask=loom.causal, **options):
    with pytest.raises(ValueError, match="backend 'decode' cannot do this: ") as error:
        loom.explain(*tensors, mask, backend="decode", **options)
    return str(error.value).partition("this: ")[2]


def test_what_it_refuses(tables, monkeypatch):
    learning = [tensor.requires_grad_() for tensor in inputs()]
    assert refusal(learning) == "it has no backward, and query, key or value requires a gradient"
    with torch.no_grad():
        assert loom.explain(*learning, loom.causal, q_offset=3).backend == "decode"
    assert refusal(inputs(), score_mod=loom.scores.softcap(5.0)) == "it has no score_mod"
    assert refusal(inputs(dtype=torch.float64)).endswith("bfloat16 and float16; the tensors are torch.float64")
    assert refusal(inputs(65, 71)) == "it takes 128 queries, times the heads that share keys; got 65 times 2"
    wide = [torch.zeros(B, H, 2, 257) for _ in range(3)]
    assert refusal(wide) == "it has head dims up to 256; got 257 and 257"
    assert refusal(inputs(), kernel_options={"BLOCK_M": 32}) == "it takes no kernel_options; flash and triton do"
    monkeypatch.setattr(decode, "has_triton", lambda: False)
    assert refusal(inputs()) == "it needs Triton: pip install triton"


def test_auto_takes_it_for_few_queries(tables):
    def chosen(q_len):
        return loom.explain(*inputs(q_len, 71, dtype=torch.bfloat16), loom.window(back=3), q_offset=7).backend

    assert [chosen(q_len) for q_len in (1, 16, 17)] == ["decode", "decode", "triton"]
    found = loom.explain(*inputs(17, 71), loom.window(back=3), q_offset=7)
    assert found.ruled_out["decode"] == "with more than 16 queries kernels that skip hidden tiles are faster"
    many_heads = [torch.zeros(B, heads, 16, D) for heads in (18, 2, 2)]
    assert loom.explain(*many_heads, loom.window(back=3)).backend == "triton"


def test_a_transform_takes_what_it_can_transform(tables):
    q, k, v = inputs()
    out = torch.vmap(lambda query: loom.attend(query, k, v, loom.causal, q_offset=torch.tensor(3)))(
        q[None].expand(2, *q.shape)
    )
    torch.testing.assert_close(out[1], reference(q, k, v, loom.masks.shifted(loom.causal, q_offset=3))[0])
    assert not tables
