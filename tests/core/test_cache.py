"""What `attend` keeps with a mask: built once, anew when tensors change, gone with the mask."""

import copy
import dataclasses
import datetime
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import maskloom as loom
from maskloom.attention import tables, written_out
from maskloom.attention.resolve import as_block_mask
from maskloom.blocks import dense as blocks_dense
from maskloom.blocks.dense import dense_of, rows_of
from maskloom.blocks.tile_states import tile_states
from maskloom.core import cache, captures
from tests.attention.test_attend import K, Q, inputs
from tests.catalog import EVERY
from tests.evidence import gather


def test_tables_are_built_once_and_anew_when_their_tensors_change(monkeypatch):
    built = []
    monkeypatch.setattr(blocks_dense, "dense_of", lambda *args, **rows: built.append(1) or dense_of(*args, **rows))
    lens = torch.tensor([5, 7, 11])
    blocks = loom.block_mask(loom.lengths(lens), Q, K, block_size=32)
    first = loom.attend(*inputs(), blocks)
    assert torch.equal(loom.attend(*inputs(), blocks), first)
    assert len(built) == 1
    lens[0] = 2
    assert not loom.attend(*inputs(), blocks)[0, :, 2:].any()
    assert len(built) == 2
    blocks.mask_mod = loom.lengths(torch.tensor([5, 7, 11]))  # another mask for the same tables
    assert torch.equal(loom.attend(*inputs(), blocks), first)
    assert len(built) == 3


def test_what_is_kept_goes_with_its_mask(monkeypatch):
    monkeypatch.setattr(cache, "_kept", cache.OwnerCache())
    for length in range(1, 6):
        mask = loom.lengths([length, 7, 11])
        loom.attend(*inputs(), mask)
        q, k, _ = inputs()
        as_block_mask(q, k, mask)  # what the fused kernel would get
    assert len(cache._kept) == 1
    del mask
    gc.collect()
    assert not len(cache._kept)
    for length in range(2, 40):
        q, k, v = inputs(q_len=length)
        loom.attend(q, k, v, ALWAYS)
    assert len(cache._kept.results(ALWAYS)) == cache.MOST


ALWAYS = loom.window(back=2)
GLOBAL = torch.tensor([5, 7, 11])


def test_tables_beyond_the_bytes_go(monkeypatch):
    monkeypatch.setattr(cache, "_kept", cache.OwnerCache())
    monkeypatch.setattr(cache, "MOST_BYTES", 500)
    found = []
    for length in (10, 15, 20, 30):
        query = torch.randn(1, 1, length, 8)
        loom.attend(query, query, query, ALWAYS, backend="sdpa")
        results = cache._kept.results(ALWAYS).values()
        found.append(sorted({getattr(result, "nbytes", 0) for result in results} - {0}))
    assert found == [[100], [225], [400], [900]]  # a plan counts as its table does


def test_offsets_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(cache, "_kept", cache.OwnerCache())
    mask = loom.causal & loom.lengths([5, 7, 11])
    for step in range(5):
        loom.attend(*inputs(), mask, q_offset=torch.tensor(step))
        loom.attend(*inputs(), mask, h_offset=step, clean_padding=True)
    gc.collect()
    assert not len(cache._kept)


