"""Block masks against torch's: every table, for random mask_mods and for masks of the algebra."""

import inspect
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.attention.resolve import as_block_mask
from maskloom.blocks import construct, first_sight, index_tables, open_tiles
from maskloom.blocks.dense import dense_of
from maskloom.core.cache import LRU
from tests.blocks.random_masks import Case, differing, random_case, tables_of_torch


def _build(case: Case, **options):
    shape = (case.batch, case.heads, case.q_len, case.kv_len)
    return loom.create_block_mask(case.mask_mod, *shape, "cpu", case.block, **options)


def _check(case: Case) -> None:
    theirs = tables_of_torch(case)
    if theirs is not None:
        assert differing(_build(case), theirs) == []


@settings(max_examples=350)
@given(st.randoms(use_true_random=False))
def test_any_mask_mod_has_the_tables_of_torch(rnd):
    _check(random_case(rnd))


@settings(max_examples=150)
@given(st.randoms(use_true_random=False))
def test_every_mask_of_the_algebra_has_the_tables_of_torch(rnd):
    _check(random_case(rnd, algebra=True))


@pytest.mark.parametrize("seed", range(0, 200, 5))
def test_parts_that_are_held_at_once_do_not_show(seed, monkeypatch):
    monkeypatch.setitem(first_sight.BAND, "cpu", 2)
    monkeypatch.setattr(open_tiles, "CHUNK", 300)
    monkeypatch.setitem(index_tables._AT_ONCE, "cpu", 3)
    _check(random_case(Random(seed)))


def test_bands_of_which_only_some_are_exact(monkeypatch):
    monkeypatch.setitem(first_sight.BAND, "cpu", 7)
    table = torch.rand(20) < 0.5
    _check(Case(lambda b, h, q_idx, kv_idx: table[q_idx - 3], 1, 1, 20, 64, (1, 32), "table[q_idx - 3]"))


@pytest.mark.parametrize("seed", range(40))
def test_inexact_tables_never_skip_nor_fill_wrongly(seed):
    case = random_case(Random(seed))
    truth = tables_of_torch(case)
    if truth is None:
        return
    blocks = loom.block_mask(
        case.mask_mod, case.q_len, case.kv_len, **_sizes(case), block_size=case.block, device="cpu", exact=False
    )
    assert torch.equal(
        dense_of(blocks, case.batch, case.heads).expand(case.batch, case.heads, -1, -1),
        dense_of(truth, case.batch, case.heads).expand(case.batch, case.heads, -1, -1),
    )


def _sizes(case: Case) -> dict[str, int]:
    return {"batch": case.batch, "heads": case.heads}


def _causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


@pytest.mark.parametrize("make", [lambda: loom.lengths([70, 150, 200]), lambda: loom.documents(offsets=[0, 70, 200])])
def test_block_mask_keeps_the_cheaper_mask_and_create_block_mask_the_given_one(make):
    mask = loom.causal & make()
    cheaper = loom.masks.simplify(mask)
    assert cheaper != mask
    ours, torchs = loom.block_mask(mask, 200, 200), loom.create_block_mask(mask, 3, None, 200, 200, "cpu")
    assert ours.mask_mod == cheaper and torchs.mask_mod is mask
    assert loom.block_mask(mask, 150, 200, q_offset=50).mask_mod == loom.masks.shifted(cheaper, q_offset=50)
    q, k, _ = torch.randn(3, 3, 2, 200, 8)
    assert as_block_mask(q, k, mask).mask_mod == cheaper  # what a kernel gets
    assert as_block_mask(q, k, mask).kv_indices is as_block_mask(q, k, mask).kv_indices  # kept


def test_the_mask_mod_is_kept_untouched():
    assert loom.create_block_mask(_causal, 1, 1, 300, 300, "cpu").mask_mod is _causal
    assert loom.block_mask(loom.causal, 300, 300, device="cpu").mask_mod is loom.causal


