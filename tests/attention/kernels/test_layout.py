"""Where queries, keys and values are parts of one projection, the compiler knows that they can be read fast."""

import pytest
import torch
from torch._inductor.utils import tensor_is_aligned

import maskloom as loom
from maskloom.attention.backends import compiled
from maskloom.attention.kernels import layout
from maskloom.attention.reference import reference
from maskloom.core.cache import LRU
from tests.attention.backends.test_compiled import tracing  # noqa: F401 - a fixture

B, H, D = 3, 2, 16


@pytest.fixture
def graphs(tracing, monkeypatch):  # noqa: F811
    """The graphs that were traced; they are told how tensors lie on the CPU too."""
    monkeypatch.setattr(layout, "_known", LRU(256))
    monkeypatch.setattr(layout, "_DEVICES", ("cpu",))
    return tracing


def parts(length, width=3 * H * D, batch=B):
    """Queries, keys and values that are parts of the outputs of one projection."""
    outputs = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length))
    return [part.unflatten(-1, (H, D)).transpose(1, 2) for part in outputs.split(H * D, -1)[:3]]


def attend(query, key, value):
    length = query.shape[2]
    blocks = loom.block_mask(loom.causal, length, length, block_size=16)
    with torch.no_grad():
        out, _ = compiled.fused_attention(
            query, key, value, blocks, score_mod=None, scale=None, wants_lse=False, kernel_options=None
        )
    expected, _ = reference(query.double(), key.double(), value.double(), loom.causal.dense(length, length))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


def inputs_of(graph):
    values = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
    return [
        value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 4
    ]


def steps_in(graph):
    """The step between tokens of queries, keys and values, as text: a number, or a symbol where it is dynamic."""
    return [str(value.stride(2)) for value in inputs_of(graph)]


def aligned_in(graph):
    """Whether torch's compiler knows that they begin where words of 16 bytes may be read."""
    return [tensor_is_aligned(value) for value in inputs_of(graph)]


def test_the_step_of_one_projection_is_a_number(graphs):
    for length in (70, 85, 100):
        attend(*parts(length))
    assert len(graphs) == compiled.compiled_kinds() == 1
    assert steps_in(graphs[0]) == [str(3 * H * D)] * 3
    assert aligned_in(graphs[0]) == [True] * 3


def test_a_view_that_begins_elsewhere_has_a_graph_that_says_so(graphs):
    outputs = torch.randn(B, 70, 3 * H * D + 16)
    for first in (1, 2, 7, 1):
        query, key = (outputs[..., at : at + H * D].unflatten(-1, (H, D)).transpose(1, 2) for at in (first, H * D))
        attend(query, key, key)
    assert len(graphs) == compiled.compiled_kinds() == 1
    assert sorted(aligned_in(graphs[0])) == [False, True]


def in_heads(tensor):
    return tensor.unflatten(-1, (H, D)).transpose(1, 2)


def without_first(cut):
    """Of a projection to keys, values and queries, in that order, without its first tokens."""
    key, value, query = map(in_heads, torch.randn(B, 71, 3 * H * D)[:, cut:].split(H * D, -1))
    return query, key, value


def beside_a_gate(cut):
    """Queries beside their gate, keys beside values, without their first tokens."""
    query = torch.randn(B, 71 - cut, 2 * H * D)[..., : H * D]
    key, value = map(in_heads, torch.randn(B, 71, 2 * H * D)[:, cut:].chunk(2, -1))
    return in_heads(query), key, value


def beside_a_cache(cut):
    """Queries of a projection, keys and values from the middle of a cache."""
    query = torch.randn(B, 70, 3 * H * D)[..., : H * D]
    key, value = (torch.randn(B, H, 96, D)[:, :, 3 * H + cut - 1 :][:, :, :70] for _ in range(2))
    return in_heads(query), key, value


@pytest.mark.parametrize("make", [without_first, beside_a_gate, beside_a_cache])
@pytest.mark.parametrize("cuts", [(1, 2), (2, 1)])
def test_a_step_may_be_where_another_tensor_begins(graphs, make, cuts):
    """torch takes two numbers that are equal for one: of a constant step Dynamo could not ask whether it is a multiple."""
    for cut in cuts:
        attend(*make(cut))
    for graph in graphs:
        assert any(step.isdigit() for step in steps_in(graph)) and all(aligned_in(graph))


