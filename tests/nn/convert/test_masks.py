"""torch's masks as those of maskloom: what they are read as, and that layers share what was read."""

import pytest
import torch

import maskloom as loom
from maskloom.nn.convert.masks import AddedTable, masks_of

B, L, S, H = 2, 5, 7, 3
PADS = torch.arange(S) >= torch.tensor([4, 6])[:, None]


def hidden(*front):
    return torch.rand(*front, L, S, generator=torch.Generator().manual_seed(0)) < 0.4


def as_float(table):
    return torch.zeros(table.shape).masked_fill(table, -torch.inf)


@pytest.mark.parametrize("kind", [lambda table: table, as_float], ids=["bool", "float"])
@pytest.mark.parametrize("extra", [0, 2])
def test_both_masks_together(kind, extra):
    table = hidden(B * H)
    masks = masks_of(kind(table), kind(PADS), heads=H, extra=extra)
    expected = torch.nn.functional.pad(~(table.view(B, H, L, S) | PADS[:, None, None]), (0, extra), value=True)
    assert torch.equal(masks.mask.dense(L, S + extra), expected)
    assert masks.score_mod is None  # -inf alone adds nothing, as far as the CPU can see
    assert torch.equal(masks.pads, PADS)


def test_other_floats_are_added():
    table, padding = as_float(hidden()), as_float(PADS)
    table[0, 0], padding[1, 2] = 3.0, -2.0
    table.requires_grad_()
    masks = masks_of(table, padding, heads=H, extra=1)
    assert repr(masks.score_mod) == "compose(added(float32[5, 8]), added(float32[2, 8]))"
    assert torch.equal(masks.mask.dense(L, S + 1)[..., S], torch.ones(B, 1, L, dtype=torch.bool))
    b, h, q, k = (torch.tensor(at) for at in (1, 2, 0, 2))
    score = masks.score_mod(torch.tensor(1.0), b, h, q, k)
    assert score == 1.0 + table[0, 2] - 2.0


def test_one_that_learns_is_added_whatever_it_is_now():
    zeros = torch.zeros(B * H, L, S, requires_grad=True)
    assert isinstance(masks_of(zeros, None, heads=H, extra=0).score_mod, AddedTable)
    assert masks_of(zeros.detach(), None, heads=H, extra=0).score_mod is None


def test_nothing():
    assert masks_of(None, None, heads=H, extra=0) == (None, None, None)


def test_layers_share_a_mask_until_it_is_written_to():
    table, pads = hidden(), PADS.clone()

    def mask(table=table, pads=pads):
        return masks_of(table, pads, heads=H, extra=0).mask

    first = mask()
    assert mask() is first
    assert mask(pads=None) is mask(pads=None) is not first
    assert mask(table=None) is mask(table=None) is not first
    assert mask(table=table.clone()) is not first
    table[0, 3] = ~table[0, 3]
    second = mask()
    assert second is not first
    pads[1, 5] = True
    third = mask()
    assert third is not second
    for written, before in ((mask(), second), (second, first)):
        assert not torch.equal(written.dense(L, S), before.dense(L, S)) or before is second
    assert torch.equal(third.dense(L, S)[:, 0], ~(table | pads[:, None]))


def test_what_is_kept_does_not_keep_its_tensors():
    import gc
    import weakref

    table, pads = hidden(), PADS.clone()
    masks_of(table, pads, heads=H, extra=0)
    left = [weakref.ref(table), weakref.ref(pads)]
    del table, pads
    gc.collect()
    assert [one() for one in left] == [None, None]


def test_added_tables_in_attention():
    table = torch.randn(B, H, L, S, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    query, key = torch.ones(B, H, L, 2, dtype=torch.float64), torch.ones(B, H, S, 2, dtype=torch.float64)
    weights = loom.attention_weights(query, key, score_mod=AddedTable(table, "bhqk"))
    torch.testing.assert_close(weights, table.softmax(-1))
