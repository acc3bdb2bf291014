"""Block masks that are built while torch compiles are those that are built outside, and cost no table of queries and keys."""

import math
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.blocks import index_tables
from maskloom.blocks.grid import Wanted
from maskloom.blocks.index_tables import tables_in_graph
from maskloom.blocks.tile_states import FULL, SKIPPED, tile_states
from maskloom.blocks.traced import _of_ranges, traced
from tests.masks.test_ranges import KNOWN, K, Q

TABLES = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip
OTHERS = {"sinks": loom.causal & (loom.window(back=2) | loom.sinks(3)), "prefix": loom.causal | loom.prefix([2, 11])}


def check_alike(found, expected):
    for name in TABLES:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        assert one is None or (torch.equal(one, other) and one.stride() == other.stride()), name
    assert found.seq_lengths == expected.seq_lengths


@pytest.mark.parametrize(
    ("name", "separate"), [*((name, True) for name in (*KNOWN, *OTHERS)), ("padding", False), ("sinks", False)]
)
def test_tables_are_those_of_outside(name, separate):
    mask = (KNOWN | OTHERS)[name]
    batch = len(mask.dense(Q, K))

    def build(mask, size):
        how = {"BLOCK_SIZE": size, "separate_full_blocks": separate}
        return loom.create_block_mask(mask, batch, 2, Q, K, device="cpu", **how)

    torch._dynamo.reset()
    inside = torch.compile(build, backend="eager", fullgraph=True)
    for size in ((3, 5), 128):
        found = inside(mask, size)
        check_alike(found, build(mask, size))
        assert found.mask_mod == mask


FEWEST = {
    "causal": (loom.causal, (1, 1)),
    "lengths": (loom.causal & loom.lengths([7, 3, 2]), (3, 1)),
    "ids by row": (
        loom.causal & loom.documents(torch.tensor([[0] * 5 + [1] * 8, [0] * 13, [0] * 2 + [1] * 11])),
        (3, 1),
    ),
    "ids for all": (loom.causal & loom.documents([0] * 5 + [1] * 8), (1, 1)),
    "by head": (loom.masks.per_head([loom.causal, loom.window(back=2)]), (1, 2)),
    "both": (loom.masks.per_head([loom.causal, loom.causal | loom.prefix([2, 9, 1])]), (3, 2)),
    "sinks": (loom.causal & (loom.window(back=2) | loom.sinks(3)), (1, 1)),
    "a function": (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, (3, 2)),
}


@pytest.mark.parametrize("name", FEWEST)
def test_as_few_tables_as_the_mask_is_seen_to_need(name):
    mask, sizes = FEWEST[name]
    wanted = Wanted(Q, Q, 3, 2, (4, 3))
    torch._dynamo.reset()
    found = torch.compile(lambda: traced(mask, wanted, "cpu", fewest=True), backend="eager", fullgraph=True)()
    assert found.kv_indices.shape[:2] == found.full_q_indices.shape[:2] == sizes
    expected = loom.block_mask(mask, Q, Q, batch=sizes[0], heads=sizes[1], device="cpu", block_size=(4, 3))
    check_alike(found, expected)


def near(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 9) | (kv_idx < 2)


@pytest.mark.parametrize("name", [*OTHERS, "a function"])
def test_masks_that_do_not_say_what_they_show_in_one_graph_for_all_lengths(name):
    mask = (OTHERS | {"a function": near})[name]
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def build(x):
        return loom.block_mask(mask, len(x), len(x) + 3, batch=2, heads=3, device="cpu", block_size=16)

    torch._dynamo.reset()
    compiled = torch.compile(build, backend=keep, fullgraph=True, dynamic=True)
    for length in (37, 61, 64, 101):
        found, expected = compiled(torch.zeros(length)), build(torch.zeros(length))
        for table in TABLES:
            one, other = getattr(found, table), getattr(expected, table)
            assert torch.equal(one, other.expand_as(one)) and one.is_contiguous()
    assert len(graphs) == 1


def test_as_inductor_compiles_it():
    def build(lens):
        return loom.block_mask(
            loom.causal & loom.lengths(lens), 150, 190, batch=3, heads=1, device="cpu", block_size=16
        )

    torch._dynamo.reset()
    found, lens = torch.compile(build, fullgraph=True), torch.tensor([150, 3, 77])
    check_alike(
        found(lens), loom.block_mask(loom.causal & loom.lengths(lens), 150, 190, batch=3, heads=1, block_size=16)
    )


