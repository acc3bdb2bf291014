"""The kernel for few queries against the reference in float64, and what steps of decoding cost: no wait, no graph."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.attention.kernels import decode_kernel
from maskloom.attention.reference import reference
from maskloom.core.cache import LRU

LSE = AuxRequest(lse=True)
# B, H, Hkv, Q, K, D, E: one program, some, and many for each pair; rows in one block of 16 and in several
SIZES = {
    "one": (2, 3, 3, 1, 61, 64, 64),
    "groups": (3, 8, 2, 5, 333, 128, 128),
    "rows": (2, 8, 1, 16, 1009, 64, 64),
    "wide": (2, 4, 2, 3, 517, 96, 80),
    "small": (5, 6, 3, 2, 129, 24, 40),
    "largest": (1, 2, 1, 7, 257, 256, 256),
    "long": (1, 8, 2, 4, 70001, 64, 64),
    "busy": (40, 16, 8, 2, 8191, 64, 64),
}


def inputs(sizes, dtype):
    batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim = sizes
    generator = torch.Generator("cuda").manual_seed(3)
    shapes = [
        (batch, heads, q_len, head_dim),
        (batch, kv_heads, kv_len, head_dim),
        (batch, kv_heads, kv_len, value_dim),
    ]
    return [torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes]


def masks(sizes):
    batch, heads, _, _, kv_len, _, _ = sizes
    generator = torch.Generator("cuda").manual_seed(5)
    lens = torch.randint(0, kv_len + 1, (batch,), generator=generator, device="cuda")
    pads = torch.rand(batch, kv_len, generator=generator, device="cuda") < 0.3
    pads[0] = True
    return {
        "causal": loom.causal,
        "lengths": loom.causal & loom.lengths(lens),
        "window | sinks": loom.window(back=70) | loom.sinks(3),
        "padding": loom.key_padding(pads) & loom.causal,
        "documents": loom.documents(ids=torch.arange(kv_len, device="cuda") // 100),
        "heads": loom.masks.per_head([loom.window(back=head) for head in range(heads)]).to("cuda"),
        "nothing": loom.nothing,
        "everything": loom.everything,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", SIZES)
def test_it_equals_the_reference(name, dtype):
    sizes = SIZES[name]
    q, k, v = inputs(sizes, dtype)
    at = sizes[4] * 3 // 4
    for which, mask in masks(sizes).items():
        placed = loom.masks.shifted(mask, q_offset=at)
        truth, true_lse = reference(*(tensor.double() for tensor in (q, k, v)), placed)
        plain, _ = reference(q, k, v, placed)
        for offset in (at, torch.tensor(at, device="cuda"), torch.full((sizes[0],), at, device="cuda")):
            assert loom.explain(q, k, v, mask, q_offset=offset).backend == "decode"
            out, aux = loom.attend(q, k, v, mask, q_offset=offset, return_aux=LSE)
            error, plain_error = ((found.double() - truth).abs().max() for found in (out, plain))
            assert error <= 2 * plain_error + 1e-6, (which, error, plain_error)
            torch.testing.assert_close(
                aux.lse.double(), true_lse, atol=1e-5 if dtype == torch.float32 else 2e-3, rtol=1e-4
            )
            hidden = true_lse.isinf()
            assert not out[hidden].any() and torch.equal(aux.lse.isinf(), hidden)


def test_tensors_that_are_no_rows_of_their_own():
    sizes = (3, 8, 2, 5, 333, 64, 64)
    batch, _, kv_heads, _, kv_len, head_dim, _ = sizes
    q, k, v = inputs(sizes, torch.bfloat16)
    expected = loom.attend(q, k, v, loom.causal, q_offset=100)
    by_token = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
    assert torch.equal(loom.attend(*by_token, loom.causal, q_offset=100), expected)
    turned = [tensor.mT.contiguous().mT for tensor in (q, k, v)]
    assert torch.equal(loom.attend(*turned, loom.causal, q_offset=100), expected)
    part = k.new_zeros(batch, kv_heads, kv_len + 70, head_dim)[:, :, :kv_len].copy_(k)
    assert torch.equal(loom.attend(q, part, v, loom.causal, q_offset=100), expected)


def test_what_lies_behind_the_last_visible_block_is_not_read():
    q, k, v = inputs((3, 8, 2, 2, 1024, 64, 64), torch.bfloat16)
    expected = loom.attend(q, k, v, loom.causal, q_offset=100)
    k[:, :, 128:], v[:, :, 128:] = torch.nan, torch.nan
    assert torch.equal(loom.attend(q, k, v, loom.causal, q_offset=100), expected)


def test_a_block_mask_and_a_table():
    q, k, v = inputs((3, 8, 2, 2, 333, 64, 64), torch.bfloat16)
    table = torch.rand(3, 1, 2, 333, device="cuda") < 0.5
    lens = torch.tensor([5, 333, 150], device="cuda")
    blocks = loom.block_mask(
        loom.causal & loom.key_padding(torch.arange(333, device="cuda") >= lens[:, None]), 2, 333, q_offset=200
    )
    for mask in (table, blocks):
        assert loom.explain(q, k, v, mask).backend == "decode"
        truth, _ = reference(*(tensor.double() for tensor in (q, k, v)), mask)
        torch.testing.assert_close(loom.attend(q, k, v, mask).double(), truth, atol=5e-3, rtol=1e-2)


MASKS = {
    "causal": lambda lens: loom.causal,
    "rolling": lambda lens: loom.window(back=200),
    "sinks": lambda lens: loom.window(back=200) | loom.sinks(4),
    "lengths": lambda lens: loom.causal & loom.lengths(lens),
    "left padding": lambda lens: loom.causal & loom.key_padding(torch.arange(1009, device="cuda") < lens[:, None]),
}


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_steps_do_not_wait(name, rows):
    q, k, v = inputs((3, 8, 2, 1, 1009, 64, 64), torch.bfloat16)
    mask = MASKS[name](torch.tensor([300, 700, 150], device="cuda"))
    position = torch.tensor([100, 200, 300] if rows else 100, device="cuda")
    for _ in range(3):
        loom.attend(q, k, v, mask, q_offset=position)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outs = []
        for _ in range(20):
            position += 7
            outs.append(loom.attend(q, k, v, mask, q_offset=position))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    truth, _ = reference(*(tensor.double() for tensor in (q, k, v)), loom.masks.shifted(mask, q_offset=position))
    torch.testing.assert_close(outs[-1].double(), truth, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("name", MASKS)
def test_a_cuda_graph_of_a_step(name):
    q, k, v = inputs((3, 8, 2, 4, 1009, 64, 64), torch.bfloat16)
    mask = MASKS[name](torch.tensor([300, 700, 150], device="cuda"))
    position = torch.tensor(100, device="cuda")
    for _ in range(3):
        loom.attend(q, k, v, mask, q_offset=position)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = loom.attend(q, k, v, mask, q_offset=position)
    for at in (3, 500, 1000):
        position.fill_(at)
        graph.replay()
        truth, _ = reference(*(tensor.double() for tensor in (q, k, v)), loom.masks.shifted(mask, q_offset=at))
        torch.testing.assert_close(out.double(), truth, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("name", SIZES)
def test_parts_are_added_by_either_kernel(name, monkeypatch):
    """By the last program of each pair and by a kernel of its own: the same to rounding, and always the same."""
    sizes = SIZES[name]
    q, k, v = inputs(sizes, torch.float32)
    table = torch.rand(sizes[0], 1, sizes[3], sizes[4], device="cuda") < 0.3
    found = {}
    for most in (0, 1 << 20):
        monkeypatch.setattr(decode_kernel, "_MOST_SUMMED", most)
        decode_kernel._launch.cache_clear()
        found[most] = [decode_kernel.decode(q, k, v, table, 0.1) for _ in range(5)]
        for again in found[most][1:]:
            assert all(map(torch.equal, again, found[most][0]))
    decode_kernel._launch.cache_clear()
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.cuda.synchronize()
    assert not any(arrived.any() for arrived, _ in decode_kernel._arrivals._entries.values())


def test_a_compiled_step_with_cuda_graphs_keeps_none_of_their_memory(monkeypatch):
    """Also in the run before a graph is captured: torch's compiler refuses that (transformers' static cache runs so)."""
    monkeypatch.setattr(decode_kernel, "_arrivals", LRU(64))
    q, k, v = inputs((2, 8, 2, 1, 20011, 64, 64), torch.bfloat16)

    @torch.compile(mode="reduce-overhead")
    def step(at):
        return loom.attend(q, k, v, loom.causal, q_offset=at)

    for at in (700, 20000, 5, 12345):
        found = step(torch.tensor(at, device="cuda"))
        truth, _ = reference(*(tensor.double() for tensor in (q, k, v)), loom.masks.shifted(loom.causal, q_offset=at))
        torch.testing.assert_close(found.double(), truth, atol=5e-3, rtol=1e-2)
    assert not len(decode_kernel._arrivals)


def test_steps_on_several_streams_and_graphs_at_once():
    """The counts of programs that are done belong to a stream, or to one graph."""
    many = [inputs((2, 8, 2, 1, 20011, 64, 64), torch.bfloat16) for _ in range(4)]
    table = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="cuda")
    many = [(q + n, k * (n + 1), v) for n, (q, k, v) in enumerate(many)]
    expected = [decode_kernel.decode(*qkv, table, 0.1) for qkv in many]
    streams, graphs, outs = [torch.cuda.Stream() for _ in many], [torch.cuda.CUDAGraph() for _ in many], []
    torch.cuda.synchronize()
    for graph, qkv in zip(graphs, many, strict=True):
        with torch.cuda.graph(graph):
            outs.append(decode_kernel.decode(*qkv, table, 0.1))
    for _ in range(50):
        eager = []
        for stream, graph, qkv in zip(streams, graphs, many, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
                eager.append(decode_kernel.decode(*qkv, table, 0.1))
        torch.cuda.synchronize()
        for found in (outs, eager):
            for one, other in zip(found, expected, strict=True):
                assert all(map(torch.equal, one, other))


def test_a_thousand_steps_in_the_user_s_compile_are_one_graph():
    q, k, v = inputs((3, 8, 2, 1, 1009, 64, 64), torch.bfloat16)
    counter = CompileCounterWithBackend("inductor")
    mask = loom.causal & loom.lengths(torch.tensor([300, 700, 1009], device="cuda"))
    step = torch.compile(
        lambda *qkv, position: loom.attend(*qkv, mask, q_offset=position), backend=counter, fullgraph=True
    )
    position = torch.tensor(0, device="cuda")
    with torch.no_grad():
        for _ in range(1000):
            out = step(q, k, v, position=position)
            position += 1
    assert counter.frame_count == 1
    truth, _ = reference(*(tensor.double() for tensor in (q, k, v)), loom.masks.shifted(mask, q_offset=999))
    torch.testing.assert_close(out.double(), truth, atol=5e-3, rtol=1e-2)


def test_a_cache_that_grows():
    sizes = (3, 8, 2, 1, 300, 64, 64)
    q, k, v = inputs(sizes, torch.bfloat16)
    for kv_len in range(100, 300, 13):
        keys, values = k[:, :, :kv_len], v[:, :, :kv_len]
        mask = loom.masks.shifted(loom.window(back=99), q_offset=kv_len - 1)
        expected, _ = reference(q.double(), keys.double(), values.double(), mask)
        out = loom.attend(q, keys, values, loom.window(back=99), q_offset=kv_len - 1)
        torch.testing.assert_close(out.double(), expected, atol=5e-3, rtol=1e-2)