def test_a_cache_that_is_cut_is_one_kind(graphs):
    for size in (96, 112, 160, 200, 224):
        for length in (70, 85):
            attend(*(torch.randn(B, H, size, D)[:, :, :length] for _ in range(3)))
    assert len(graphs) == compiled.compiled_kinds() == 1


def test_steps_that_follow_from_sizes_are_left_alone(graphs):
    for length in (70, 85):
        attend(*(part.contiguous() for part in parts(length)))
    assert len(graphs) == 1
    attend(*(part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts(100)))
    assert compiled.compiled_kinds() == 1


def test_each_width_has_a_function_and_few_have_one(graphs):
    widths = [2 * H * D + 16 * more for more in range(2, 9)]
    for width in widths:
        outputs = torch.randn(B, 70, width)
        query, key = (outputs[..., at : at + H * D].unflatten(-1, (H, D)).transpose(1, 2) for at in (0, H * D))
        attend(query, key, key.clone(memory_format=torch.contiguous_format))
    assert compiled.compiled_kinds() == layout._MOST + 1  # the others share one
    assert steps_in(graphs[0])[0] == str(widths[0]) and not steps_in(graphs[-1])[0].isdigit()


def in_many_ways(count):
    """Queries, keys and values of one shape: each cut out of a memory of its own, whose dimensions lie in some order."""
    generator = torch.Generator().manual_seed(0)

    def one():
        order = torch.randperm(3, generator=generator).tolist()
        more = torch.randint(0, 2, (4,), generator=generator).tolist()
        sizes = [B, H, 70]
        memory = torch.randn(*(sizes[dim] + more[dim] for dim in order), D + more[3], generator=generator)
        back = sorted(range(3), key=order.__getitem__)
        return memory.permute(*back, 3)[:B, :H, :70, :D]

    return [[one() for _ in range(3)] for _ in range(count)]


@torch._dynamo.config.patch(recompile_limit=2)
def test_more_ways_to_lie_than_one_function_has_graphs(graphs):
    for _ in range(2):
        for tensors in in_many_ways(12):
            attend(*tensors)
    assert len(graphs) == 12


def test_other_ways_to_lie_share_a_plan(graphs):
    """A plan knows no layout: what it runs is found by them."""
    query, key, value = parts(64)
    mask = loom.causal & loom.lengths([64, 20, 33])
    for _ in range(3):
        for form in (list, lambda tensors: [tensor.contiguous() for tensor in tensors]):
            tensors = form((query, key, value))
            kinds = compiled.prepared_attention(
                *tensors, loom.block_mask(mask, 64, 64), score_mod=None, scale=None, wants_lse=False, options={}
            ).with_blocks(loom.block_mask(mask, 64, 64))
            for given in (tensors, (query, key, value), [tensor.contiguous() for tensor in tensors]):
                out, _ = kinds(*given, None)
                expected, _ = reference(query, key, value, mask.dense(64, 64))
                torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert compiled.compiled_kinds() == 2


@pytest.mark.parametrize(
    ("tensor", "step"),
    [
        (torch.empty(3, 2, 40, 16), None),
        (torch.empty(3, 40, 2, 16).transpose(1, 2), None),
        (torch.empty(40, 3, 2, 16).permute(1, 2, 0, 3), None),
        (torch.empty(3, 40, 96)[..., 32:64].unflatten(-1, (2, 16)).transpose(1, 2), 96),
        (torch.empty(3, 40, 90)[..., 32:64].unflatten(-1, (2, 16)).transpose(1, 2), None),
        (torch.empty(3, 2, 64, 16)[:, :, :40], None),
        (torch.empty(3, 1, 96)[..., :32].unflatten(-1, (2, 16)).transpose(1, 2), None),
        (torch.empty(3, 2, 16, 64).mT, None),
    ],
    ids=["heads apart", "tokens apart", "tokens first", "one projection", "odd", "a cache", "one token", "turned"],
)
def test_which_steps_are_constants(tensor, step):
    assert layout._own_step(tensor) == step
