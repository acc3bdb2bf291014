import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.blocks.dense import dense_of
from maskloom.blocks.lifecycle import BlockMaskCache, pin_memory, to_device, updatable, update_
from maskloom.core import captures
from maskloom.masks.dense import dense
from maskloom.masks.patterns.shift import shifted
from tests.blocks.random_masks import TABLES, differing

PADS = torch.rand(3, 70, generator=torch.Generator().manual_seed(0)) < 0.3


MASK = loom.causal & loom.padding(PADS)


def _blocks(mask=MASK):
    return loom.block_mask(mask, 70, 70, block_size=16, device="cpu")


def test_to_device_moves_tables_and_what_the_mask_holds():
    moved = to_device(_blocks(), "meta")
    assert {getattr(moved, name).device.type for name in TABLES} == {"meta"}
    assert {tensor.device.type for tensor in captures.tensors(moved.mask_mod)} == {"meta"}
    assert moved.seq_lengths == (70, 70) and moved.BLOCK_SIZE == (16, 16)


def test_to_device_leaves_the_original():
    blocks = _blocks()
    to_device(blocks, "meta")
    assert blocks.kv_indices.device.type == "cpu" and captures.tensors(blocks.mask_mod)[0] is PADS


def test_pinning_reaches_tables_and_what_the_mask_holds(monkeypatch):
    pinned = {}  # by address; the CPU has no pinned memory of its own
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.setdefault(tensor.data_ptr(), tensor.clone()))
    blocks = _blocks()
    copy = pin_memory(blocks)
    assert all(getattr(copy, name) is pinned[getattr(blocks, name).data_ptr()] for name in TABLES)
    assert captures.tensors(copy.mask_mod)[0] is pinned[PADS.data_ptr()]
    assert differing(blocks, copy) == [] and copy.mask_mod == blocks.mask_mod


def test_copies_wait_unless_told_otherwise(monkeypatch):
    blocks, asked = _blocks(), []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: asked.append(non_blocking) or tensor)
    to_device(blocks, "cpu")
    waited = len(asked)
    to_device(blocks, "cpu", non_blocking=True)
    assert asked == [False] * waited + [True] * waited and waited == len(TABLES) + 1


@pytest.mark.parametrize("mask", [MASK, shifted(loom.window(back=9), q_offset=torch.tensor(3))])
def test_pickle_keeps_tables_and_mask(mask):
    blocks = _blocks(mask)
    again = pickle.loads(pickle.dumps(blocks))
    assert differing(blocks, again) == [] and again.mask_mod == mask


class _Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, row):
        return _blocks(loom.causal & loom.padding(PADS[row : row + 1]))


def _as_it_is(item):
    return item


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_block_masks_come_out_of_data_loader_workers(start):
    loader = torch.utils.data.DataLoader(
        _Rows(), batch_size=None, num_workers=1, multiprocessing_context=start, collate_fn=_as_it_is
    )
    for row, blocks in enumerate(loader):
        assert differing(blocks, _Rows()[row]) == [] and blocks.mask_mod == _Rows()[row].mask_mod


LENS = torch.tensor([65, 3, 40])


def closure(lens):
    return lambda b, h, q_idx, kv_idx: (kv_idx < lens[b]) & (q_idx < 60)


