"""Simplified masks are equal masks, and simpler where they are meant to be."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import maskloom as loom
from maskloom.masks.known_padding import known_padding
from maskloom.masks.patterns.packed.segments import FromDocumentStart, FromRunStart
from maskloom.masks.patterns.padding import QueryLengths
from tests.all_masks import BATCH, HEADS
from tests.catalog import EVERY

LENS = torch.tensor([5, 0, 13])
COUNTED = loom.documents(position_ids=[3, 4, 0, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5])
COUNTED_BY_ROW = loom.documents(position_ids=torch.tensor([[0, 1, 2, 3, *range(9)], [*range(2, 15)]]))
DOCUMENTS = loom.documents(offsets=[0, 2, 2, 7], length=13)
PIECES = [
    loom.causal,
    loom.window(back=3),
    loom.window(back=5, ahead=2),
    loom.window(back=0, ahead=4),
    loom.lengths(LENS),
    loom.lengths([3, 13, 2], [7, 11, 1]),
    DOCUMENTS,
    loom.documents(torch.arange(13) // 4),
    loom.padding(torch.rand(BATCH, 13, generator=torch.Generator().manual_seed(2)) < 0.3),
    loom.prefix(4),
    loom.sinks(2),
    loom.nothing,
]
expressions = st.recursive(
    st.sampled_from(PIECES),
    lambda parts: st.one_of(
        parts.map(lambda part: ~part),
        st.lists(parts, min_size=2, max_size=4).map(lambda many: loom.and_masks(*many)),
        st.tuples(parts, parts).map(lambda two: two[0] | two[1]),
        st.tuples(parts, parts).map(lambda two: two[0] ^ two[1]),
    ),
    max_leaves=10,
)


@given(expressions)
def test_a_simplified_mask_is_equal(mask):
    simple = loom.masks.simplify(mask)
    for q_len, kv_len in ((13, 13), (11, 13), (13, 7)):
        expected = mask.dense(q_len, kv_len, batch=BATCH, heads=HEADS)
        assert torch.equal(simple.dense(q_len, kv_len, batch=BATCH, heads=HEADS), expected)
    assert loom.masks.simplify(simple).dense(13, 13, batch=BATCH).equal(simple.dense(13, 13, batch=BATCH))


@pytest.mark.parametrize("name", EVERY)
def test_every_mask_simplified_is_equal(name):
    make, q_len, kv_len = EVERY[name]
    for mask in (make(), make() & loom.causal, ~(loom.causal & make()) | loom.window(back=1)):
        assert torch.equal(loom.masks.simplify(mask).dense(q_len, kv_len), mask.dense(q_len, kv_len))


@pytest.mark.parametrize(
    ("mask", "simple"),
    [
        (loom.causal & loom.window(back=5, ahead=2), loom.window(back=5)),
        (loom.window(back=5, ahead=2) & loom.window(back=3, ahead=4), loom.window(back=3, ahead=2)),
        (loom.causal & loom.lengths(LENS), loom.causal & QueryLengths(LENS)),
        (loom.lengths(LENS) & loom.window(back=3), QueryLengths(LENS) & loom.window(back=3)),
        (loom.lengths(LENS) & loom.window(back=3, ahead=1), loom.lengths(LENS) & loom.window(back=3, ahead=1)),
        (
            loom.causal & DOCUMENTS,
            loom.causal & FromDocumentStart(DOCUMENTS.offsets, torch.tensor([0, 0, 2, 2, 2, 2, 2] + [13] * 6).int()),
        ),
        (
            loom.causal & COUNTED,
            loom.causal & FromRunStart(COUNTED.position_ids, torch.tensor([0, 0, 2, 3, 3, 3, 3] + [7] * 6).int()),
        ),
        (
            loom.window(back=3) & COUNTED_BY_ROW,
            loom.window(back=3)
            & FromRunStart(COUNTED_BY_ROW.position_ids, torch.tensor([[0] * 4 + [4] * 9, [0] * 13]).int()),
        ),
        (~(loom.causal & loom.window(back=1)) | loom.prefix(2), ~loom.window(back=1) | loom.prefix(2)),
        (loom.causal & loom.causal, loom.causal),
        (loom.causal | loom.lengths(LENS), loom.causal | loom.lengths(LENS)),
    ],
)
def test_what_becomes_of_masks(mask, simple):
    assert loom.masks.simplify(mask) == simple


@pytest.mark.parametrize(
    "mask",
    [
        loom.causal,
        loom.causal & loom.prefix(3),
        loom.window(back=3) & loom.sinks(2),
        loom.window(back=3) | loom.sinks(2),
        loom.causal ^ loom.sinks(2),
        ~loom.window(back=3),
        loom.masks.shifted(loom.causal & loom.prefix(3), q_offset=2),
        loom.masks.simplify(loom.causal & loom.lengths(LENS)),
    ],
    ids=repr,
)
def test_what_cannot_be_simpler_is_the_mask_itself(mask):
    assert loom.masks.simplify(mask) is mask


def test_padding_stays_known():
    for mask in (loom.causal & loom.lengths(LENS), loom.causal & DOCUMENTS):
        assert torch.equal(known_padding(loom.masks.simplify(mask), 13), known_padding(mask, 13))


def test_the_structure_does_not_depend_on_values():
    from maskloom.core import captures

    keys = {
        captures.structure(loom.masks.simplify(loom.causal & loom.lengths(lens)), numbers=True)
        for lens in ([5, 0, 13], [1, 1, 1], [13, 13, 13])
    }
    assert len(keys) == 1


def test_simplified_masks_keep_the_laws():
    from maskloom.testing import check_mask

    check_mask(loom.causal & QueryLengths(LENS))  # beside causal alone they are what they stand for
    check_mask(loom.causal & FromDocumentStart(DOCUMENTS.offsets, torch.arange(17)), q_len=13, kv_len=17)
    check_mask(loom.masks.simplify(loom.causal & COUNTED), q_len=11, kv_len=13)
    check_mask(loom.masks.simplify(loom.causal & COUNTED_BY_ROW), q_len=11, kv_len=13)
