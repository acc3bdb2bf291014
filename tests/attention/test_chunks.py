"""Rows of queries at a time: cut anywhere, and never the wrong tensors in the backward."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.chunks import in_chunks
from maskloom.blocks.dense import dense_of, rows_of
from tests.all_masks import ALL_MASKS

B, H, Q, K, D = 3, 2, 13, 17, 5
ROWS = [(0, 3), (3, 7), (10, 3), (0, 13)]


@pytest.mark.parametrize("name", ALL_MASKS)
def test_rows_of_every_mask(name):
    mask = ALL_MASKS[name]()
    table = mask.dense(Q, K)
    for given in (mask, loom.block_mask(mask, Q, K, block_size=(4, 8)), table):
        for first, count in ROWS:
            rows = rows_of(given, first, count, batch=B, heads=H, kv_len=K, device=table.device)
            assert torch.equal(rows.expand(B, H, count, K), table[:, :, first : first + count].expand(B, H, count, K))


def test_tables_that_broadcast_over_queries():
    keys = torch.arange(K) < 5
    for table in (keys, keys[None], keys.expand(B, 1, 1, K)):
        assert rows_of(table, 3, 7, batch=B, heads=H, kv_len=K, device=table.device) is table


@pytest.mark.parametrize("block_size", [(2, 3), (4, 16), 128])
def test_dense_of_some_queries(block_size):
    mask = loom.causal & loom.lengths([5, 0, 13], [7, 3, 17])
    blocks = loom.block_mask(mask, Q, K, block_size=block_size)
    whole = dense_of(blocks, B, H)
    assert torch.equal(whole, mask.dense(Q, K))
    for start in range(Q):
        for stop in range(start + 1, Q + 1):
            assert torch.equal(dense_of(blocks, B, H, queries=slice(start, stop)), whole[:, :, start:stop])
    assert torch.equal(dense_of(blocks, B, H, queries=slice(11, None)), whole[:, :, 11:])


@pytest.mark.parametrize("queries", [slice(3, 3), slice(5, 14), slice(-2, None), slice(0, 4, 2)])
def test_queries_that_are_none(queries):
    with pytest.raises(ValueError, match=r"slice\(start, stop\) with 0 <= start < stop <= 13; got slice"):
        dense_of(loom.block_mask(loom.causal, Q, K), B, H, queries=queries)


def counted(calls):
    def attention(query, key, value, first):
        calls.append((first, query.shape[2]))
        return query.square(), query.sum(-1) + first

    return attention


@pytest.mark.parametrize(
    ("most", "sizes"), [(10**6, [13]), (B * H * K * 5, [5, 5, 3]), (B * H * K * 5 + 1, [5, 5, 3]), (1, [1] * 13)]
)
def test_chunks_have_at_most_so_many_scores(most, sizes):
    calls = []
    query, key = torch.randn(B, H, Q, D), torch.randn(B, H, K, D)
    out, sums = in_chunks(counted(calls), query, key, key, most=most)
    assert [count for _, count in calls] == sizes
    assert [first for first, _ in calls] == [sum(sizes[:place]) for place in range(len(sizes))]
    assert torch.equal(out, query.square())
    assert sums.shape == (B, H, Q)


def test_chunks_are_computed_again_in_the_backward_only():
    calls = []
    query = torch.randn(B, H, Q, D, requires_grad=True)
    out, _ = in_chunks(counted(calls), query, query, query, most=B * H * Q * 7)
    assert len(calls) == 2
    out.sum().backward()
    assert len(calls) == 4
    assert torch.equal(query.grad, 2 * query)
    calls.clear()
    torch.func.grad(lambda q: in_chunks(counted(calls), q, q, q, most=B * H * Q * 7)[0].sum())(query)
    with torch.no_grad():
        in_chunks(counted(calls), query, query, query, most=B * H * Q * 7)
    assert len(calls) == 4


@pytest.mark.parametrize("changed", ["query", "key", "lens", "table", "bias"])
def test_a_tensor_written_to_before_the_backward_is_an_error(monkeypatch, changed):
    monkeypatch.setattr("maskloom.attention.written_out.CHUNK", B * H * K * 3)
    lens = torch.tensor([5, 7, 11])
    blocks = loom.block_mask(loom.lengths(lens), Q, K, block_size=4)
    query, key, bias = torch.randn(B, H, Q, D, requires_grad=True), torch.randn(B, H, K, D), torch.randn(H)
    out, _ = loom.reference(query, key, key, blocks, score_mod=lambda score, b, h, q, k: score + bias[h])
    held = {"query": query, "key": key, "lens": lens, "table": blocks.kv_indices, "bias": bias}
    with torch.no_grad():
        held[changed].add_(0)
    words = "modified .*inplace" if changed in ("query", "key") else "of the mask or score_mod was written to after"
    with pytest.raises(RuntimeError, match=words):
        out.sum().backward()


def test_an_error_in_a_chunk_leaves_nothing_behind():
    def fails(*given):
        raise NameError("undefined")

    query, key, value = torch.randn(B, H, Q, D, requires_grad=True), torch.randn(B, H, K, D), torch.randn(B, H, K, D)
    with pytest.raises(NameError) as kept:  # torch 2.11 leaves its hooks there as long as the error lives
        in_chunks(fails, query, key, value, most=1)
    other = torch.randn(3, requires_grad=True)
    other.exp().sum().backward()
    torch.testing.assert_close(other.grad, other.detach().exp())
    assert str(kept.value) == "undefined"
