"""clean_padding on the GPU: the kernel that copies, masks that change at each step, and forwards without gradients."""

import math

import pytest
import torch

import maskloom as loom
from maskloom.attention.plans import kinds
from maskloom.attention.zeros import zeros_forward
from tests.gpu.test_attend import EVERY, documents
from tests.gpu.test_compile import BATCH, HEADS, inputs

Q = 517
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]


def layouts(dtype, batch=3, heads=2, length=701, width=72):
    def randn(*shape):
        return torch.randn(shape, device="cuda").to(dtype)

    return {
        "contiguous": randn(batch, heads, length, width),
        "odd": randn(batch, heads, length, 13),
        "of projections": randn(batch, length, 3, heads, width)[:, :, 1].transpose(1, 2),
        "begins between": randn(batch, heads, length, width + 3)[..., 1 : width + 1],
        "expanded": randn(batch, 1, length, width).expand(batch, heads, length, width),
        "columns": randn(batch, heads, width, length).transpose(2, 3),
        "many heads": randn(257, 256, 2, 8),
        "empty": randn(batch, heads, 0, width),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", layouts(torch.float32))
def test_a_copy_with_zeros_at_some_rows(name, dtype):
    pytest.importorskip("triton")
    from maskloom.attention.kernels.zeros_kernel import zeroed_copy

    tensor = layouts(dtype)[name]
    for rows in (1, tensor.shape[0]):
        where = (torch.rand(rows, 2 * tensor.shape[2], device="cuda") < 0.4)[:, ::2]
        dirty = tensor.clone(memory_format=torch.preserve_format) if name != "expanded" else tensor
        if name != "expanded":
            dirty.masked_fill_(where[:, None, :, None], math.nan)
        found = zeroed_copy(dirty, where[:, None, :, None])
        if name in ("columns", "empty"):
            assert found is None
            continue
        assert torch.equal(found, torch.where(where[:, None, :, None], 0.0, dirty))
        assert found.stride() == torch.empty_like(dirty).stride()


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (701, 1), (3, 2, 701, 1), (3, 1, 701, 72), (1, 1, 1, 1), (701, 72)])
def test_rows_that_the_kernel_does_not_know_are_left_to_torch(shape):
    pytest.importorskip("triton")
    from maskloom.attention.kernels.zeros_kernel import zeroed_copy

    tensor, rows = layouts(torch.bfloat16)["contiguous"], torch.rand(shape, device="cuda") < 0.4
    assert zeroed_copy(tensor, rows) is None
    assert torch.equal(zeros_forward(tensor, rows), torch.where(rows, 0.0, tensor))


@pytest.mark.parametrize("poison", GARBAGE)
@pytest.mark.parametrize("backend", [*EVERY, "decode"])
def test_padding_never_leaks_into_a_forward_alone(backend, poison):
    """There some backends clean values alone."""
    q_len, end = 3 if backend == "decode" else Q, 333
    lens = torch.tensor([333, 0, Q], device="cuda")
    if backend == "varlen":
        mask, where = documents(end=end) & loom.causal, (torch.arange(Q, device="cuda") >= end).expand(BATCH, Q)
    elif backend == "decode":
        where = torch.arange(Q, device="cuda") >= lens[:, None]
        mask = loom.key_padding(where)
    else:
        mask, where = loom.causal & loom.lengths(lens), torch.arange(Q, device="cuda") >= lens[:, None]
    query, key, value = inputs(Q)
    query = query[:, :, :q_len]
    expected = loom.attend(query, *(tensor.masked_fill(where[:, None, :, None], 0) for tensor in (key, value)), mask, backend=backend)  # fmt: skip
    with torch.no_grad():
        for _ in range(3):
            dirty = [tensor.masked_fill(where[:, None, :, None], poison) for tensor in (key, value)]
            asked = query if backend == "decode" else query.masked_fill(where[:, None, :, None], poison)
            out = loom.attend(asked, *dirty, mask, backend=backend, clean_padding=True)
            torch.testing.assert_close(out, expected, rtol=0, atol=0 if backend != "flash" else 1e-2)
            assert out.isfinite().all()


@pytest.mark.parametrize("backend", [name for name in EVERY if name in ("triton", "flash")])
def test_masks_that_change_at_each_step(backend):
    lens = torch.tensor([333, 0, Q], device="cuda")
    mask = loom.causal & loom.lengths(lens)
    for step in range(6):
        lens.copy_(torch.tensor([100 * step, 517 - step, 128 * min(step, 4)]))
        where = torch.arange(Q, device="cuda") >= lens[:, None]
        leaves = [tensor.masked_fill(where[:, None, :, None], math.nan).requires_grad_() for tensor in inputs(Q)]
        clean = [tensor.detach().masked_fill(where[:, None, :, None], 0).requires_grad_() for tensor in leaves]
        grad = inputs(Q, seed=5)[0].masked_fill(where[:, None, :, None], math.nan)
        loom.attend(*leaves, mask, backend=backend, clean_padding=True).backward(grad)
        fresh = loom.causal & loom.lengths(lens.clone())
        loom.attend(*clean, fresh, backend=backend).backward(grad.masked_fill(where[:, None, :, None], 0))
        for ours, expected in zip(leaves, clean, strict=True):
            torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=0 if backend == "triton" else 1e-2)
    assert any(isinstance(kind, kinds._Kind) and kind.hides is not None for kind in kinds._kinds.entries().values())


def test_a_step_launches_one_copy_for_each_tensor():
    """Of query, key and value in the forward, and of the gradient in the backward."""
    pytest.importorskip("triton")
    lens = torch.tensor([333, 0, Q], device="cuda")
    mask, leaves = loom.causal & loom.lengths(lens), [tensor.requires_grad_() for tensor in inputs(Q)]

    def step(**options):
        out = loom.attend(*leaves, mask, backend="triton", **options)
        torch.autograd.grad(out, leaves, out.detach())

    def launches(**options):
        for _ in range(3):
            step(**options)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step(**options)
            torch.cuda.synchronize()
        return sum(event.count for event in profile.key_averages() if event.device_type.name == "CUDA")

    assert HEADS and launches(clean_padding=True) - launches() == 4
