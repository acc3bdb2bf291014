"""Counts of padding stay with the table that was counted, and with copies of it; another table has none of them."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch.utils._pytree import tree_map

import maskloom as loom
from maskloom.blocks import to_device
from maskloom.core import captures
from maskloom.masks.known_padding import counted_padding

B, L = 3, 7
LENS = torch.tensor([2, 7, 5])
PADS = torch.arange(L) >= LENS[:, None]
IDS = torch.where(PADS, -1, 0)


def masks():
    """Masks with tables of their own, and the name of the field that holds the table."""
    return {
        "lengths": (loom.lengths(LENS.clone()), "q_lens"),
        "padding": (loom.padding(PADS.clone()), "q_pads"),
        "real": (loom.real(~PADS), "q_real"),
        "key_padding": (loom.key_padding(PADS.clone()), "pads"),
        "documents": (loom.documents(IDS.clone()), "ids"),
    }


def totals(mask):
    """The counted real positions of queries and of keys."""
    return [None if side is None else side.counted.total for side in counted_padding(mask)]


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda mask: pickle.loads(pickle.dumps(mask)),
    "to": lambda mask: mask.to("cpu"),
    "to another device and back": lambda mask: captures.copied(captures.copied(mask, torch.clone), torch.clone),
    "moved, then pickled": lambda mask: pickle.loads(pickle.dumps(captures.copied(mask, torch.clone))),
    "moved, then copied deeply": lambda mask: copy.deepcopy(captures.copied(mask, torch.clone)),
    "in a block mask": lambda mask: to_device(loom.create_block_mask(mask, B, None, L, L), "cpu").mask_mod,
    "tree_map": lambda mask: tree_map(lambda leaf: leaf, {"mask": mask})["mask"],
    "replace, with itself": dataclasses.replace,
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("lens", [[0, 0], [5, 3], [127, 100], [200, 130], [32700, 1]])
def test_lengths_of_any_dtype(lens, dtype):
    if max(lens) <= torch.iinfo(dtype).max:
        counted = counted_padding(loom.lengths(torch.tensor(lens, dtype=dtype))).queries.counted
        tiles = sum(-(-length // 128) * 128 for length in lens)
        assert (counted.total, counted.longest, counted.in_tiles) == (sum(lens), max(lens), tiles)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", masks())
def test_a_copy_keeps_its_count(name, how):
    mask, _ = masks()[name]
    assert totals(COPIES[how](mask)) == totals(mask) and 14 in totals(mask)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", masks())
def test_a_write_into_a_copy_voids_its_count(name, how):
    mask, field = masks()[name]
    made = COPIES[how](mask)
    table = getattr(made, field)
    table[0] = table[1]
    assert totals(made) == [None, None]


@pytest.mark.parametrize("name", masks())
def test_a_write_into_the_table_voids_the_counts_of_copies(name):
    mask, field = masks()[name]
    moved = captures.copied(mask, torch.clone)
    table = getattr(mask, field)
    table[0] = table[1]
    assert totals(moved) == totals(mask) == [None, None]  # a copy of a pinned table may be on its way


@pytest.mark.parametrize("name", masks())
def test_another_table_is_not_counted(name):
    mask, field = masks()[name]
    names = [at.name for at in dataclasses.fields(mask) if isinstance(getattr(mask, at.name), torch.Tensor)]
    other = getattr(mask, field).flip(0)[[0, 0, 1]]
    assert totals(dataclasses.replace(mask, **dict.fromkeys(names, other))) == [None, None]
    assert totals(captures.moved(mask, lambda table: table.flip(0)[[0, 0, 1]])) == [None, None]


def test_one_side_of_two_is_replaced():
    mask = loom.lengths(LENS, LENS.flip(0))
    assert totals(mask) == [14, 14]
    assert totals(dataclasses.replace(mask, kv_lens=torch.tensor([1, 2, 3]))) == [14, None]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_module_packs_nothing_by_the_count_of_another_table(fullgraph):
    torch.manual_seed(0)
    module = loom.MultiheadFlexAttention(16, 16, 2)
    x = torch.randn(B, L, 16)
    mask = dataclasses.replace(loom.lengths(LENS), q_lens=LENS.flip(0), kv_lens=LENS.flip(0))
    expected = module(x, loom.lengths(LENS.flip(0))).out
    torch.testing.assert_close(module(x, mask).out, expected)
    if fullgraph:
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, mask).out, expected)