def test_what_a_function_reads_may_change_at_any_time(monkeypatch):
    class Limit:
        value = 3

    limit, cell = Limit(), torch.tensor([5, 7, 11])
    masks = [
        lambda b, h, q, k: k < GLOBAL[b],
        lambda b, h, q, k: k < cell[b],
        lambda b, h, q, k: k < limit.value,
    ]
    given = [form for mask in masks for form in (mask, loom.as_mask(mask), loom.block_mask(mask, Q, K))]
    for mask in given:
        loom.attend(*inputs(), mask)
    monkeypatch.setitem(globals(), "GLOBAL", torch.tensor([1, 2, 3]))
    limit.value, cell = 5, torch.tensor([1, 2, 3])
    for place, mask in enumerate(given):
        expected, _ = loom.reference(*inputs(), masks[place // 3])
        torch.testing.assert_close(loom.attend(*inputs(), mask), expected)


@dataclasses.dataclass
class Settings:
    limit: int = 3


class Plain:
    limit = 3


@dataclasses.dataclass(frozen=True)
class Limited:
    """A value, but for what it holds."""

    held: object

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < (self.held["limit"] if isinstance(self.held, dict) else self.held.limit)


@dataclasses.dataclass(frozen=True)
class Listed:
    limits: list

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < self.limits[0]


def test_what_a_value_holds_may_change_unless_it_is_one_itself():
    changes = [
        (Limited(Settings()), lambda mask: setattr(mask.held, "limit", 5)),
        (Limited(Plain()), lambda mask: setattr(mask.held, "limit", 5)),
        (Limited({"limit": 3}), lambda mask: mask.held.update(limit=5)),
        (Listed([3]), lambda mask: mask.limits.__setitem__(0, 5)),
    ]
    for mask, change in changes:
        given = [mask, loom.as_mask(mask) & loom.window(back=30, ahead=30), loom.block_mask(mask, Q, K)]
        for form in given:
            loom.attend(*inputs(), form)
        change(mask)
        expected, _ = loom.reference(*inputs(), loom.prefix(5))
        for form in given:
            torch.testing.assert_close(loom.attend(*inputs(), form), expected)


def test_our_own_masks_never_change_unless_they_hold_functions():
    for name, (factory, _, _) in EVERY.items():
        mask = factory()
        assert captures.may_change(mask) == captures.holds_code(mask), name
    assert sum(captures.may_change(factory()) for factory, _, _ in EVERY.values()) <= 6


def test_nothing_is_kept_while_torch_traces():
    mask = loom.window(back=2)
    q, k, v = inputs()
    expected = loom.attend(q, k, v, loom.causal & loom.causal & mask)

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return loom.attend(q, k, v, mask)

    exported = torch.export.export(Model(), (q, k, v), strict=False)
    torch.testing.assert_close(exported.module()(q, k, v), expected)
    torch.testing.assert_close(loom.attend(q, k, v, mask), expected)
    with torch.inference_mode():
        lens = torch.tensor([5, 7, 11])
        mask = loom.lengths(lens)
        first = loom.attend(q, k, v, mask).clone()
        lens.fill_(1)  # inference tensors count no versions
        assert not torch.equal(loom.attend(q, k, v, mask), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.bool])
def test_values_of_every_dtype_are_compared_in_inference_mode(dtype):
    with torch.inference_mode():
        rows = torch.ones(5, 7, 2).to(dtype)
    for tensor in (rows, rows[:, 1:, 0], rows[2, 3, 1], rows[:0], rows[:1].expand(3, 7, 2)):
        made = []
        for _ in range(2):
            cache.keep_beside(tensor, "key", lambda made=made: made.append(1) or 11)
        assert len(made) == 1
        with torch.inference_mode():
            rows.zero_()
        cache.keep_beside(tensor, "key", lambda made=made: made.append(1) or 11)
        assert len(made) == (2 if tensor.numel() else 1)
        with torch.inference_mode():
            rows.copy_(torch.ones(5, 7, 2))


def test_float_tables_of_half_types_in_inference_mode():
    q, k, v = inputs()
    with torch.inference_mode():
        table = torch.zeros(Q, K, dtype=torch.bfloat16)
        table[:, 3:] = -torch.inf
        torch.testing.assert_close(loom.attend(q, k, v, table), loom.attend(q, k, v, table == 0))
        table[:, :3], table[:, 3:] = -torch.inf, 0
        torch.testing.assert_close(loom.attend(q, k, v, table), loom.attend(q, k, v, table == 0))


def test_objects_without_a_place_for_weak_references():
    @dataclasses.dataclass(frozen=True, slots=True)
    class First:
        n: int
        lens: torch.Tensor

        def __call__(self, b, h, q_idx, kv_idx):
            return kv_idx < self.n

    mask = First(4, torch.tensor([1, 2, 3]))
    gather(lambda *qkv: loom.attend(*qkv, mask), *inputs(), table=loom.prefix(4).dense(Q, K)).check()
    assert loom.as_mask(mask).to("meta").function.lens.is_meta


def broadcast(tensor, value):
    """gloo's broadcast from a group of two, in threads: it writes ``value`` into the tensor."""
    store = torch.distributed.HashStore()
    ours = {0: torch.full_like(tensor, value), 1: tensor}

    def run(rank):
        group = torch.distributed.ProcessGroupGloo(store, rank, 2, datetime.timedelta(seconds=60))
        group.broadcast([ours[rank]]).wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, ours))


