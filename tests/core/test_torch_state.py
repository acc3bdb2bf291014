"""What torch is doing around a call: asked in eager mode, and by a function that torch.compile traces."""

import pytest
import torch

from maskloom.core.torch_state import float_state, inside_transform, inside_vmap, is_exporting

X = torch.ones(3)


def describe(x):
    """x multiplied by 2 inside a transform, and by 5 inside a vmap."""
    return x * (2 if inside_transform() else 1) * (5 if inside_vmap() else 1)


FUNCTIONS = {
    "alone": (describe, 1),
    "vmap": (torch.vmap(describe), 10),
    "grad": (torch.func.grad(lambda x: describe(x).sum()), 2),
    "grad of vmap": (torch.func.grad(lambda x: torch.vmap(describe)(x).sum()), 10),
    "jvp": (lambda x: torch.func.jvp(describe, (x,), (x,))[1], 2),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_are_seen(name, compiled):
    function, factor = FUNCTIONS[name]
    torch._dynamo.reset()
    if compiled:
        function = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(function(X), factor * X)


class OfExport(torch.nn.Module):
    def forward(self, x):
        return x * (3 if is_exporting() else 1)


def test_an_export_is_told_from_a_compile():
    torch._dynamo.reset()
    module = OfExport()
    torch.testing.assert_close(module(X), X)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(X), X)
    for strict in (True, False):
        torch.testing.assert_close(torch.export.export(module, (X,), strict=strict).module()(X), 3 * X)


def test_the_precision_of_products_is_known_however_it_is_set():
    """torch refuses to tell the setting for all backends where one of them has another."""
    matmul, found = torch.backends.cuda.matmul, []
    try:
        for for_all in ("highest", "high"):
            torch.set_float32_matmul_precision(for_all)
            for precision in ("ieee", "tf32"):
                matmul.fp32_precision = precision
                found += [float_state(), float_state()]
    finally:
        matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")
    assert len(set(found)) == 4
