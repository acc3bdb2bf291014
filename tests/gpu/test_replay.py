"""What classifies tiles, as one CUDA graph: the same tables as on the CPU, each time, and results that stay."""

import pytest
import torch

import maskloom as loom
from maskloom.blocks.replay import cached, captured
from maskloom.blocks.replay import kinds as kinds_of_blocks
from maskloom.blocks.replay.captured import CapturedCalls
from maskloom.core import captures
from maskloom.core.cache import LRU
from tests.all_masks import ALL_MASKS, BATCH, HEADS, KV_LEN, Q_LEN
from tests.blocks.random_masks import TABLES

CHANGING = [name for name, make in ALL_MASKS.items() if captures.tensors(make()) and name != "documents_packed"]
LENS = torch.tensor([1000, 1, 517])


@pytest.fixture(autouse=True)
def _plans_of_one_test(monkeypatch):
    """With graphs."""
    monkeypatch.setattr(captured, "_allowed", True)
    monkeypatch.setattr(cached, "_plans", LRU(256, most_bytes=1 << 26, nbytes=cached._bytes_of))
    monkeypatch.setattr(kinds_of_blocks, "_kinds", LRU(256))


def graphs():
    """Those of lists of one mask's structure, and of recipes of a kind."""
    kinds = [getattr(kind, "states", None) for kind in kinds_of_blocks._kinds.entries().values()]
    plans = [plan for plan in (*cached._plans.entries().values(), *kinds) if hasattr(plan, "calls")]
    found = [plan.__dict__.get("_captured") for plan in plans]
    return [one._graph for one in found if one is not None and one._graph is not None]


def tables(blocks):
    return [getattr(blocks, name).cpu() for name in TABLES]


def same(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", CHANGING)
def test_masks_of_one_structure(name):
    mask = ALL_MASKS[name]()
    found, expected = [], []
    for step in range(8):
        other = captures.moved(mask, lambda table, step=step: table.roll(step, 0))
        sizes = {"batch": BATCH, "heads": HEADS, "block_size": 4}
        expected.append(tables(loom.block_mask(other, Q_LEN, KV_LEN, device="cpu", **sizes)))
        found.append(loom.block_mask(other.to("cuda"), Q_LEN, KV_LEN, device="cuda", **sizes))
    assert all(map(same, map(tables, found), expected))  # looked at last: what a graph wrote stays
    assert graphs()
    torch.rand(1, device="cuda")  # torch's generator is as it was


@pytest.mark.parametrize("name", CHANGING)
def test_whole_block_masks(name):
    """What does not wait is one graph from the mask's tensors to all tables."""
    mask, found, expected = ALL_MASKS[name](), [], []
    for step in range(7):
        other = captures.moved(mask, lambda table, step=step: table.roll(step, 0))
        how = {"batch": BATCH, "heads": HEADS, "block_size": 4, "exact": False}
        expected.append(tables(loom.block_mask(other, Q_LEN, KV_LEN, device="cpu", **how)))
        found.append(loom.block_mask(other.to("cuda"), Q_LEN, KV_LEN, device="cuda", **how))
    assert all(map(same, map(tables, found), expected))
    kinds = [
        kind for kind in kinds_of_blocks._kinds.entries().values() if not isinstance(kind, str) and kind.is_captured
    ]
    assert len(kinds) == 1
    assert kinds[0]._computed._graph is not None


def test_it_is_captured():
    for step in range(6):
        loom.block_mask(loom.causal & loom.lengths(LENS.roll(step).cuda()), 1000, 1000)
    assert len(graphs()) == 1


def test_few_launches():
    def build():
        return loom.block_mask(loom.causal & loom.lengths(LENS.roll(1).cuda()), 1000, 1000)

    for _ in range(6):
        build()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        build()
    launches = [event for event in profile.events() if event.name in ("cudaLaunchKernel", "cuLaunchKernelEx")]
    assert len(launches) <= 20  # those that make the mask with them; as a list it is over 40
    assert sum(event.name == "cudaGraphLaunch" for event in profile.events()) == 1


def test_what_cannot_be_captured_runs_as_a_list():
    """And torch's generator gives numbers after it."""

    def waits(tensor):
        return (tensor + int(tensor[0]) * 0,)

    run, tensor = CapturedCalls(waits, [None]), torch.arange(3, device="cuda")
    for _ in range(5):
        assert run([tensor])[0].tolist() == [0, 1, 2]
    torch.rand(1, device="cuda")


def test_other_streams_have_their_own():
    streams = [torch.cuda.Stream() for _ in range(2)]
    expected = [
        tables(loom.block_mask(loom.causal & loom.lengths(LENS.roll(step)), 1000, 1000, device="cpu"))
        for step in range(7)
    ]
    found = {}
    for step in range(7):
        lens = LENS.roll(step).cuda()
        torch.cuda.synchronize()
        for place, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[place, step] = loom.block_mask(loom.causal & loom.lengths(lens), 1000, 1000)
    torch.cuda.synchronize()
    assert all(same(tables(blocks), expected[step]) for (_, step), blocks in found.items())
    assert len(graphs()) == 2


def test_two_forwards_before_their_backwards():
    """Each backward has the tables of its own forward."""
    lengths = [LENS.roll(step).cuda() for step in range(6)]
    qkv = [torch.randn(3, 2, 1000, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]

    def gradients(masks):
        outs = [loom.attend(*qkv, mask, backend="triton") for mask in masks]
        return [torch.autograd.grad(out.float().square().sum(), qkv) for out in outs]

    together = gradients([loom.causal & loom.lengths(lens) for lens in lengths])
    for lens, found in zip(lengths, together, strict=True):
        out = loom.attend(*qkv, loom.causal & loom.lengths(lens), backend="triton")
        expected = torch.autograd.grad(out.float().square().sum(), qkv)
        assert all(
            torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True)
        )  # of queries they are summed in no fixed order


def test_in_a_users_graph():
    """While the user captures a CUDA graph, nothing is captured within it."""
    lens = LENS.cuda()
    for _ in range(6):
        loom.block_mask(loom.causal & loom.lengths(lens), 1000, 1000, exact=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        blocks = loom.block_mask(loom.causal & loom.lengths(lens), 1000, 1000, exact=False)
    lens.copy_(LENS.roll(1))
    graph.replay()
    expected = loom.block_mask(loom.causal & loom.lengths(LENS.roll(1)), 1000, 1000, device="cpu", exact=False)
    assert same(tables(blocks), tables(expected))
