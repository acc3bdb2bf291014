"""Tensors that are read once more behind a kernel: nothing changes, and the graph's last use of them comes after it."""

import pytest
import torch

from maskloom.attention.kernels.kept_alive import until_backward, until_forward

HELD = {
    "int": torch.tensor([3, 5]), "bool": torch.tensor([[True], [False]]), "nan": torch.tensor([float("nan"), 1.0]),
    "infinity": torch.tensor([float("inf")]),
}  # fmt: skip
BITS = torch.tensor([[-0.0, float("nan"), float("inf")], [1.5, -2.0, 0.0]])


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("keep", [until_forward, until_backward])
def test_values_and_gradients_are_the_same_bit_for_bit(keep, name):
    x = BITS.clone().requires_grad_()
    out = keep(x, [HELD[name], HELD["int"]])
    assert torch.equal(out.view(torch.int32), BITS.view(torch.int32))
    (gradient,) = torch.autograd.grad(out, x, BITS)
    assert torch.equal(gradient.view(torch.int32), BITS.view(torch.int32))


def test_the_last_use_in_a_graph_comes_behind_the_kernel():
    graphs = []

    @torch.compile(backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    def step(x, held):
        return until_forward(torch.sin(x * held.sum()), [held])

    with torch.no_grad():
        x = torch.randn(2, 3)
        torch.testing.assert_close(step(x, HELD["int"]), torch.sin(x * 8))
    (graph,) = graphs
    nodes = list(graph.graph.nodes)
    kernel = next(at for at, node in enumerate(nodes) if node.target is torch.sin)
    (held,) = (node for node in nodes if node.op == "placeholder" and "held" in node.name)
    assert any(nodes.index(user) > kernel for user in held.users)
