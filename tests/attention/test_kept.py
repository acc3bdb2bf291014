"""What `attend` keeps with a mask: built once, anew when tensors change, gone with the mask."""

import dataclasses
import gc

import torch

import maskloom as loom
from maskloom.attention import chunks, kept
from maskloom.attention.given import as_block_mask
from maskloom.blocks.tables import dense_of
from maskloom.masks import captured
from tests.attention.test_functional import K, Q, inputs
from tests.catalog import EVERY
from tests.evidence import gather


def test_tables_are_built_once_and_anew_when_their_tensors_change(monkeypatch):
    built = []
    monkeypatch.setattr(chunks, "dense_of", lambda *args, **rows: built.append(1) or dense_of(*args, **rows))
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
    monkeypatch.setattr(kept, "_kept", kept.Kept())
    for length in range(1, 6):
        mask = loom.lengths([length, 7, 11])
        loom.attend(*inputs(), mask)
        q, k, _ = inputs()
        as_block_mask(q, k, mask)  # what the fused kernel would get
    assert len(kept._kept) == 1
    del mask
    gc.collect()
    assert not len(kept._kept)
    for length in range(2, 40):
        q, k, v = inputs(q_len=length)
        loom.attend(q, k, v, ALWAYS)
    assert len(kept._kept.results(ALWAYS)) == kept.MOST


ALWAYS = loom.window(back=2)
GLOBAL = torch.tensor([5, 7, 11])


def test_tables_beyond_the_bytes_go(monkeypatch):
    monkeypatch.setattr(kept, "_kept", kept.Kept())
    monkeypatch.setattr(kept, "MOST_BYTES", 500)
    found = []
    for length in (10, 15, 20, 30):
        query = torch.randn(1, 1, length, 8)
        loom.attend(query, query, query, ALWAYS, backend="sdpa")
        results = kept._kept.results(ALWAYS).values()
        found.append([result.nbytes for result in results if isinstance(result, torch.Tensor)])
    assert found == [[100], [100, 225], [400], [900]]


def test_offsets_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(kept, "_kept", kept.Kept())
    mask = loom.causal & loom.lengths([5, 7, 11])
    for step in range(5):
        loom.attend(*inputs(), mask, q_offset=torch.tensor(step))
        loom.attend(*inputs(), mask, h_offset=step, clean_padding=True)
    gc.collect()
    assert not len(kept._kept)


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
        assert captured.may_change(mask) == captured.holds_code(mask), name
    assert sum(captured.may_change(factory()) for factory, _, _ in EVERY.values()) <= 4


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
