"""Ids and starts of documents by Triton's kernels, against torch's operations on the CPU."""

import sys

import pytest
import torch

import maskloom as loom
from maskloom.batches import documents as of_documents
from maskloom.batches.documents import ids_from_offsets, packed_tables

pytest.importorskip("triton")  # so that it is loaded
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def offsets_of(documents, length, dtype, seed):
    """Offsets of documents, some of them empty, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, length + 1, (documents - 1,), generator=generator).sort().values
    return torch.cat([torch.zeros(1), inner, torch.full((1,), length)]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("documents", [1, 2, 15, 16, 17, 97])
@pytest.mark.parametrize("length", [101, 127])
def test_packed_tables(dtype, documents, length):
    for filled in (1, length // 2, length):
        offsets = offsets_of(documents, filled, dtype, seed=documents + length)
        for found, expected in zip(packed_tables(offsets.cuda(), length), packed_tables(offsets, length), strict=True):
            assert found.dtype == expected.dtype and torch.equal(found.cpu(), expected)
        assert torch.equal(ids_from_offsets(offsets.cuda(), length).cpu(), ids_from_offsets(offsets, length))


def test_offsets_that_lie_in_other_ways():
    rows = torch.stack([offsets_of(11, filled, torch.int64, seed=filled) for filled in (700, 1000, 1, 997)])
    expected = torch.stack([ids_from_offsets(row, 1000) for row in rows])
    for offsets in (rows.cuda(), rows.cuda().mT.contiguous().mT, torch.stack([rows, rows], -1).cuda()[..., 1]):
        assert torch.equal(ids_from_offsets(offsets, 1000).cpu(), expected)
    assert torch.equal(ids_from_offsets(rows[0].cuda()[:, None].expand(-1, 2)[:, 1], 1000).cpu(), expected[0])


def test_a_million_positions():
    offsets = offsets_of(5000, 1_000_003, torch.int64, seed=0)
    for found, expected in zip(packed_tables(offsets.cuda(), 1 << 20), packed_tables(offsets, 1 << 20), strict=True):
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("documents", [3, 40])
def test_packed_documents_take_one_launch(documents):
    offsets = offsets_of(documents, 2000, torch.int64, seed=documents).cuda()

    def made():
        return loom.documents(offsets=offsets, length=2003).beside_causal()

    made()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        made()
        torch.cuda.synchronize()
    launched = [one for one in seen.events() if one.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) == 1, launched


def test_where_no_kernel_can_run(monkeypatch):
    offsets = offsets_of(9, 300, torch.int32, seed=1)
    expected = packed_tables(offsets, 301)

    def check(found):
        assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True))

    on_gpu = offsets.cuda()
    check([table[1] for table in torch.vmap(lambda row: packed_tables(row, 301))(torch.stack([on_gpu, on_gpu]))])
    check(torch.compile(lambda row: packed_tables(row, 301), fullgraph=True)(on_gpu))
    monkeypatch.delitem(sys.modules, "triton")
    assert not of_documents.can_launch(on_gpu)
    check(packed_tables(on_gpu, 301))


def test_in_a_cuda_graph():
    offsets, others = (offsets_of(9, filled, torch.int32, seed=filled).cuda() for filled in (300, 204))
    packed_tables(offsets, 301)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = packed_tables(offsets, 301)
    offsets.copy_(others)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(captured, packed_tables(others, 301), strict=True))
