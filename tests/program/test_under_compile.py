"""What is known of a mask_mod while torch.compile traces."""

import pytest
import torch

import maskloom as loom
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import INDICES
from maskloom.program.under_compile import sizes_read
from tests.catalog import EVERY

PADS = torch.zeros(3, 17, dtype=torch.bool)
BIAS = torch.zeros(3, 2, 13, 17, dtype=torch.bool)
FIRST = torch.zeros(3, 5, dtype=torch.int64)


def while_traced(mask_mod):
    torch._dynamo.reset()
    sizes = torch.compile(lambda: sizes_read(mask_mod, "cpu"), backend="eager", fullgraph=True)()
    return {index: set(found) for index, found in sizes.items()}


@pytest.mark.parametrize("name", EVERY)
def test_the_sizes_are_those_that_a_program_shows(name):
    mask = EVERY[name][0]()
    assert while_traced(mask) == dependence_on(mask, "cpu").sizes


@pytest.mark.parametrize(
    ("function", "b", "h", "q_idx", "kv_idx"),
    [
        (lambda b, h, q, k: PADS[b][k] & (q >= k), {3}, set(), set(), {17}),
        (lambda b, h, q, k: BIAS[b, h, q, k], {3}, {2}, {13}, {17}),
        (lambda b, h, q, k: (FIRST[b] <= q).any(), {3}, set(), set(), set()),
        (lambda b, h, q, k: PADS[b, :5].any(), {3}, set(), set(), set()),
        (lambda b, h, q, k: PADS[None, ..., 4][0][b], {3}, set(), set(), set()),
        (lambda b, h, q, k: PADS[:, k][b] | BIAS[0, 1, q][k], {3}, set(), {13}, {17}),
        (lambda b, h, q, k: BIAS[b, ..., k].any() & BIAS[..., q, None, 0][b, h, 0], {3}, {2}, {13}, {17}),
        (lambda b, h, q, k: PADS[FIRST[:2]][:, b % 2, k][0], set(), set(), set(), {17}),
        (lambda b, h, q, k: FIRST[(b + 1) % 3, 0] <= q, set(), set(), set(), set()),
        (torch.nn.attention.flex_attention.and_masks(loom.causal, loom.lengths([1, 2, 3])), {3}, set(), set(), set()),
    ],
)
def test_plain_functions(function, b, h, q_idx, kv_idx):
    assert while_traced(function) == dict(zip(INDICES, (b, h, q_idx, kv_idx), strict=True))


def test_nothing_of_it_stays_in_the_graph():
    kept = []

    def compiler(graph, inputs):
        kept.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def function(x):
        sizes_read(loom.causal & loom.padding(PADS), "cpu")
        return x + 1

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=compiler)
    torch.compile(function, backend=backend, fullgraph=True)(torch.ones(2))
    assert kept == [torch.ops.aten.add.Tensor]