def by_storage(tensor, value):
    tensor.untyped_storage().copy_(torch.full_like(tensor, value).untyped_storage())


UNSEEN = {
    "gloo's broadcast": broadcast,
    "data": lambda tensor, value: tensor.data.fill_(value),
    "numpy": lambda tensor, value: tensor.numpy().fill(value),
    "dlpack": lambda tensor, value: torch.from_dlpack(tensor.__dlpack__()).fill_(value),
    "storage": by_storage,
}


@pytest.mark.parametrize("how", UNSEEN)
@pytest.mark.parametrize("said_of", ["tensor", "mask", "block mask", "another mask"])
def test_what_torch_does_not_see_written_is_said(how, said_of):
    lens = torch.tensor([5, 7, 11])
    mask = loom.causal & loom.lengths(lens)
    blocks = loom.block_mask(loom.lengths(lens), Q, K, block_size=32)
    if said_of == "another mask":
        said = loom.lengths(lens)
    else:
        said = {"tensor": lens, "mask": mask, "block mask": blocks}[said_of]
    before = [loom.attend(*inputs(), form) for form in (mask, blocks)]
    UNSEEN[how](lens, 2)
    assert lens.tolist() == [2, 2, 2] and torch.equal(loom.attend(*inputs(), mask), before[0])  # what is kept is old
    loom.masks.mark_changed(said)
    expected, _ = loom.reference(*inputs(), loom.causal & loom.lengths([2, 2, 2]))
    torch.testing.assert_close(loom.attend(*inputs(), mask), expected)
    assert not loom.attend(*inputs(), blocks)[:, :, 2:].any()


def test_a_backward_sees_what_is_said_to_be_changed(monkeypatch):
    monkeypatch.setattr(written_out, "CHUNK", 50)
    lens, qkv = torch.tensor([5, 7, 11]), [tensor.requires_grad_() for tensor in inputs()]
    out, _ = loom.reference(*qkv, loom.lengths(lens))
    loom.masks.mark_changed(lens)
    with pytest.raises(RuntimeError, match="a tensor of the mask or score_mod was written to after the forward"):
        out.sum().backward()


