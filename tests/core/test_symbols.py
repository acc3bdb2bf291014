"""Masks made inside a compiled function from an int that changes: few graphs, and what a kernel holds are tensors."""

import ast
import pickle
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import maskloom as loom
from maskloom.core.symbols import ceil_div, is_one_of
from maskloom.core.values import numbers_as_tensors
from maskloom.masks.patterns.blockwise import chunked, fixed, strided
from maskloom.masks.patterns.conversations import shared_prefix, turns
from maskloom.masks.patterns.diffusion import block_diffusion
from maskloom.masks.patterns.from_tables import from_blocks, top_k_blocks
from maskloom.masks.patterns.generation import beams, tree
from maskloom.masks.patterns.grids.grid import axial, shifted_windows
from maskloom.masks.patterns.grids.layout import grid_tiles, morton, tiled
from maskloom.masks.patterns.grids.video import spatial, temporal
from maskloom.masks.patterns.grids.windows import grid_window, neighbourhood
from maskloom.masks.patterns.multimodal import flamingo
from maskloom.masks.patterns.packed.segments import document_prefix, documents
from maskloom.masks.patterns.packed.within import within
from maskloom.masks.patterns.position import global_tokens, key_range, query_range, random_blocks
from maskloom.masks.patterns.relative import (
    band,
    causal_lower_right,
    dilated,
    window_both_ways,
    window_counting_itself,
    window_reaching_back,
)
from maskloom.masks.patterns.transforms import per_head, repeat_heads, transposed

B, H, L, D = 2, 2, 19, 8
PACKED = documents(offsets=torch.tensor([0, 3, L]), length=L)

KINDS = {
    "relative": lambda n: [
        loom.window(back=n),
        loom.window(back=2, ahead=n),
        window_counting_itself(n),
        window_reaching_back(n),
        window_both_ways(n),
        band(-n, n + 2),
        dilated(back=3 * n, ahead=n, step=n),
        causal_lower_right(n, 40),
        loom.causal & loom.window(back=n) & loom.window(back=n + 1, ahead=n),
    ],
    "blockwise": lambda n: [
        strided(n),
        fixed(n + 3, summary=n),
        fixed(n, factor=2),
        chunked(n),
        block_diffusion(n + 3, n),
    ],
    "position": lambda n: [
        loom.prefix(n),
        loom.prefix([n, 3]),
        loom.sinks(n),
        key_range(n, n + 5),
        query_range([1, n], n + 9),
        global_tokens(n),
        global_tokens([n, 3, n + 1]),
        loom.lengths([n, n + 1]),
    ],
    "moved": lambda n: [
        loom.masks.shifted(loom.causal & loom.window(back=n), q_offset=n, kv_offset=n),
        loom.masks.shifted(loom.causal, q_offset=[n, 3]),
        loom.masks.shifted(per_head([loom.causal] * 20), h_offset=n),
        transposed(loom.window(back=n)),
        per_head([loom.window(back=n), loom.causal]),
        repeat_heads(per_head([loom.window(back=n), loom.causal]), 1),
    ],
    "packed": lambda n: [
        documents(offsets=[0, n, n + 3], length=L),
        documents(offsets=torch.tensor([0, 3, 13]), length=n + L),
        document_prefix(PACKED, [n, 2]),
        within(PACKED, loom.window(back=n)),
        shared_prefix(n, [5, 2], length=L),
        turns(offsets=[0, n, n + 3], visible=[[True, False], [True, True]], length=L),
        tree([-1, 0, 0, 1], prefix=n),
        beams([[-1, -1], [1, 1]], prefix=n),
    ],
    "grids": lambda n: [
        neighbourhood((20, n + 1), (3, n)),
        neighbourhood((40,), 3, dilation=n),
        neighbourhood((3, 14), (2, 13), stride=(1, n), causal=(True, False)),
        grid_window((5, n), n, dilation=n),
        axial((n, 3), axis=1),
        shifted_windows((3, n + 5), n + 1, shift=n),
        tiled(neighbourhood((4, 2 * n), (3, 2)), (2, n)),
        grid_tiles((4, 2 * n), (2, n), (1, 2)),
        spatial(n + 2, 3, width=n, prompt=n, sink_frames=n),
        temporal(3, n, width=2, prompt=n),
    ],
    "morton": lambda n: [morton(grid_window((40, n + 1), 3))],
    "tables": lambda n: [
        flamingo([False, True] * 10, tokens_per_media=n),
        from_blocks(torch.tensor([[True, False], [True, True]]), n),
        top_k_blocks(torch.tensor([[0, -1], [0, 1]]), n, key_blocks=n + 1),
    ],
}


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_numbers_make_few_graphs(kind, graphs):
    def tables(_, n):
        return [mask.dense(L, L, batch=B, heads=H, device="cpu") for mask in KINDS[kind](n)]

    compiled = torch.compile(tables, backend="eager", fullgraph=True)
    for n in range(1, 13):
        for found, right in zip(compiled(torch.ones(1), n), tables(None, n), strict=True):
            assert torch.equal(found, right), n
    assert graphs() <= 3


