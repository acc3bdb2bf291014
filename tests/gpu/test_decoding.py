"""Decoding with a cache on a GPU: the same as the whole row, without waiting, in one graph, and captured."""

import pytest
import torch

import maskloom as loom

B, T, D, HEADS, KV_HEADS, D_HEAD = 3, 300, 96, 4, 2, 64
PROMPTS = [150, 200, 17]
FORMS = {
    "static": ({"size": 320}, loom.causal),
    "growing": ({"size": 128, "grow": True}, loom.causal),
    "rolling": ({"size": 64, "window": 64}, loom.causal & loom.window(back=63)),
    "rolling, with room": ({"size": 100, "window": 64}, loom.causal & loom.window(back=63)),
}


def made():
    torch.manual_seed(0)
    return loom.MultiheadFlexAttention(
        D, D, HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, rotary=loom.nn.Rotary(D_HEAD), qk_norm=True,
        device="cuda", dtype=torch.bfloat16,
    ).requires_grad_(False)  # fmt: skip


def cache_of(**options):
    return loom.nn.KVCache(B, KV_HEADS, d_head=D_HEAD, device="cuda", dtype=torch.bfloat16, **({"size": 320} | options))


def rows():
    return torch.randn(B, T, D, device="cuda", dtype=torch.bfloat16, generator=torch.Generator("cuda").manual_seed(1))


def expected_of(attention, x, mask):
    """Each row by itself, in float64."""
    exact = made().double()
    return torch.stack([exact(x[b : b + 1].double(), mask, backend="reference").out[0] for b in range(B)])


@pytest.mark.parametrize("form", FORMS)
def test_unequal_prompts_go_on_as_each_alone(form):
    attention, x, (sizes, mask) = made(), rows(), FORMS[form]
    expected = expected_of(attention, x, mask)
    cache = cache_of(**sizes, lengths=PROMPTS)
    prompt = x[:, : max(PROMPTS)].clone()
    for b, length in enumerate(PROMPTS):
        prompt[b, length:] = float("nan")
    out = attention(prompt, loom.causal, cache=cache).out
    for b, length in enumerate(PROMPTS):
        torch.testing.assert_close(out[b, :length].double(), expected[b, :length], rtol=0.05, atol=0.03)
    for _ in range(70):
        at = cache.lengths.clone()
        out = attention(x[torch.arange(B), at][:, None], loom.causal, cache=cache).out
        torch.testing.assert_close(out[:, 0].double(), expected[torch.arange(B), at], rtol=0.05, atol=0.03)


@pytest.mark.parametrize("form", ["static", "rolling"])
def test_a_step_never_waits(form):
    attention, x, (sizes, _) = made(), rows(), FORMS[form]
    cache = cache_of(**sizes)
    attention(x[:, :50], loom.causal, cache=cache)
    for at in (50, 51):  # compiles
        attention(x[:, at : at + 1], loom.causal, cache=cache)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for at in range(52, 60):
            attention(x[:, at : at + 1], loom.causal, cache=cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", ["static", "rolling"])
def test_one_graph_for_all_steps(form):
    attention, x, (sizes, mask) = made(), rows(), FORMS[form]
    expected, cache = expected_of(attention, x, mask), cache_of(**sizes)
    attention(x[:, :50], loom.causal, cache=cache)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(attention, fullgraph=True)
    for at in range(50, 80):
        out = step(x[:, at : at + 1], loom.causal, cache=cache).out
        torch.testing.assert_close(out.double(), expected[:, at : at + 1], rtol=0.05, atol=0.03)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("form", ["static", "rolling"])
def test_a_step_is_captured_in_a_cuda_graph(form):
    """Positions live on the device: each replay writes and attends one position further."""
    attention, x, (sizes, mask) = made(), rows(), FORMS[form]
    expected, cache = expected_of(attention, x, mask), cache_of(**sizes)
    attention(x[:, :50], loom.causal, cache=cache)
    token = x[:, 50:51].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for at in (50, 51, 52):
            token.copy_(x[:, at : at + 1])
            attention(token, loom.causal, cache=cache)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(token, loom.causal, cache=cache).out
    for at in range(53, 90):
        token.copy_(x[:, at : at + 1])
        graph.replay()
        torch.testing.assert_close(out.double(), expected[:, at : at + 1], rtol=0.05, atol=0.03)
    assert cache.lengths.tolist() == [90] * B
