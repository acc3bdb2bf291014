"""Packed cross-attention: plain loops as oracles, laws and errors."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.testing import check_mask
from tests.catalog.packed import KV_OFFSETS, MASKS, OFFSETS

documents: Any = loom.documents  # also with what types do not allow
CROSSED = [name for name in MASKS if name.startswith("documents")]


@pytest.mark.parametrize("name", CROSSED)
def test_every_law(name):
    factory, q_len, kv_len = MASKS[name]
    check_mask(factory(), q_len=q_len, kv_len=kv_len)


def documents_of(lens, rest):
    """Offsets of documents, and the document and the place inside it of each position; None behind them."""
    places = [(document, place) for document, length in enumerate(lens) for place in range(length)]
    offsets = [sum(lens[:document]) for document in range(len(lens) + 1)]
    return offsets, places + [None] * rest


LENS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5)


@given(lens=LENS, rest=st.integers(1, 3), kv_rest=st.integers(1, 4))
def test_documents_are_those_of_a_plain_loop(lens, rest, kv_rest):
    q_lens, kv_lens = map(list, zip(*lens, strict=True))
    offsets, queries = documents_of(q_lens, rest)
    kv_offsets, keys = documents_of(kv_lens, kv_rest)
    sizes = len(queries), len(keys)
    mask = loom.documents(offsets=offsets, kv_offsets=kv_offsets, length=sizes[0], kv_length=sizes[1])
    aligned = loom.masks.documents_lower_right(offsets, kv_offsets, length=sizes[0])
    for own, inside in (
        (mask, lambda q, k: True),
        (loom.masks.within(mask, loom.causal), lambda q, k: k[1] <= q[1]),
        (aligned, lambda q, k: k[1] - kv_lens[k[0]] <= q[1] - q_lens[q[0]]),
        (
            loom.masks.within(mask, loom.causal, lower_right=True),
            lambda q, k: k[1] - kv_lens[k[0]] <= q[1] - q_lens[q[0]],
        ),
        (
            loom.masks.within(mask, loom.window(back=1), lower_right=True),
            lambda q, k: 0 <= q[1] + kv_lens[q[0]] - q_lens[q[0]] - k[1] <= 1,
        ),
        (
            loom.masks.within(mask, lambda b, h, q, k, d: (q >= k) | (d % 2 == 0)),
            lambda q, k: q[1] >= k[1] or q[0] % 2 == 0,
        ),
    ):
        expected = [[bool(q and k and q[0] == k[0] and inside(q, k)) for k in keys] for q in queries]
        assert own.dense(*sizes)[0, 0].tolist() == expected
        blocks = loom.block_mask(own, *sizes, block_size=(2, 3), device="cpu")
        assert loom.as_mask(blocks.mask_mod).dense(*sizes)[0, 0].tolist() == expected


@given(lens=st.lists(st.integers(0, 5), min_size=1, max_size=5), rest=st.integers(1, 3))
def test_of_equal_lengths_it_is_causal(lens, rest):
    offsets, places = documents_of(lens, rest)
    aligned = loom.masks.documents_lower_right(offsets, offsets, length=len(places))
    causal = loom.causal & loom.documents(offsets=offsets, length=len(places))
    assert torch.equal(aligned.dense(len(places), len(places)), causal.dense(len(places), len(places)))


def test_one_document_is_causal_lower_right():
    for q_len, kv_len in ((2, 5), (5, 2), (3, 3)):
        aligned = loom.masks.documents_lower_right([0, q_len], [0, kv_len])
        assert torch.equal(
            aligned.dense(q_len, kv_len), loom.masks.causal_lower_right(q_len, kv_len).dense(q_len, kv_len)
        )


def test_attention_to_packed_keys_is_that_of_each_document():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 13, 8), torch.randn(1, 2, 17, 8), torch.randn(1, 2, 17, 8)
    mask = loom.documents(offsets=OFFSETS, kv_offsets=KV_OFFSETS, length=13, kv_length=17)
    aligned = loom.masks.documents_lower_right(OFFSETS, KV_OFFSETS, length=13)
    out, out_aligned = loom.attend(query, key, value, mask), loom.attend(query, key, value, aligned)
    pieces = zip(itertools.pairwise(OFFSETS), itertools.pairwise(KV_OFFSETS), strict=True)
    for (start, stop), (kv_start, kv_stop) in pieces:
        if stop == start or kv_stop == kv_start:
            continue
        own = query[:, :, start:stop], key[:, :, kv_start:kv_stop], value[:, :, kv_start:kv_stop]
        torch.testing.assert_close(out[:, :, start:stop], loom.attend(*own))
        lower_right = loom.masks.causal_lower_right(stop - start, kv_stop - kv_start)
        torch.testing.assert_close(out_aligned[:, :, start:stop], loom.attend(*own, lower_right))
    assert not out[:, :, 4:6].any() and not out[:, :, 11:].any()  # a document without keys, and what lies behind all


@pytest.mark.parametrize("name", CROSSED)
def test_what_is_known_to_be_padding_is_hidden(name):
    factory, q_len, kv_len = MASKS[name]
    for mask in (factory(), loom.masks.shifted(factory(), q_offset=[-3, 0, -1], kv_offset=-2)):
        table = mask.dense(q_len - 1, kv_len - 1, batch=3)[:, 0]
        assert not (table & known_padding(mask, kv_len - 1)[:, None]).any()
        assert not (table & known_hidden_queries(mask, q_len - 1)[..., None]).any()


def test_what_was_given_may_be_written_to():
    offsets, kv_offsets = torch.tensor(OFFSETS), torch.tensor(KV_OFFSETS)
    masks = [
        loom.documents(offsets=offsets, kv_offsets=kv_offsets, length=13),
        loom.masks.documents_lower_right(offsets, kv_offsets, length=13),
    ]
    tables = [mask.dense(13, 15) for mask in masks]
    offsets.zero_(), kv_offsets.zero_()
    for mask, table in zip(masks, tables, strict=True):
        assert torch.equal(mask.dense(13, 15), table) and "int64[5]" in repr(mask)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: loom.documents(offsets=[0, 3], kv_offsets=[0, 2, 5]),
            ValueError,
            "of the same documents; got 1 and 2",
        ),
        (lambda: loom.documents(offsets=[0, 3], kv_offsets=[1, 5]), ValueError, "kv_offsets start at 0; got 1"),
        (
            lambda: loom.masks.documents_lower_right([0, 3], [0, 5, 2]),
            ValueError,
            "of the same documents|kv_offsets never fall",
        ),
        (
            lambda: loom.documents(offsets=[0, 3], kv_ids=[0]),
            TypeError,
            "kv_ids goes with ids, and kv_offsets with offsets",
        ),
        (
            lambda: loom.documents([0, 0], kv_offsets=[0, 3]),
            TypeError,
            "kv_ids goes with ids, and kv_offsets with offsets",
        ),
        (lambda: documents(position_ids=[0], kv_ids=[0]), TypeError, "kv_ids goes with ids"),
        (lambda: loom.documents(offsets=[0, 3], kv_length=5), TypeError, "kv_length goes with kv_offsets"),
        (
            lambda: loom.documents(offsets=[0, 3], kv_offsets=[0, 5], kv_length=3),
            ValueError,
            "length is 3, and 5 positions",
        ),
        (lambda: loom.documents([0, 0], kv_ids=[[0, 1, 2]]), ValueError, r"got \(2,\) and \(1, 3\)"),
        (lambda: loom.documents([[0, 0]], kv_ids=[[0], [1]]), ValueError, r"got \(1, 2\) and \(2, 1\)"),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
