"""A rank's part: its masks are rows of the whole, alike for every batch, and made once."""

import pytest
import torch

import maskloom as loom
from maskloom.core import captures
from maskloom.distributed.asking import checked, weighed
from maskloom.distributed.part import Part, Place, _for_parts, part_of
from maskloom.distributed.sharing.layout import Runs, layout_of
from maskloom.masks.patterns.relative import Window
from tests.distributed.positions import everywhere

LENGTH = 211


def part_for(mask: loom.Mask, strategy: str, rank: int, *, length: int = LENGTH, **options) -> Part:
    asked = checked(mask, length, [2], heads=(4, 2), strategy=strategy)
    tiles, _, (scheme,) = weighed(asked, [2])
    layout = layout_of(scheme.assignment, length, tiles.unit, scheme.rows, scheme.parts)
    place = Place(0, rank, None, None) if strategy == "heads" else Place(rank, 0, None, None)
    alike = {"q_offset": 0, "unit": tiles.unit, "device": torch.device("cpu")}
    return part_of(asked.mask, tiles.marks, scheme, layout, place, **(alike | options))


def documents(*starts: int) -> loom.Mask:
    return loom.causal & loom.documents(offsets=[0, *starts, LENGTH])


@pytest.mark.parametrize("strategy", ["heads", "gather", "needed"])
def test_masks_of_other_documents_have_one_structure(strategy):
    """So one compiled kernel serves them."""
    masks = [
        part_for(documents(*starts), strategy, 1).masks(1, None, None).plain
        for starts in ((50, 90), (7, 100), (33, 34, 200))
    ]
    first, *others = [captures.structure(mask, numbers=False) for mask in masks]
    assert others == [first] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_masks_of_other_documents_have_few_numbers_of_keys(rank):
    """Of documents a multiple of an eighth of the rank's own tiles, by zeros; of a mask of numbers alone those that are needed."""
    several = [loom.causal & loom.documents(offsets=[*range(0, 212, step), 212]) for step in range(4, 40)]
    parts = [part_for(mask, "needed", rank, length=212) for mask in several]
    assert len({part.keys - part.exchange.zeros for part in parts}) >= 4
    assert {part.keys for part in parts} == {112, 128}
    assert all(part.exchange.zeros < 16 for part in parts)
    assert part_for(loom.window(back=9), "needed", rank).exchange.zeros == 0