CALLS = {
    "offset": lambda q, n: loom.attend(q, q, q, loom.causal, q_offset=n, score_mod=loom.scores.alibi(H)),
    "heads": lambda q, n: loom.attend(q, q, q, per_head([loom.causal, loom.window(back=1)] * 9), h_offset=n),
    "mask": lambda q, n: loom.attend(q, q, q, loom.window(back=n) & loom.lengths([n, L])),
    "score": lambda q, n: loom.attend(
        q, q, q, score_mod=loom.scores.relative_bias(torch.arange(2.0 * (2 * n + 1)).view(2, -1))
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_attend_with_twelve_numbers(name, graphs):
    query = torch.randn(B, H, L, D)
    compiled = torch.compile(CALLS[name], backend="eager", fullgraph=True)
    for n in range(1, 13):
        torch.testing.assert_close(compiled(query, n), CALLS[name](query, n))
    assert graphs() <= 3


def test_compiled_by_inductor(graphs):
    def attention(query, n):
        return loom.attend(query, query, query, loom.window(back=n) | loom.sinks(n))

    query, compiled = torch.randn(B, H, L, D), torch.compile(attention, fullgraph=True)
    for n in (2, 5, 7):
        torch.testing.assert_close(compiled(query, n), attention(query, n))
    assert graphs() <= 3


def captured_by_kernel(function, *arguments):
    """What the kernel in the graph of a function captures, by type: the graph, traced with sizes and ints dynamic."""
    found = []

    def backend(graph, inputs):
        for node in graph.graph.nodes:
            if "flex_attention" in str(node.target):
                found.extend(type(item.meta["example_value"]).__name__ for item in node.args[-1])
        return graph.forward

    torch.compile(function, backend=backend, fullgraph=True, dynamic=True)(*arguments)
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda n: loom.window(back=n) & loom.sinks(n),
        lambda n: loom.masks.shifted(loom.causal, q_offset=n),
        lambda n: grid_window((n, 3), n, dilation=n),
        lambda n: tiled(neighbourhood((4, 2 * n), (3, 2)), (2, n)),
    ],
)
def test_a_kernel_captures_tensors(make, graphs):
    def attention(query, n):
        mask = numbers_as_tensors(make(n), query.device)
        blocks = create_block_mask(mask, None, None, L, L, device="cpu")
        return flex_attention(query, query, query, block_mask=blocks)

    assert set(captured_by_kernel(attention, torch.randn(B, H, L, D), 3)) == {"FakeTensor"}


def test_outside_a_trace_ints_stay():
    mask = loom.window(back=3) & loom.sinks(2)
    assert numbers_as_tensors(mask, "cpu") is mask


def test_a_mask_that_leaves_a_compiled_function_is_a_value(graphs):
    compiled = torch.compile(lambda n: loom.causal & loom.window(back=n), backend="eager", fullgraph=True)
    for n in (2, 3, 4):
        mask = compiled(n)
        assert mask == pickle.loads(pickle.dumps(mask)) == (loom.causal & loom.window(back=n))
        assert repr(mask) == f"causal & window(back={n}, ahead=0)"
        assert loom.masks.simplify(mask) == loom.window(back=n)


@pytest.mark.parametrize("n", [2, 3])
def test_numbers_are_checked_inside_too(n):
    torch._dynamo.reset()

    @torch.compile(backend="eager", dynamic=True)
    def table(back):
        return loom.window(back=back).dense(5, 5, batch=1, heads=1, device="cpu")

    table(n)
    with pytest.raises(ValueError, match="back is a number of positions, at least 0; got -2"):
        table(-2)


def test_random_blocks_are_made_outside():
    torch._dynamo.reset()
    with pytest.raises(Exception, match="make it outside"):
        torch.compile(
            lambda: random_blocks(block_size=3, blocks=1, length=9, seed=0), backend="eager", fullgraph=True
        )()


def test_a_symbol_is_found_among_numbers():
    torch._dynamo.reset()
    found = torch.compile(
        lambda x: (is_one_of(23, 1, len(x)), is_one_of((23, 3), (5, 5), tuple(x.shape)), is_one_of(len(x), 5, 7)),
        backend="eager", dynamic=True, fullgraph=True,
    )  # fmt: skip
    assert found(torch.zeros(23, 3)) == (True, True, False)


def test_no_size_is_looked_for_among_others():
    """``23 in (1, size)`` is False in a trace where the size is a symbol: `is_one_of` compares."""

    def has_sizes(node):
        constants = [isinstance(element, ast.Constant) for element in node.elts]
        numbers = [isinstance(element, ast.Constant) and type(element.value) is int for element in node.elts]
        return (any(numbers) and not all(constants)) or any(isinstance(element, ast.Tuple) for element in node.elts)

    for file in Path(loom.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
                among = node.comparators[0]
                if isinstance(among, ast.Tuple | ast.List) and has_sizes(among):
                    left = ast.unparse(node.left)
                    assert left.endswith(("ndim", "stride()[-1:]")) or file.name in EAGER, (file, ast.unparse(node))


EAGER = {"zeros_kernel.py", "dense_tables.py"}
"""What no trace comes to: an operator's own code, and the words of an error."""


@pytest.mark.parametrize(("number", "by", "parts"), [(0, 7, 0), (1, 7, 1), (7, 7, 1), (8, 7, 2)])
def test_parts_that_hold_a_number(number, by, parts):
    assert ceil_div(number, by) == parts