UPDATES = {
    "padding": (MASK, loom.causal & loom.padding(~PADS)),
    "simplified": (loom.causal & loom.lengths(LENS), loom.causal & loom.lengths(LENS.flip(0))),
    "documents": (
        loom.causal & loom.documents(offsets=[0, 30, 70]), loom.causal & loom.documents(offsets=[0, 9, 70])
    ),
    "a function": (closure(LENS), closure(LENS.flip(0))),
    "an offset": tuple(shifted(loom.window(back=9), q_offset=torch.tensor(step)) for step in (3, 20)),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_update_writes_into_the_same_memory(name):
    before, after = UPDATES[name]
    given = [tensor.clone() for tensor in captures.tensors(before)]
    blocks = updatable(loom.block_mask(before, 70, 70, block_size=16, device="cpu"))
    mask_mod, memory = blocks.mask_mod, {name: getattr(blocks, name).data_ptr() for name in TABLES}
    assert update_(blocks, after) is blocks and blocks.mask_mod is mask_mod
    assert {name: getattr(blocks, name).data_ptr() for name in TABLES} == memory
    expected = loom.block_mask(after, 70, 70, block_size=16, device="cpu", exact=False)
    assert differing(blocks, expected) == []
    # what a captured graph reads: the memory that mask_mod had
    table = dense(mask_mod, 70, 70, batch=blocks.kv_indices.shape[0])
    assert torch.equal(table, dense(after, 70, 70, batch=blocks.kv_indices.shape[0]))
    assert all(map(torch.equal, captures.tensors(before), given)), "the user's tensors stay"
    update_(blocks, before)
    assert torch.equal(dense_of(blocks, 3, 1).expand(3, -1, -1, -1), dense(before, 70, 70, batch=3))


def test_tensors_that_are_shared_stay_shared():
    blocks = updatable(loom.block_mask(loom.lengths(LENS), 70, 70, block_size=16))
    update_(blocks, loom.lengths(LENS.flip(0)))
    assert blocks.mask_mod.q_lens is blocks.mask_mod.kv_lens and blocks.mask_mod == loom.lengths(LENS.flip(0))


def test_update_follows_writes_into_the_users_own_tensors():
    lens = LENS.clone()
    mask = loom.causal & loom.lengths(lens)
    blocks = loom.block_mask(mask, 70, 70, block_size=16)
    lens.copy_(LENS.flip(0))
    update_(blocks, mask)  # nothing but tables to write
    assert differing(blocks, loom.block_mask(mask, 70, 70, block_size=16, exact=False)) == []


def unchanged(blocks, update, words):
    before = pickle.dumps([blocks, *captures.tensors(blocks.mask_mod)])
    with pytest.raises(ValueError, match=words):
        update()
    assert pickle.dumps([blocks, *captures.tensors(blocks.mask_mod)]) == before


@pytest.mark.parametrize(
    "other",
    [
        loom.causal,
        loom.window(back=5) & loom.padding(~PADS),
        loom.causal & loom.padding(PADS[:, :69]),
        loom.causal & loom.key_padding(PADS),
        loom.causal & loom.padding(PADS, PADS.clone()),
    ],
    ids=repr,
)
def test_update_refuses_what_a_captured_graph_would_not_compute(other):
    blocks = updatable(_blocks())
    unchanged(
        blocks, lambda: update_(blocks, other), "update_ changes the values of tensors alone: .* goes on computing"
    )


def test_update_refuses_numbers_that_a_graph_was_captured_with():
    blocks = updatable(_blocks(loom.window(back=3)))
    assert update_(blocks, loom.window(back=3)) is blocks
    unchanged(
        blocks, lambda: update_(blocks, loom.window(back=5)), r"window\(back=5, ahead=0\) has other operations, num"
    )


@pytest.mark.parametrize("made", [lambda: _blocks(), lambda: pickle.loads(pickle.dumps(updatable(_blocks())))])
def test_update_never_writes_into_tensors_of_others(made):
    blocks = made()
    words = r"holds tensors that may be yours, and are not written into: build it as updatable\(block_mask\(...\)\)"
    unchanged(blocks, lambda: update_(blocks, loom.causal & loom.padding(~PADS)), words)


@pytest.mark.skipif(not hasattr(flex.BlockMask, "_dq_kv_order"), reason="this torch has no write orders")
@pytest.mark.parametrize("order", [True, False])
def test_update_makes_the_order_of_writes_anew(order):
    def build(pads):
        return loom.create_block_mask(
            loom.causal & loom.padding(pads), 3, 1, 70, 70, "cpu", 16, compute_dq_write_order=True, dq_kv_order=order
        )

    after = torch.arange(70).expand(3, -1) > 33  # whole tiles differ
    blocks, fresh = updatable(build(PADS)), build(after)
    memory = blocks.dq_write_order.data_ptr()
    update_(blocks, loom.causal & loom.padding(after))
    assert blocks.dq_write_order.data_ptr() == memory
    assert torch.equal(blocks.dq_write_order, fresh.dq_write_order)
    assert torch.equal(blocks.dq_write_order_full, fresh.dq_write_order_full)
    blocks.dq_kv_order = torch.arange(5)
    unchanged(
        blocks, lambda: update_(blocks, loom.causal & loom.padding(PADS)), "torch makes write orders of a bool alone"
    )


def test_update_needs_full_tables():
    blocks = flex.create_block_mask(loom.causal, 1, 1, 70, 70, "cpu", 16)
    blocks.full_kv_indices = None
    with pytest.raises(ValueError, match="no full tables to write into"):
        update_(blocks, loom.causal)


def test_threads_build_what_one_thread_builds():
    masks = [loom.causal & loom.padding(PADS ^ (torch.arange(70) % n == 0)) for n in range(2, 18)]
    alone = [_blocks(mask) for mask in masks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(_blocks, masks * 2))
    assert all(differing(one, other) == [] for one, other in zip(alone * 2, together, strict=True))


def test_cache_finds_equal_masks():
    cache = BlockMaskCache(size=2)
    first = cache.get(loom.window(back=3), 64, 64)
    assert cache.get(loom.window(back=3), 64, 64) is first
    assert cache.get(loom.window(back=4), 64, 64) is not first
    assert cache.get(loom.window(back=3), 64, 80) is not first and len(cache) == 2
    assert cache.get(loom.window(back=3), 64, 64) is not first  # was unused for longest
    cache.clear()
    assert len(cache) == 0


@pytest.mark.parametrize(
    "mask, kind, words",
    [
        (lambda b, h, q, kv: q >= kv, TypeError, "a cache keeps Masks, which have equality; got function"),
        (loom.padding(PADS), ValueError, r"masks without tensors, and padding\(bool\[3, 70\]\) holds some"),
    ],
)
def test_cache_refuses_what_it_cannot_tell_apart(mask, kind, words):
    with pytest.raises(kind, match=words):
        BlockMaskCache().get(mask, 64, 64)


def test_cache_size():
    with pytest.raises(ValueError, match="size is a number of block masks, at least 1; got 0"):
        BlockMaskCache(0)
