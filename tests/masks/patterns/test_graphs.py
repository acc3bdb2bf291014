"""Masks of graphs: the table of all pairs as oracle, laws and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.masks.patterns import graphs
from maskloom.testing import check_mask
from tests.blocks.random_masks import differing
from tests.catalog.packed import MASKS, of_pairs, of_rows

GRAPHS = [name for name in MASKS if "edges" in name]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_law(name):
    factory, q_len, kv_len = MASKS[name]
    check_mask(factory(), q_len=q_len, kv_len=kv_len)


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 1000),
)
def test_edges_are_those_of_the_table(sizes, density, seed):
    generator = torch.Generator().manual_seed(seed)
    tables = torch.rand(sizes, generator=generator) < density
    batch, q_len, kv_len = sizes
    q_idx, kv_idx = of_pairs(tables[0])
    twice = torch.randperm(2 * len(q_idx), generator=generator)
    first = tables[0][None, None]
    for mask in (
        loom.masks.from_edges(q_idx, kv_idx),
        loom.masks.from_edges(q_idx.repeat(2)[twice], kv_idx.repeat(2)[twice], q_len=q_len + 3, kv_len=kv_len + 2),
        loom.masks.from_edges(tables[0].to_sparse()),
        loom.masks.from_edges(tables[0].float().to_sparse_csr()),
    ):
        assert torch.equal(mask.dense(q_len, kv_len), first)
        hidden = known_padding(mask, kv_len)
        assert torch.equal(hidden[0], ~tables[0].any(0))
        assert torch.equal(known_hidden_queries(mask, q_len)[0], ~tables[0].any(1))
    by_row = loom.masks.from_edges(*of_rows(tables))
    assert torch.equal(by_row.dense(q_len, kv_len, batch=batch), tables[:, None])
    assert torch.equal(known_padding(by_row, kv_len), ~tables.any(1))
    assert torch.equal(loom.masks.from_edges(tables.to_sparse()).dense(q_len, kv_len, batch=batch), tables[:, None])


def test_blocks_without_edges_are_skipped_unseen(monkeypatch):
    monkeypatch.setattr(graphs, "BLOCK", 4)
    table = torch.zeros(16, 16, dtype=torch.bool)
    table[:4, 8:12], table[9, 3] = True, True
    mask = loom.masks.from_edges(*of_pairs(table))
    assert (
        differing(
            loom.create_block_mask(mask, None, None, 16, 16, "cpu", 4),
            loom.create_block_mask(loom.masks.from_dense(table), None, None, 16, 16, "cpu", 4),
        )
        == []
    )
    decided = loom.blocks.explain_block_mask(mask, 16, 16, device="cpu", block_size=4)
    assert decided.share("intervals") == 100 * 14 / 16


def test_positions_behind_the_last_edge_see_nothing():
    mask = loom.masks.from_edges([0, 2], [3, 1])
    assert mask.dense(5, 7)[0, 0].nonzero().tolist() == [[0, 3], [2, 1]]
    assert loom.masks.shifted(mask, q_offset=-1, kv_offset=-2).dense(5, 7)[0, 0].nonzero().tolist() == [[1, 5], [3, 3]]


def test_entries_of_zero_are_no_edges():
    matrix = torch.sparse_coo_tensor([[0, 1, 1, 1], [2, 0, 1, 1]], [1.0, 0.0, 2.0, -2.0], (3, 3))
    assert loom.masks.from_edges(matrix).dense(3, 3)[0, 0].nonzero().tolist() == [[0, 2]]


def test_what_was_given_may_be_written_to():
    q_idx, kv_idx = torch.tensor([0, 1]), torch.tensor([1, 2])
    mask = loom.masks.from_edges(q_idx, kv_idx)
    table = mask.dense(3, 3)
    q_idx.zero_(), kv_idx.zero_()
    assert torch.equal(mask.dense(3, 3), table)


def test_attention_over_a_graph():
    torch.manual_seed(0)
    query = torch.randn(1, 2, 13, 8)
    table = torch.rand(13, 13) < 0.3
    mask = loom.masks.from_edges(*of_pairs(table)) | loom.window(back=0)
    torch.testing.assert_close(
        loom.attend(query, query, query, mask), loom.attend(query, query, query, table | torch.eye(13).bool())
    )


def test_clean_padding_knows_nodes_without_edges():
    query = torch.randn(1, 2, 5, 8)
    mask = loom.masks.from_edges([0, 1, 2], [0, 1, 1])
    clean = loom.attend(query, query, query, mask)
    query[:, :, 3:] = torch.nan
    assert torch.equal(loom.attend(query, query, query, mask, clean_padding=True), clean)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: loom.masks.from_edges([0, 1]),
            TypeError,
            "takes q_idx and kv_idx, or a sparse tensor alone; got list alone",
        ),
        (lambda: loom.masks.from_edges(torch.ones(3, 5)), TypeError, r"got Tensor float32\[3, 5\] alone"),
        (lambda: loom.masks.from_edges([0, 1], [1]), ValueError, r"one shape, .* got \(2,\) and \(1,\)"),
        (lambda: loom.masks.from_edges([0, -1], [1, -1]), ValueError, r"from 0 on .*; got \(-1, -1\)"),
        (lambda: loom.masks.from_edges([[0, -1]], [[1, 2]]), ValueError, r"from 0 on .*; got \(-1, 2\)"),
        (lambda: loom.masks.from_edges([0.5], [1]), TypeError, "q_idx are integers; got torch.float32"),
        (lambda: loom.masks.from_edges([0, 5], [1, 2], q_len=3), ValueError, "q_len is 3, and an edge has position 5"),
        (
            lambda: loom.masks.from_edges([0, 5], [1, 2], kv_len=0),
            ValueError,
            "kv_len is a number of positions, at least 1; got 0",
        ),
        (
            lambda: loom.masks.from_edges(torch.zeros(2, 3, 5, 7).to_sparse()),
            ValueError,
            r"shape \(Q, K\) or \(B, Q, K\)",
        ),
        (lambda: loom.masks.from_dense(torch.eye(3).to_sparse()), TypeError, "sparse tensor; .*from_edges"),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