@pytest.mark.parametrize("strategy", ["gather", "needed"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("starts", [(50, 90), (7, 20, 60), (150,), ()])
def test_its_mask_is_the_rows_and_columns_of_the_whole(strategy, rank, starts):
    mask = documents(*starts)
    part = part_for(mask, strategy, rank)
    whole = mask.dense(LENGTH, LENGTH)[0, 0]
    queries, keys = everywhere(part)
    rows = whole[queries]
    found = part.masks(1, None, None).plain.dense(len(queries), len(keys))[0, 0]
    assert torch.equal(found, rows[:, keys])
    hidden = torch.ones(LENGTH, dtype=torch.bool).index_fill(0, keys, False)
    assert not rows[:, hidden].any()  # what does not come is not seen


def test_positions_that_follow_one_another_are_added_not_read():
    """Where only what is needed comes, queries are two runs at most, and the keys of most masks are."""
    part = part_for(documents(50, 90), "needed", 1)
    assert [type(held) for held in part.positions] == [Runs, Runs]
    sinks = [part_for(loom.window(back=5) | loom.causal & loom.sinks(2), "needed", rank).positions for rank in range(2)]
    assert [held.is_one for positions in sinks for held in positions] == [False, False, True, True]
    columns = loom.as_mask(lambda b, h, q_idx, kv_idx: (kv_idx % 32 < 4) | (q_idx == kv_idx))
    assert isinstance(part_for(columns, "needed", 1).positions[1], torch.Tensor)


def test_the_form_of_runs_follows_from_the_mask_alone_where_it_has_tensors():
    """The next documents may be two runs where these are one; without tensors the next plan has the same."""
    tables = part_for(documents(25, 50, 75, 100, 125, 150, 175), "needed", 1)
    assert all(held.is_one for held in tables.positions)
    two = "two_runs(int32[3], int32[3], int32[3])"
    assert repr(tables.masks(3, None, None).plain).endswith(f"q_positions={two}, kv_positions={two})")
    for rank, form in ((0, two), (1, "run(int32[3])")):
        sinks = part_for(loom.causal & (loom.window(back=5) | loom.sinks(2)), "needed", rank)
        assert repr(sinks.masks(3, None, None).plain).endswith(f"q_positions={form}, kv_positions={form})")


@pytest.mark.parametrize("rank", [0, 1])
def test_causal_is_a_head_and_a_tail_and_what_lies_between(rank):
    part = part_for(loom.causal, "needed", rank)
    queries, keys = everywhere(part)
    assert part.positions[0].is_one == (rank == 1)
    assert part.positions[1].is_one
    assert len(keys) == (LENGTH if rank == 0 else int(queries[-1]) + 1)


@pytest.mark.parametrize("window", [loom.causal & loom.window(back=30), loom.window(back=7, ahead=40)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_window_is_moved_instead(window, rank):
    part = part_for(window, "needed", rank)
    queries, keys = everywhere(part)
    held = part.masks(1, None, None)
    assert isinstance(held.plain, Window)
    for mask in held[:2]:
        found = mask.dense(len(queries), len(keys))[0, 0]
        assert torch.equal(found, window.dense(LENGTH, LENGTH)[0, 0][queries][:, keys])


@pytest.mark.parametrize("rank", [0, 1])
def test_batch_rows_have_the_same_run(rank):
    mask = loom.causal & loom.window(back=30) & loom.lengths([LENGTH, 7, 130])
    part = part_for(mask, "needed", rank)
    queries, keys = everywhere(part)
    found = part.masks(3, None, None).plain.dense(len(queries), len(keys))
    assert torch.equal(found, mask.dense(LENGTH, LENGTH)[:, :, queries][..., keys])


def test_masks_are_made_once_for_each_offset():
    part = part_for(loom.masks.per_head([loom.causal, loom.window(back=5)] * 2), "heads", 1)
    assert part.masks(1, None, 2) is part.masks(1, None, 2)
    assert part.masks(1, None, 0) is not part.masks(1, None, 2)
    assert "h_offset=2" in repr(part.masks(1, None, 2).plain)
    assert part_for(loom.causal, "heads", 1).masks(1, None, 2).plain is loom.causal  # it is the same for every head


def test_keys_in_two_parts_are_all_keys():
    part = part_for(loom.causal, "gather", 1, overlap=True)
    near, far = part.overlap.near.positions[1], part.overlap.far.positions[1]
    assert torch.cat([near, far]).sort().values.tolist() == list(range(LENGTH))
    assert part_for(loom.causal, "needed", 1, overlap=True).overlap is None


@pytest.mark.parametrize(("heads", "kv_heads", "parts", "repeated"), [(6, 2, 2, [0, 1]), (6, 2, 3, [0, 0, 0, 1, 1, 1]), (12, 3, 2, [0, 0, 1, 1, 2, 2]), (4, 1, 2, [0, 0])])  # fmt: skip
def test_key_heads_are_repeated_where_parts_share_them(heads, kv_heads, parts, repeated):
    tensor = torch.arange(kv_heads)[None, :, None, None].expand(2, kv_heads, 5, 3)
    found = _for_parts(tensor, heads, kv_heads, parts)[0, :, 0, 0].tolist()
    share = heads // parts
    for part in range(parts):
        own = found[part * len(found) // parts : (part + 1) * len(found) // parts]
        serves = share // len(own)
        assert [own[head // serves] for head in range(share)] == [
            (part * share + head) // (heads // kv_heads) for head in range(share)
        ]
    assert len(found) <= len(repeated)
