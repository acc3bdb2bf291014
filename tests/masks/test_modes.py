"""What torch is doing around a call: asked in eager mode, and by a function that torch.compile traces."""

import pytest
import torch

from maskloom.masks.modes import inside_transform, inside_vmap

X = torch.ones(3)


def told(x):
    """x multiplied by 2 inside a transform, and by 5 inside a vmap."""
    return x * (2 if inside_transform() else 1) * (5 if inside_vmap() else 1)


FUNCTIONS = {
    "alone": (told, 1),
    "vmap": (torch.vmap(told), 10),
    "grad": (torch.func.grad(lambda x: told(x).sum()), 2),
    "grad of vmap": (torch.func.grad(lambda x: torch.vmap(told)(x).sum()), 10),
    "jvp": (lambda x: torch.func.jvp(told, (x,), (x,))[1], 2),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_are_seen(name, compiled):
    function, factor = FUNCTIONS[name]
    torch._dynamo.reset()
    if compiled:
        function = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(function(X), factor * X)