def test_only_what_holds_tensors_can_be_changed():
    loom.masks.mark_changed(loom.causal, torch.zeros(2), [torch.ones(3)], lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
    with torch.inference_mode():
        loom.masks.mark_changed(torch.zeros(2))
    with pytest.raises(TypeError, match="mark_changed takes tensors, masks, score_mods and BlockMasks; got int: 3"):
        loom.masks.mark_changed(3)


@loom.masks.mask_dataclass
class Tenths(loom.Mask):
    """A mask of Python's numbers, whose dtype is torch's default: 0.1 * 3 <= 0.3 in half types and float32, not in float64."""

    def __call__(self, b, h, q_idx, kv_idx):
        return (kv_idx * 0.1).to(torch.float64) <= (q_idx * torch.tensor(0.1)).to(torch.float64) + 1e-9


@loom.masks.mask_dataclass
class Product(loom.Mask):
    """A mask that multiplies matrices, in autocast's dtype."""

    keys: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        row = self.keys[kv_idx]
        return (row[None] @ row[:, None]).squeeze() > 1.0


def settings_of():
    yield (
        "default dtype",
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_default_dtype(torch.float32),
    )
    yield (
        "default dtype",
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    )
    autocast = torch.autocast("cpu", torch.bfloat16)
    yield "autocast", autocast.__enter__, lambda: autocast.__exit__(None, None, None)


@pytest.mark.parametrize("setting", list(settings_of()), ids=lambda setting: setting[0])
@pytest.mark.parametrize("mask", [Tenths(), Product(torch.full((K, 1), 1.001))], ids=["numbers", "product"])
def test_what_is_kept_depends_on_how_torch_computes(setting, mask):
    _, switch, back = setting
    q, k, _ = inputs()
    value = torch.eye(K).expand(3, 1, -1, -1)
    cache = loom.blocks.BlockMaskCache()

    def found():
        table = mask.dense(Q, K)
        weights = loom.attend(q, k, value.to(q.dtype), mask, backend="sdpa")
        tables = [as_block_mask(q, k, mask), loom.block_mask(mask, Q, K, device="cpu")]
        if not captures.tensors(mask):
            tables.append(cache.get(mask, Q, K, device="cpu"))
        for blocks in tables:
            assert torch.equal(
                tile_states(blocks), tile_states(loom.block_mask(copy.deepcopy(mask), Q, K, device="cpu"))
            )
        assert torch.equal(weights > 0, table.expand_as(weights))
        return table

    first = found()
    switch()
    try:
        found()
    finally:
        back()
    assert torch.equal(found(), first)


def test_tables_that_were_kept_in_inference_mode_train():
    mask = loom.window(back=2) & loom.prefix(7)
    table = mask.dense(inputs()[0].shape[-2], inputs()[1].shape[-2])

    def gradients(attention, *arguments):
        qkv = [tensor.requires_grad_() for tensor in inputs()]
        return torch.autograd.grad(attention(*qkv, *arguments).square().sum(), qkv)

    with torch.inference_mode():
        loom.attend(*inputs(), mask)
    expected = gradients(lambda *qkv: loom.reference(*qkv, table)[0])
    for found, right in zip(gradients(loom.attend, mask), expected, strict=True):
        assert right.any()
        torch.testing.assert_close(found, right)


MADE_IN_INFERENCE_MODE = {
    "a list": lambda: loom.lengths([5, 7, 11]),
    "a tensor": lambda: loom.lengths(torch.tensor([5, 7, 11])),
    "offsets": lambda: loom.documents(offsets=torch.tensor([0, 4, Q])),
    "a joined one": lambda: loom.causal & loom.lengths([5, 7, 11]),
}


@pytest.mark.parametrize("name", MADE_IN_INFERENCE_MODE)
def test_masks_made_in_inference_mode_are_kept_too(monkeypatch, name):
    monkeypatch.setattr(cache, "_kept", cache.OwnerCache())
    built = []
    monkeypatch.setattr(tables, "rows_of", lambda *args, **rows: built.append(1) or rows_of(*args, **rows))
    tensors = inputs() if name != "offsets" else [tensor[:, :, :Q] for tensor in inputs()]
    with torch.inference_mode():
        mask = MADE_IN_INFERENCE_MODE[name]()
        first = loom.attend(*tensors, mask)
        assert torch.equal(loom.attend(*tensors, mask), first)
        assert len(built) == 1
        if name != "offsets":  # which are copied
            captures.tensors(mask)[0].fill_(2)
            expected, _ = loom.reference(*tensors, mask.to("cpu"))
            torch.testing.assert_close(loom.attend(*tensors, mask), expected)
            assert len(built) == 2


def test_an_lru_keeps_to_its_bounds():
    lru = cache.LRU(3, most_bytes=10, nbytes=len)
    for key, entry in (("a", "1234"), ("b", "12"), ("a", "12"), ("c", "123"), ("d", "1"), ("e", "123456")):
        lru.put(key, entry)
    assert lru.entries() == {"c": "123", "d": "1", "e": "123456"}
    assert lru.get("c") == "123" and lru.get("a") is None
    lru.put("d", "12")
    assert lru.entries() == {"c": "123", "d": "12"}
    lru.put("f", "123456789012")
    assert lru.entries() == {"f": "123456789012"}
    lru.put("g", "")
    assert lru.entries() == {"g": ""}  # one that is larger than all may be stays alone until the next
    lru.clear()
    lru.put("g", "1234567890")
    lru.put("h", "")
    assert len(lru) == 2