@given(st.data())
def test_tiles_of_any_ids(data):
    """Full ones are those of the mask. Of ids that rise the others are too; of any, some that show nothing may be among them."""
    rows = st.lists(st.lists(st.integers(-1, 3), min_size=Q, max_size=Q), min_size=2, max_size=2)
    ids = torch.tensor(data.draw(rows))
    rises = data.draw(st.booleans())
    if rises:
        ids = ids.sort(1).values
    mask = loom.documents(ids)
    block = data.draw(st.sampled_from([(4, 3), (3, 1), (1, 2), (1, 1)]))
    tiles, whole, most = _of_ranges(mask, 2, Q, Q, block, "cpu")
    weights = torch.minimum(tiles, most)
    states, some = tile_states(loom.block_mask(mask, Q, Q, block_size=block)), weights > 0
    assert torch.equal(weights == whole, states == FULL)
    assert torch.equal(some, states != SKIPPED) if rises else not ((states != SKIPPED) & ~some).any()


@pytest.mark.parametrize("name", ["causal & lengths", "documents", "padding", "ids", "ids across"])
def test_no_table_of_queries_and_keys_is_made(name):
    largest = []

    def backend(graph, inputs):
        made = [node.meta["example_value"] for node in graph.graph.nodes if "example_value" in node.meta]
        largest.extend(math.prod(value.shape) for value in made if isinstance(value, torch.Tensor))
        return graph

    mask = KNOWN[name]
    batch = len(mask.dense(Q, K))
    torch._dynamo.reset()
    build = torch.compile(
        lambda mask: loom.create_block_mask(mask, batch, 1, Q, K, "cpu", 8), backend=backend, fullgraph=True
    )
    build(mask)
    assert 0 < max(largest) <= batch * 16 * 3  # queries, rounded up to tiles, by tiles of keys


@pytest.mark.parametrize("name", ["causal & lengths", "documents", "padding", "ids", "documents by row", "sinks"])
def test_sizes_that_are_symbols_can_be_split_by_inductor(name):
    """Its Triton code cannot split the elements of tensors whose sizes are written with a minus: CantSplit."""
    from torch.utils._sympy.functions import FloorDiv

    sizes = set()

    def backend(graph, inputs):
        made = [node.meta["example_value"] for node in graph.graph.nodes if "example_value" in node.meta]
        shapes = [value.shape for value in made if isinstance(value, torch.Tensor)]
        sizes.update(size.node.expr for shape in shapes for size in shape if isinstance(size, torch.SymInt))
        return graph

    torch._dynamo.reset()
    mask = (KNOWN | OTHERS)[name]
    batch = len(mask.dense(Q, K))
    build = torch.compile(
        lambda mask, x: loom.create_block_mask(mask, batch, 1, len(x), len(x), "cpu", 8),
        backend=backend, dynamic=True, fullgraph=True,
    )  # fmt: skip
    build(mask, torch.zeros(min(Q, K)))
    divided = [part for size in sizes for part in size.atoms(FloorDiv)]
    assert divided
    assert not [part for part in divided if part.base.could_extract_minus_sign()]


@pytest.mark.parametrize(
    "name", ["causal & lengths", "documents", "padding", "ids", "documents by row", "sinks", "a function"]
)
def test_nothing_is_computed_from_sums_of_tiles(name):
    """Of a kernel with such sums and what follows from them, Inductor (2.11) cannot compare sizes like ``length // 8 + 1``."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.graph)
        return graph

    torch._dynamo.reset()
    mask = (KNOWN | OTHERS | {"a function": near})[name]
    batch = len(loom.as_mask(mask).dense(Q, K, batch=2)) if name == "a function" else len(mask.dense(Q, K))
    build = torch.compile(
        lambda x: loom.create_block_mask(mask, batch, 1, len(x) + 1, len(x) + 1, "cpu", 8),
        backend=backend, dynamic=True, fullgraph=True,
    )  # fmt: skip
    build(torch.zeros(min(Q, K) - 1))
    (tables,) = [
        node
        for node in graphs[0].nodes
        if node.target is torch.ops.maskloom.tile_tables.default or "tile_tables" in str(node.target)
    ]
    tiles = tables.args[0]
    while tiles.target is operator.getitem:  # a dim for the heads
        tiles = tiles.args[0]
    assert tiles.target == "sum"


@pytest.mark.parametrize("separate", [True, False])
def test_the_operator_gives_what_exported_programs_compute(separate, monkeypatch):
    tiles = torch.tensor([0, 1, 8, 9], dtype=torch.int32)[torch.randint(4, (2, 1, 5, 7))]
    most = torch.tensor([0, 1, 18], dtype=torch.int32)[torch.randint(3, (1, 1, 5, 7))]
    by_operator = tables_in_graph(tiles, 9, most, 2, 3, separate_full_blocks=separate)
    monkeypatch.setattr(index_tables, "is_exporting", lambda: True)
    by_graph = tables_in_graph(tiles, 9, most, 2, 3, separate_full_blocks=separate)
    assert [*by_operator] == [*by_graph] == [*TABLES]
    for table, other in zip(by_operator.values(), by_graph.values(), strict=True):
        assert (table is None) == (other is None)
        assert table is None or (torch.equal(table, other) and table.stride() == other.stride())
    for limit in (None, most):
        torch.library.opcheck(torch.ops.maskloom.tile_tables, (tiles, 9, limit, 2, 3, separate))
