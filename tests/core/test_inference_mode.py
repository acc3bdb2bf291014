"""What is kept with a mask in inference mode serves in training too."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.plans import kinds
from tests.attention.test_host_cost import launches  # noqa: F401 - a fixture

PADS = torch.arange(600) >= torch.tensor([[100], [217]])
MASKS = {
    "lengths": lambda: loom.causal & loom.lengths([100, 217]),
    "padding": lambda: loom.padding(PADS),
    "ids": lambda: loom.documents(PADS.long() * -2 + 1),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_module(name):
    module, x, mask = loom.MultiheadFlexAttention(8, 8, 2), torch.randn(2, 600, 8), MASKS[name]()
    with torch.inference_mode():
        expected = module(x, mask).out
    out = module(x, mask).out
    out.sum().backward()
    torch.testing.assert_close(out, expected.clone())


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("name", MASKS)
def test_clean_padding(name, backend):
    mask, query = MASKS[name](), torch.randn(2, 2, 600, 8, requires_grad=True)
    with torch.inference_mode():
        loom.attend(query, query, query, mask, clean_padding=True, backend=backend)
    loom.attend(query, query, query, mask, clean_padding=True, backend=backend).sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["triton", "flash"])
@pytest.mark.parametrize("mask", [loom.causal, loom.causal & loom.lengths([7, 13, 5])], ids=repr)
def test_block_masks(mask, backend, launches, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kinds, "readable", lambda tensor: False)
    query = torch.randn(3, 2, 13, 64).bfloat16()
    with torch.inference_mode():
        loom.attend(query, query, query, mask, backend=backend)
    loom.attend(query.clone().requires_grad_(), query, query, mask, backend=backend)
    assert not any(got[4].kv_indices.is_inference() for got in launches)