def test_the_signature_is_that_of_torch():
    ours, theirs = (inspect.signature(f).parameters for f in (loom.create_block_mask, flex.create_block_mask))
    assert [*ours][: len(theirs)] == [*theirs]
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_full_tiles_join_the_partial_ones_on_request():
    blocks = loom.create_block_mask(_causal, 1, 1, 300, 300, "cpu", separate_full_blocks=False)
    assert blocks.full_kv_indices is None and blocks.full_q_indices is None
    assert blocks.kv_num_blocks.tolist() == [[[1, 2, 3]]]
    if "separate_full_blocks" in inspect.signature(flex.create_block_mask).parameters:
        assert (
            differing(blocks, flex.create_block_mask(_causal, 1, 1, 300, 300, "cpu", separate_full_blocks=False)) == []
        )


def test_the_order_of_writes_is_that_of_torch_or_an_error():
    if "compute_dq_write_order" not in inspect.signature(flex.create_block_mask).parameters:
        with pytest.raises(TypeError, match="has no create_block_mask\\(compute_dq_write_order=\\)"):
            loom.create_block_mask(_causal, 1, 1, 300, 300, "cpu", compute_dq_write_order=True)
        return
    for order in (True, False):
        options = {"compute_dq_write_order": True, "dq_kv_order": order}
        ours = loom.create_block_mask(_causal, 2, 1, 300, 500, "cpu", **options)
        theirs = flex.create_block_mask(_causal, 2, 1, 300, 500, "cpu", **options)
        for name in ("dq_write_order", "dq_write_order_full"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert ours.dq_kv_order_spt is theirs.dq_kv_order_spt


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("q_offset, kv_offset", [(70, 0), (0, 33), (130, 7), (-9, 0)])
def test_offsets_shift_the_tables_and_the_kept_mask(q_offset, kv_offset, as_tensor):
    mask = loom.window(back=40) | loom.sinks(5)
    make = torch.tensor if as_tensor else int
    blocks = loom.block_mask(
        mask, 50, 200, block_size=16, device="cpu", q_offset=make(q_offset), kv_offset=make(kv_offset)
    )

    def moved(b, h, q_idx, kv_idx):
        return mask(b, h, q_idx + q_offset, kv_idx + kv_offset)

    assert differing(blocks, flex.create_block_mask(moved, 1, 1, 50, 200, "cpu", 16)) == []
    expected = flex.create_mask(moved, 1, 1, 50, 200, "cpu")
    assert torch.equal(flex.create_mask(blocks.mask_mod, 1, 1, 50, 200, "cpu"), expected)


def test_an_offset_moves_reads_of_tables_block_by_block():
    pads = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) < 0.4
    blocks = loom.block_mask(loom.padding(pads), 64, 300, block_size=(16, 32), q_offset=236)
    moved = flex.create_block_mask(lambda b, h, q, kv: ~pads[b, q + 236] & ~pads[b, kv], 2, 1, 64, 300, "cpu", (16, 32))
    assert differing(blocks, moved) == []


def test_one_table_serves_what_the_mask_treats_alike():
    pads = torch.zeros(3, 200, dtype=torch.bool)
    assert loom.block_mask(loom.causal, 200, 200).shape == (1, 1, 200, 200)
    assert loom.block_mask(loom.causal & loom.padding(pads), 200, 200).shape == (3, 1, 200, 200)


@pytest.mark.parametrize("mask", [_causal, loom.causal & loom.window(back=9), loom.lengths([200])])
def test_building_traces_inside_torch_compile(mask):
    build = torch.compile(
        lambda: loom.create_block_mask(mask, 1, 1, 256, 256, "cpu").kv_num_blocks, backend="eager", fullgraph=True
    )
    assert torch.equal(build(), loom.create_block_mask(mask, 1, 1, 256, 256, "cpu").kv_num_blocks)


def test_inside_torch_compile_the_sizes_must_be_given():
    with pytest.raises(Exception, match="give the batch size and the number of heads, or build outside"):
        torch.compile(lambda: loom.block_mask(_causal, 256, 256).kv_num_blocks, backend="eager", fullgraph=True)()


