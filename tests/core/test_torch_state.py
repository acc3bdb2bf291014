"""What torch is doing around a call: asked in eager mode, and by a function that torch.compile traces."""

import pytest
import torch

from maskloom.core.torch_state import inside_transform, inside_vmap

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
