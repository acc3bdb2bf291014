"""A tensor in place of a mask, in attention: what is made of it once, and kept with it."""

import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F

import maskloom as loom
from maskloom.core import cache
from maskloom.masks import in_place
from maskloom.masks.in_place import Sizes
from tests.evidence import gather

B, H, Q, K, D = 2, 3, 5, 7, 8


def inputs(q_len=Q, kv_len=K):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, length, D, generator=generator) for length in (q_len, kv_len, kv_len)]


def flags(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.6


@pytest.fixture
def made(monkeypatch):
    """The masks that are made of tables."""
    masks = []
    make = in_place.mask_of_table
    monkeypatch.setattr(in_place, "mask_of_table", lambda *args: masks.append(make(*args)) or masks[-1])
    monkeypatch.setattr(cache, "_kept", cache.OwnerCache())
    return masks


@pytest.mark.parametrize("shape", [(Q, K), (B, Q, K), (B, 1, Q, K), (1, H, Q, K), (1, 1, Q, K), (B, 1, 1, K)])
def test_forward_and_backward(shape):
    table = flags(*shape)
    truth = (table[:, None] if table.ndim == 3 else table).expand(B, H, Q, K)
    floats = torch.zeros(shape).masked_fill(~table, -math.inf)
    for mask in (table, floats):
        for backend in ("sdpa", "sliced", "reference"):
            gather(
                lambda *qkv, mask=mask, backend=backend: loom.attend(*qkv, mask, backend=backend),
                *inputs(),
                table=truth,
            ).check()
    torch.testing.assert_close(loom.reference(*inputs(), table)[0], loom.attend(*inputs(), table))
    assert loom.explain(*inputs(), table).backend == "sdpa"


def test_it_is_made_once_and_anew_when_the_tensor_changes(made):
    table = torch.ones(Q, K, dtype=torch.bool)
    everything = loom.attend(*inputs(), table)
    assert torch.equal(loom.attend(*inputs(), table), everything) and len(made) == 1
    table[:, 3:] = False
    first_three = loom.attend(*inputs(), table)
    torch.testing.assert_close(first_three, loom.attend(*inputs(), loom.masks.key_range(0, 3)))
    assert len(made) == 2


def test_views_of_one_tensor_are_one(made):
    """Of more queries than a step of decoding has, for which nothing is made of a table."""
    table, many = flags(B, 1, 29, 13), 23
    for _ in range(3):
        loom.attend(*inputs(many), table[..., :many, :K])
    assert len(made) == 1
    other = loom.attend(*inputs(many), table[..., 1 : many + 1, :K])
    assert len(made) == 2
    expected = F.scaled_dot_product_attention(*inputs(many), table[..., 1 : many + 1, :K]).nan_to_num(0)
    torch.testing.assert_close(other, expected)
    table.fill_(True)
    torch.testing.assert_close(loom.attend(*inputs(many), table[..., :many, :K]), loom.attend(*inputs(many)))


def test_values_of_an_additive_mask_are_read_once(made):
    table = torch.zeros(Q, K).masked_fill(~flags(Q, K), -math.inf)
    for _ in range(3):
        loom.attend(*inputs(), table)
    assert len(made) == 1
    table[0, 0] = 0.5
    with pytest.raises(TypeError, match="score_mod"):
        loom.attend(*inputs(), table)


def test_a_table_that_begins_to_learn_is_refused():
    table = torch.zeros(Q, K)
    loom.attend(*inputs(), table)
    with pytest.raises(TypeError, match="learns"):
        loom.attend(*inputs(), table.requires_grad_())


def test_what_is_kept_goes_with_the_tensor(monkeypatch):
    monkeypatch.setattr(cache, "_kept", cache.OwnerCache())
    table = flags(Q, K)
    loom.attend(*inputs(), table)
    loom.attend(*inputs(kv_len=3), table[:, :3])
    gone = weakref.ref(table)
    del table
    gc.collect()
    assert gone() is None and len(cache._kept) == 0


def test_in_inference_mode():
    with torch.inference_mode():
        table = flags(Q, K)
        out = loom.attend(*inputs(), table)
        table[:, 3:] = False
        assert not torch.equal(loom.attend(*inputs(), table), out)


def test_it_is_of_these_queries_whatever_the_offsets():
    table, bias = flags(B, 1, Q, K), loom.scores.alibi(H)
    moved = loom.scores.shifted_score(bias, q_offset=3)
    torch.testing.assert_close(
        loom.attend(*inputs(), table, score_mod=bias, q_offset=3), loom.attend(*inputs(), table, score_mod=moved)
    )


@pytest.mark.parametrize("shape", [(Q, K), (B, 1, Q, K), (B, 1, 1, K)])
def test_under_a_full_graph_compile(shape):
    compiled = torch.compile(lambda *args: loom.attend(*args), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs(), flags(*shape)), loom.attend(*inputs(), flags(*shape)))


def test_clean_padding_knows_what_a_table_hides_from_all():
    table = flags(B, H, Q, K)
    table[0, :, :, 2], table[1, :, 3] = False, False
    query, key, value = inputs()
    clean = loom.attend(query, key, value, table)
    query[1, :, 3], key[0, :, 2], value[0, :, 2] = math.nan, math.inf, math.nan
    for mask in (
        table,
        loom.masks.from_dense(table),
        loom.masks.from_dense(table) & loom.everything,
        loom.block_mask(table, Q, K),
    ):
        assert torch.equal(loom.attend(query, key, value, mask, clean_padding=True), clean)


def test_as_mask_of_a_buffer():
    module = torch.nn.Module()
    module.register_buffer("table", flags(Q, K))
    sizes = Sizes(B, H, Q, K)
    assert in_place.as_mask_of(module.table, sizes) is in_place.as_mask_of(module.table, sizes)