def test_integers_of_numpy():
    sizes = [np.int64(number) for number in (2, 3, 9, 11)]
    theirs = flex.create_block_mask(loom.causal, *sizes, device="cpu", BLOCK_SIZE=4)
    assert differing(loom.create_block_mask(loom.causal, *sizes, "cpu", np.int64(4)), theirs) == []
    q_len, kv_len = sizes[2:]
    ours = loom.block_mask(loom.causal, q_len, kv_len, batch=sizes[0], heads=sizes[1], device="cpu", block_size=(4, 4))
    assert differing(ours, theirs) == []


CONSTANT = {
    "block_mask": lambda mask: loom.block_mask(mask, 300, 517, block_size=32, device="cpu"),
    "create_block_mask": lambda mask: loom.create_block_mask(
        mask, 2, None, 300, 517, BLOCK_SIZE=(32, 64), device="cpu"
    ),
    "partial alone": lambda mask: loom.create_block_mask(
        mask, 2, 3, 300, 517, separate_full_blocks=False, device="cpu"
    ),
    "shifted": lambda mask: loom.block_mask(mask, 300, 517, q_offset=217, block_size=32, device="cpu"),
}
TABLES = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices")


@pytest.mark.parametrize("name", CONSTANT)
def test_block_masks_of_numbers_alone_have_tables_of_their_own(name, monkeypatch):
    monkeypatch.setattr(construct, "_constants", LRU(4))
    build_one, mask = CONSTANT[name], loom.window(back=70) | loom.masks.sinks(3)
    first = build_one(mask)
    tables = {table: getattr(first, table) for table in TABLES if getattr(first, table) is not None}
    expected = {table: held.clone() for table, held in tables.items()}
    for held in tables.values():
        held.zero_()
    for again in (build_one(mask), build_one(loom.window(back=70) | loom.masks.sinks(3))):
        for table, right in expected.items():
            assert torch.equal(getattr(again, table), right)
            getattr(again, table).zero_()
        assert again.mask_mod == first.mask_mod
    assert len(construct._constants) == 1
    assert name == "shifted" or build_one(mask).mask_mod is mask


@pytest.mark.parametrize("flag", [1, "no", None])
def test_flags_that_are_none_are_refused(flag):
    with pytest.raises(TypeError, match=f"^exact is True or False; got {flag!r}$"):
        loom.block_mask(loom.causal, 3, 5, device="cpu", exact=flag)
    for name in ("separate_full_blocks", "compute_dq_write_order", "dq_kv_order"):
        with pytest.raises(TypeError, match=f"^{name} is True or False; got {flag!r}$"):
            loom.create_block_mask(loom.causal, 1, 1, 3, 5, "cpu", **{name: flag})
    with pytest.raises(TypeError, match=f"^non_blocking is True or False; got {flag!r}$"):
        loom.blocks.to_device(loom.block_mask(loom.causal, 3, 5, device="cpu"), "cpu", non_blocking=flag)


def test_the_meta_device_has_no_values():
    mask = loom.lengths([3, 5]).to("meta")
    with pytest.raises(
        ValueError, match=r"depends on values, and there are none on the meta device; build it on another"
    ):
        loom.block_mask(mask, 3, 5)
    assert loom.block_mask(mask, 3, 5, exact=False).kv_indices.shape == (2, 1, 1, 1)


def test_numbers_that_are_none_are_refused_each_time():
    loom.block_mask(loom.causal, 1, 1, device="cpu")
    loom.block_mask(loom.causal, 1, 1, batch=1, heads=1, device="cpu")
    for _ in range(2):
        with pytest.raises(ValueError, match="q_len"):
            loom.block_mask(loom.causal, True, 1, device="cpu")
        for sizes in ({"batch": True}, {"heads": 1.0}):
            with pytest.raises(ValueError, match="at least"):
                loom.block_mask(loom.causal, 1, 1, device="cpu", **sizes)
