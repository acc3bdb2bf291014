"""torch's attention with as little of the mask as it needs: right on each way, and the way that is meant."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, noop_mask
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.attention import tables
from maskloom.attention.backends import sdpa as module
from maskloom.attention.backends.sdpa import sdpa
from maskloom.attention.tables import visibility
from maskloom.blocks.dense import dense_of
from maskloom.core.cache import OwnerCache
from tests.all_masks import ALL_MASKS
from tests.evidence import gather
from tests.memory import peak_bytes

B, H, HKV, Q, K, D, E = 3, 2, 1, 13, 17, 8, 5
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def inputs(*, dtype=torch.float32, q_len=Q, kv_len=K, heads=H, kv_heads=HKV, value_dim=E):
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, heads, q_len, D), (B, kv_heads, kv_len, D), (B, kv_heads, kv_len, value_dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.fixture
def given(monkeypatch):
    """What torch's attention is given, call by call: (is_causal, the table's shape or None)."""
    calls = []
    torchs = F.scaled_dot_product_attention

    def watched(query, key, value, *, attn_mask, is_causal, **rest):
        calls.append((is_causal, None if attn_mask is None else tuple(attn_mask.shape)))
        return torchs(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return calls


@pytest.fixture
def always_in_chunks(monkeypatch):
    monkeypatch.setattr(tables, "KEPT_BYTES", 0)
    monkeypatch.setattr(module, "CHUNK", B * H * K * 5)
    monkeypatch.setattr("maskloom.core.cache._kept", OwnerCache())


def test_everything_needs_no_table(given):
    blocks = [loom.block_mask(mask, Q, K, block_size=(4, 8)) for mask in (loom.everything, noop_mask)]
    for mask in (None, loom.everything, noop_mask, *blocks):
        sdpa(*inputs(), mask)
    full = loom.block_mask(loom.window(back=30, ahead=30), 8, 16, block_size=(4, 8))  # every tile full
    sdpa(*inputs(q_len=8, kv_len=16), full)
    assert given == [(False, None)] * 6


def with_gradients(attention, tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attention(*leaves)
    return out, *torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.parametrize("value_dim", [D, E])  # with a value dim of its own, torch takes another way
@pytest.mark.parametrize(("q_len", "kv_len"), [(13, 13), (13, 17), (17, 13), (1, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exactly_causal(given, dtype, q_len, kv_len, value_dim):
    tensors = inputs(dtype=dtype, q_len=q_len, kv_len=kv_len, value_dim=value_dim)
    table = loom.causal.dense(q_len, kv_len)
    blocks = loom.block_mask(loom.causal, q_len, kv_len, block_size=(4, 8))
    torchs = torch_create_block_mask(loom.causal, B, H, q_len, kv_len, device="cpu", BLOCK_SIZE=(2, 3))
    found = [
        with_gradients(lambda *qkv, mask=mask: sdpa(*qkv, mask), tensors) for mask in (loom.causal, blocks, torchs)
    ]
    assert given == [(True, None)] * 3
    expected = with_gradients(
        lambda *qkv: F.scaled_dot_product_attention(*qkv, attn_mask=table, is_causal=False, enable_gqa=True), tensors
    )
    close = 4 * torch.finfo(dtype).eps
    for ours in found:
        torch.testing.assert_close(ours, expected, rtol=close, atol=close)
    if dtype == torch.float64:
        gather(lambda *qkv: sdpa(*qkv, loom.causal), *tensors, table=table).check()


def with_some_tables(blocks, *, partial=True, full=True):
    """A BlockMask with only some of another's tables."""
    none = torch.zeros_like(blocks.kv_num_blocks)
    return BlockMask.from_kv_blocks(
        blocks.kv_num_blocks if partial else none, blocks.kv_indices,
        blocks.full_kv_num_blocks if full else none, blocks.full_kv_indices,
        BLOCK_SIZE=blocks.BLOCK_SIZE, mask_mod=blocks.mask_mod, seq_lengths=blocks.seq_lengths,
    )  # fmt: skip


def with_mask(blocks, mask):
    return BlockMask.from_kv_blocks(
        blocks.kv_num_blocks, blocks.kv_indices, blocks.full_kv_num_blocks, blocks.full_kv_indices,
        BLOCK_SIZE=blocks.BLOCK_SIZE, mask_mod=mask, seq_lengths=blocks.seq_lengths,
    )  # fmt: skip


