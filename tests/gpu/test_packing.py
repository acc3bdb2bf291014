"""Packing inside the module on the GPU: nothing waits, results are those of the padded way, one graph serves all lengths."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import maskloom as loom
from maskloom.batches import pads_from_lengths
from maskloom.masks.packed_form import packed_form
from maskloom.nn import packing
from maskloom.nn.packing import NOT_PACKED, packing_of

B, L, D, HEADS = 5, 1024, 256, 4
ALL_LENS = [1024, 300, 17, 640, 511], [700, 1, 1024, 90, 333], [64, 128, 1000, 256, 999], [1024, 1000, 13, 7, 500]


@pytest.fixture(autouse=True)
def small_inputs_are_packed(monkeypatch):
    monkeypatch.setattr(packing, "_LEAST_ELSEWHERE", 0)


def blocks_of(lens):
    return loom.block_mask((loom.causal & loom.lengths(lens)).to("cuda"), L, L)


def module_of(dtype=torch.bfloat16, **options):
    torch.manual_seed(0)
    rotary = loom.nn.Rotary(D // HEADS)
    return loom.MultiheadFlexAttention(D, D, HEADS, n_kv_heads=2, rotary=rotary, device="cuda", dtype=dtype, **options)


def step(module, lens, mask, dtype=torch.bfloat16):
    """Output and gradients of a step whose padding is NaN."""
    generator = torch.Generator("cuda").manual_seed(1)
    x, gradient = (torch.randn(B, L, D, device="cuda", generator=generator).to(dtype) for _ in range(2))
    pads = pads_from_lengths(torch.tensor(lens, device="cuda"), L)[..., None]
    x = x.masked_fill(pads, torch.nan).requires_grad_()
    module.zero_grad()
    out = module(x, mask).out
    out.backward(gradient.masked_fill(pads, 0))
    return [out, x.grad, *(parameter.grad for parameter in module.parameters())]


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other.float()).norm() <= 0.01 * other.float().norm()


@pytest.mark.parametrize("lens", ALL_LENS[:2], ids=str)
@pytest.mark.parametrize("options", [{}, {"bias": True, "gate": True, "qk_norm": True}], ids=["plain", "all"])
def test_packed_equals_padded(lens, options, monkeypatch):
    module, mask = module_of(**options), blocks_of(lens)
    x = torch.empty(B, L, D, device="cuda")
    assert packing_of(x, None, mask) != NOT_PACKED
    found = step(module, lens, mask)
    monkeypatch.setattr(packing, "_LEAST_ELSEWHERE", 1 << 30)
    unknown = blocks_of(torch.tensor(lens, device="cuda"))
    assert packing_of(x, None, unknown) == NOT_PACKED
    close(found, step(module, lens, unknown))


def test_nothing_waits_for_the_device():
    module, lens = module_of(), ALL_LENS[0]
    step(module, lens, blocks_of(lens))  # compiles
    mask = blocks_of(ALL_LENS[1])
    x = torch.randn(B, L, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    module(x, mask).out.sum().backward()  # what is made of a mask at its first use may read tables of tiles
    fresh = loom.causal & loom.lengths(ALL_LENS[2])
    moved = fresh.to("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert packing_of(x, None, moved) != NOT_PACKED
        module(x, mask).out.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_graph_for_all_lengths():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    module = module_of()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for lens in ALL_LENS:
        mask = blocks_of(lens)
        close(step(compiled, lens, mask), step(module, lens, mask))
    # torch makes a number dynamic at its second value: here the total is at the second mask, the longest length at the third
    assert counter.frame_count <= 3


def test_a_write_on_the_device_makes_the_count_void():
    mask = (loom.causal & loom.lengths(ALL_LENS[0])).to("cuda")
    x = torch.empty(B, L, D, device="cuda")
    assert packing_of(x, None, mask) != NOT_PACKED
    mask.parts[1].q_lens.sub_(1)
    assert packing_of(x, None, mask) == NOT_PACKED


def test_what_stands_at_padding():
    module, lens = module_of(torch.float32), ALL_LENS[3]
    out, gradient, *_ = step(module, lens, blocks_of(lens), torch.float32)
    assert out.isfinite().all() and gradient.isfinite().all()
    pads = pads_from_lengths(torch.tensor(lens, device="cuda"), L)
    assert not gradient[pads].any()
    torch.testing.assert_close(out[pads], module.out_proj.bias.expand(int(pads.sum()), -1))


def test_what_is_moved_in_inference_mode_is_counted():
    x = torch.empty(B, L, D, device="cuda")
    blocks = loom.block_mask(loom.causal & loom.lengths(ALL_LENS[0]), L, L)
    batch = loom.batches.Collator(loom.causal, length=L)([torch.arange(length) for length in ALL_LENS[0]])
    with torch.inference_mode():
        moved = batch.to("cuda")
        masks = blocks_of(ALL_LENS[0]), loom.blocks.to_device(blocks, "cuda"), moved.mask, moved.blocks
        assert all(packing_of(x, None, mask) != NOT_PACKED for mask in masks)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_one_row_holds_reaches_no_other_through_the_packed_row(bad):
    """Each begins with a tile of its own there."""
    module, lens = module_of(), ALL_LENS[0]
    mask = blocks_of(lens)
    x = torch.randn(B, L, D, device="cuda", dtype=torch.bfloat16)
    assert packing_of(x, None, mask, in_row=packed_form).mask is not None
    real = ~pads_from_lengths(torch.tensor(lens, device="cuda"), L)[..., None]

    def run(x):
        x = x.clone().requires_grad_()
        out = module(x, mask).out
        out.backward(real.expand_as(out).to(out.dtype))
        return out.detach(), x.grad

    poisoned = x.clone()
    poisoned[0, 40] = bad
    for found, expected in zip(run(poisoned), run(x), strict=True):
        assert torch.equal(found[1:], expected[1:])
        assert not found[0].isfinite().all()
