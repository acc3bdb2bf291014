"""Autocast, empty batches and torch.func on the GPU."""

import pytest
import torch
import torch.nn.functional as F

import maskloom as loom
from maskloom.attention.backends.flash import has_flash
from maskloom.masks.declared import longest_row

B, H, L, D = 2, 3, 150, 64
BACKENDS = ["auto", "sdpa", "reference", "triton", *(["flash"] if has_flash() else [])]


def inputs(*dtypes, batch=B):
    generator = torch.Generator().manual_seed(0)
    dtypes = dtypes or (torch.float32,) * 3
    return [torch.randn(batch, H, L, D, generator=generator).to("cuda", dtype) for dtype in dtypes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,) * 3,
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_autocast_is_that_of_torchs_own_attention(dtypes, to, backend):
    tensors = [tensor.requires_grad_() for tensor in inputs(*dtypes)]
    with torch.autocast("cuda", to):
        expected = F.scaled_dot_product_attention(*tensors, is_causal=True)
        out = loom.attend(*tensors, loom.causal, backend=backend)
    assert out.dtype == expected.dtype == to
    torch.testing.assert_close(out, expected, rtol=0, atol=8 * torch.finfo(to).eps)
    out.sum().backward()
    assert [tensor.grad.dtype for tensor in tensors] == list(dtypes)


def test_float64_is_not_cast():
    with torch.autocast("cuda", torch.bfloat16):
        assert loom.attend(*inputs(*[torch.float64] * 3), loom.causal).dtype == torch.float64
        with pytest.raises(ValueError, match=r"one dtype; got .*not float64"):
            loom.attend(*inputs(torch.float64, torch.float32, torch.float32), loom.causal)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend):
    lens = torch.zeros(0, dtype=torch.int64, device="cuda")
    tensors = [tensor.requires_grad_() for tensor in inputs(*[torch.bfloat16] * 3, batch=0)]
    mask = loom.causal & loom.lengths(lens)
    for given in (mask, loom.block_mask(mask, L, L), loom.create_block_mask(mask, 0, H, L, L)):
        out = loom.attend(*tensors, given, backend=backend)
        assert out.shape == (0, H, L, D)
        out.sum().backward()
    assert all(tensor.grad is not None for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vmap_and_gradients_of_examples(dtype):
    q, k, v = inputs(*[dtype] * 3)
    lens = torch.tensor([[150, 31], [7, 100], [1, 0]], device="cuda")

    def attention(lens, q=q):
        return loom.attend(q, k, v, loom.causal & loom.lengths(lens))

    expected = torch.stack([attention(one) for one in lens])
    tolerance = {"rtol": 0, "atol": 0.03 if dtype == torch.bfloat16 else 1e-3}
    torch.testing.assert_close(torch.vmap(attention)(lens), expected, **tolerance)
    leaf = q.clone().requires_grad_()
    attention(lens[0], leaf).float().square().sum().backward()
    found = torch.func.grad(lambda q: attention(lens[0], q).float().square().sum())(q)
    torch.testing.assert_close(found, leaf.grad, rtol=0, atol=10 * tolerance["atol"])
    with pytest.raises(ValueError, match=r"'triton' cannot do this: torch\.func"):
        torch.vmap(lambda lens: loom.attend(q, k, v, loom.lengths(lens), backend="triton"))(lens)


def test_lengths_on_the_gpu_are_not_waited_for():
    mask = loom.causal & loom.lengths(torch.tensor([L + 1, 3], device="cuda"))
    loom.attend(
        *inputs(*[torch.bfloat16] * 3), mask, backend="triton"
    )  # no error: what the device holds is not looked at
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert longest_row(mask) is None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_holder_moves_with_its_module():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = loom.nn.Holder(loom.causal & loom.lengths([150, 31]))
            self.bias = loom.nn.Holder(loom.scores.relative_bias(torch.nn.Parameter(torch.zeros(H, 7))))

        def forward(self, x):
            return loom.attend(x, x, x, self.mask(), score_mod=self.bias())

    layer, x = Layer(), inputs()[0]
    expected = layer(x.cpu())
    found = layer.cuda()(x)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0.01)
    found.sum().backward()
    assert layer.bias.tensor0.grad.is_cuda