CAUSAL = loom.block_mask(loom.causal, Q, K, block_size=(4, 8))
NOT_CAUSAL = {
    "full tiles left out": lambda: with_some_tables(CAUSAL, full=False),
    "partial tiles left out": lambda: with_some_tables(CAUSAL, partial=False),
    "full where causal is not": lambda: with_mask(
        loom.block_mask(loom.prefix(8) | loom.causal, Q, K, block_size=(4, 8)), loom.causal
    ),
    "tables of a window": lambda: with_mask(loom.block_mask(loom.window(back=2), Q, K, block_size=(4, 8)), loom.causal),
    "an all-True mask_mod": lambda: with_mask(CAUSAL, noop_mask),
    "one row of three": lambda: with_mask(
        loom.block_mask(loom.causal & loom.lengths([13, 0, 5]), Q, K, block_size=(4, 8)), loom.causal
    ),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_mask_mod_alone_is_not_the_mask(name):
    blocks = NOT_CAUSAL[name]()
    assert visibility(blocks) == "some"
    gather(lambda *qkv: sdpa(*qkv, blocks), *inputs(), table=dense_of(blocks, B, H)).check()


def test_partial_tiles_in_place_of_full_and_skipped_ones_are_still_causal():
    one_tile = torch_create_block_mask(noop_mask, None, None, Q, K, device="cpu", BLOCK_SIZE=(16, 32))
    assert visibility(with_mask(one_tile, loom.causal)) == "causal"


def test_tables_are_looked_at_once_and_anew_when_they_change(monkeypatch):
    looks = []
    tile_states = tables.tile_states
    monkeypatch.setattr(tables, "tile_states", lambda blocks: looks.append(blocks) or tile_states(blocks))
    blocks = loom.block_mask(loom.causal, Q, K, block_size=(4, 8))
    for _ in range(3):
        sdpa(*inputs(), blocks)
    assert len(looks) == 1
    blocks.full_kv_num_blocks.zero_()
    gather(lambda *qkv: sdpa(*qkv, blocks), *inputs(), table=dense_of(blocks, B, H)).check()
    blocks.mask_mod = loom.everything
    gather(lambda *qkv: sdpa(*qkv, blocks), *inputs(), table=dense_of(blocks, B, H)).check()


@pytest.mark.parametrize("name", ALL_MASKS)
def test_every_mask_in_chunks(always_in_chunks, given, name):
    mask = ALL_MASKS[name]()
    table = mask.dense(Q, K)
    for form in (mask, loom.block_mask(mask, Q, K, block_size=(4, 8))):
        gather(lambda *qkv, form=form: sdpa(*qkv, form), *inputs(), table=table).check()
    if name not in ("everything", "causal"):
        forward = [(5, K), (5, K), (3, K)]
        assert [shape[-2:] for _, shape in given] == [*forward, *reversed(forward)] * 2


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("value_dim", [D, E])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_sees_nothing_gives_zero(request, dtype, kv_heads, value_dim, in_chunks):
    if in_chunks:
        request.getfixturevalue("always_in_chunks")
    tensors = inputs(dtype=dtype, kv_heads=kv_heads, value_dim=value_dim)
    mask = loom.lengths([5, 0, 13], [7, 3, 17])
    gather(lambda *qkv: sdpa(*qkv, mask), *tensors, table=mask.dense(Q, K)).check()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = sdpa(*leaves, mask)
    out.sum().backward()
    assert not out[1].any()
    assert not out[0, :, 5:].any()
    assert all(not leaf.grad[1].any() and leaf.grad.isfinite().all() for leaf in leaves)
    assert not leaves[0].grad[0, :, 5:].any()


def sliced(tensor):
    """The same values, every second of a larger tensor's."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


LAYOUTS = {
    "heads last": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "length last": lambda tensor: tensor.mT.contiguous().mT,
    "every second": sliced,
    "expanded batch": lambda tensor: tensor[:1].expand_as(tensor),
    "expanded heads": lambda tensor: tensor[:, :1].expand_as(tensor),
    "expanded length": lambda tensor: tensor[:, :, :1].expand_as(tensor),
}


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", [None, loom.causal, loom.window(back=3) & loom.lengths([5, 0, 13])], ids=str)
def test_layouts(request, layout, mask, in_chunks):
    if in_chunks:
        request.getfixturevalue("always_in_chunks")
    made, table = LAYOUTS[layout], None if mask is None else mask.dense(Q, K)
    for value_dim in (D, E):
        tensors = inputs(dtype=torch.float64, kv_heads=H, value_dim=value_dim)
        found = with_gradients(lambda *qkv: sdpa(*map(made, qkv), mask), tensors)
        expected = with_gradients(lambda *qkv: loom.reference(*map(made, qkv), table)[0], tensors)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_table_above_the_bound_is_never_kept_nor_whole(monkeypatch):
    length = 1024
    mask = loom.window(back=100) & loom.lengths([1000])
    query = torch.randn(1, 2, length, D, requires_grad=True)

    def train():
        torch.autograd.grad(sdpa(query, query, query, mask).square().sum(), query)

    whole = length**2
    monkeypatch.setattr(tables, "KEPT_BYTES", whole - 1)
    monkeypatch.setattr(module, "CHUNK", 2 * length * 16)
    kept = OwnerCache()
    monkeypatch.setattr("maskloom.core.cache._kept", kept)
    assert peak_bytes(train) < whole
    assert list(kept.results(mask).values()) == [None]
    monkeypatch.setattr(tables, "KEPT_BYTES", whole)
    monkeypatch.setattr("maskloom.core.cache._kept", OwnerCache())
    assert tables.kept_table(query, query, mask).numel() == whole


def test_the_bound_counts_the_rows_of_the_tables(monkeypatch):
    monkeypatch.setattr("maskloom.core.cache._kept", OwnerCache())
    monkeypatch.setattr(tables, "KEPT_BYTES", B * Q * K - 1)
    query, key, _ = inputs()
    assert tables.kept_table(query, key, loom.window(back=2)) is not None
    assert tables.kept_table(query, key, loom.lengths([5, 0, 13])) is None
    assert tables.kept_table(query, key, loom.block_mask(loom.lengths([5, 0, 13]), Q, K)) is None
    assert tables.kept_table(query, key, loom.block_mask(loom.window(back=2), Q, K, batch=B)) is None
