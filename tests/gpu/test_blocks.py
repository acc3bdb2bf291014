"""Block masks on the GPU: torch's tables, no wait for the device, CUDA graphs, and attention with them."""

from typing import NamedTuple

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.blocks import index_tables
from maskloom.blocks.tile_states import tile_states
from maskloom.core import captures
from tests.evidence import gather
from tests.gpu.test_compile import BACKENDS, BATCH, HEADS, LENS, inputs, kinds

NAMES = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


@pytest.fixture(params=["by the kernel", "by torch", "by sorting"])
def ordering(request, monkeypatch):
    """Each way to order tables: without Triton loaded, small ones are sorted."""
    monkeypatch.setattr(index_tables, "can_launch", lambda states: states.is_cuda and request.param == "by the kernel")
    if request.param == "by torch":
        monkeypatch.setattr(index_tables, "_SORTED_ELSEWHERE", 0)


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("q_len", [1199, 1024])
def test_tables_are_torchs(name, q_len):
    mask = kinds()[name]
    ours = loom.block_mask(mask, q_len, q_len)
    batch, heads = ours.kv_indices.shape[:2]
    theirs = torch_create_block_mask(mask, batch, heads, q_len, q_len, device="cuda")
    for table in NAMES:
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("sizes", [(517, 1199), (128, 130), (2100, 50)])
def test_tables_written_out_for_every_row_and_head(sizes, separate, ordering):
    """What does not differ from row to row is ordered once for each, and without full tables all is listed in one."""
    ours = loom.create_block_mask(loom.causal, BATCH, HEADS, *sizes, "cuda", 32, separate_full_blocks=separate)
    there = loom.create_block_mask(loom.causal, BATCH, HEADS, *sizes, "cpu", 32, separate_full_blocks=separate)
    for table in NAMES:
        found, expected = getattr(ours, table), getattr(there, table)
        assert (found is None and expected is None) or torch.equal(found.cpu(), expected), table
    assert torch.equal(tile_states(ours).cpu(), tile_states(there))


def test_inexact_building_does_not_wait_for_the_device():
    mask = (loom.window(back=100) | loom.sinks(4)) & loom.lengths(LENS)
    loom.block_mask(mask, 1199, 1199, exact=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loom.block_mask(mask, 1199, 1199, exact=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("q_len", [1199, 1024])
def test_what_is_decided_again_from_a_list_is_torchs(q_len):
    """On the default stream and on another, with new lengths each time."""
    side = torch.cuda.Stream()
    for turn in range(8):
        lens = torch.randint(1, q_len, (BATCH,), device="cuda")
        pads = torch.arange(q_len, device="cuda") >= lens[:, None]
        side.wait_stream(torch.cuda.current_stream())
        for mask in (loom.causal & loom.lengths(lens), loom.causal & loom.padding(pads), loom.window(back=300)):
            with torch.cuda.stream(side if turn % 2 else torch.cuda.current_stream()):
                ours = loom.create_block_mask(mask, BATCH, None, q_len, q_len, "cuda", 32)
                theirs = torch_create_block_mask(mask, BATCH, None, q_len, q_len, "cuda", 32)
                assert all(torch.equal(getattr(ours, table), getattr(theirs, table)) for table in NAMES)


def test_inexact_building_again_does_not_wait_either():
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            loom.block_mask(
                loom.causal & loom.padding(torch.zeros(2, 1199, dtype=torch.bool, device="cuda")),
                1199,
                1199,
                exact=False,
            )
            loom.block_mask(loom.window(back=77), 1199, 1199, exact=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_update_inside_a_cuda_graph(ordering):
    lens = torch.tensor([300, 100, 512], device="cuda")
    mask = loom.causal & loom.lengths(lens)
    blocks = loom.block_mask(mask, 512, 512, exact=False)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        loom.blocks.update_(blocks, mask)  # warm up on a side stream, as capture wants
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loom.blocks.update_(blocks, mask)
    lens.copy_(torch.tensor([512, 7, 200], device="cuda"))
    graph.replay()
    expected = loom.block_mask(mask, 512, 512, exact=False)
    for table in NAMES:
        assert torch.equal(getattr(blocks, table), getattr(expected, table)), table


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_a_captured_attention_follows_updates(backend):
    def mask(*lens):
        return loom.causal & loom.lengths(torch.tensor(lens, device="cuda"))

    q, k, v = (torch.randn(3, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    blocks = loom.blocks.updatable(loom.block_mask(mask(300, 100, 512), 512, 512))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        loom.attend(q, k, v, blocks, backend=backend)  # compiles, and warms up on a side stream, as capture wants
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = loom.attend(q, k, v, blocks, backend=backend)
    for lens in ((512, 7, 200), (1, 512, 333)):
        loom.blocks.update_(blocks, mask(*lens))
        graph.replay()
        expected, _ = loom.reference(q.float(), k.float(), v.float(), mask(*lens))
        torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exact", [True, False])
def test_attention_with_our_tables(backend, exact):
    mask = loom.causal & loom.lengths(LENS)
    blocks = loom.block_mask(mask, 1199, 1199, exact=exact)
    table = mask.dense(1199, 1199)
    gather(
        lambda q, k, v: loom.attend(q, k, v, blocks, kernel_options={"BACKEND": backend}), *inputs(1199), table=table
    ).check()


def test_a_block_mask_moves_with_what_it_captured():
    blocks = loom.block_mask(loom.causal & loom.lengths(LENS.cpu()), 1199, 1199)
    moved = loom.blocks.to_device(blocks, "cuda")
    there = loom.block_mask(loom.causal & loom.lengths(LENS), 1199, 1199)
    assert moved.mask_mod == there.mask_mod
    q, k, v = inputs(1199)
    torch.testing.assert_close(loom.attend(q, k, v, moved), loom.attend(q, k, v, there), rtol=0, atol=0)


class Batch(NamedTuple):
    """What a loader hands out; torch pins it by its method."""

    blocks: BlockMask

    def pin_memory(self):
        return Batch(loom.blocks.pin_memory(self.blocks))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, row):
        lens = torch.tensor([300 + 100 * row, 1199])
        return Batch(loom.block_mask(loom.causal & loom.lengths(lens), 1199, 1199, device="cpu"))


def as_it_is(item):
    return item


def test_block_masks_of_a_data_loader_are_pinned_and_copied_without_waiting():
    rows = Rows()
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=1, multiprocessing_context="spawn", collate_fn=as_it_is, pin_memory=True
    )
    for row, batch in enumerate(loader):
        held = [getattr(batch.blocks, name) for name in NAMES] + captures.tensors(batch.blocks.mask_mod)
        assert all(tensor.is_pinned() for tensor in held)
        torch.cuda.set_sync_debug_mode("error")
        try:
            moved = loom.blocks.to_device(batch.blocks, "cuda", non_blocking=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = loom.blocks.to_device(rows[row].blocks, "cuda")
        assert all(torch.equal(getattr(moved, name), getattr(expected, name)) for name in NAMES)
        assert moved.mask_mod == expected.mask_mod
