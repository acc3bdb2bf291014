"""Masks inside documents, by the document's number: plain loops as oracles, laws and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.testing import check_mask
from tests.catalog.packed import MASKS

WITHIN = [name for name in MASKS if name.startswith("within")]


@pytest.mark.parametrize("name", WITHIN)
def test_every_law(name):
    factory, q_len, kv_len = MASKS[name]
    check_mask(factory(), q_len=q_len, kv_len=kv_len)


@given(
    lens=st.lists(st.integers(0, 5), min_size=1, max_size=5), widths=st.lists(st.integers(0, 4), min_size=5, max_size=5)
)
def test_a_window_for_each_document(lens, widths):
    offsets = torch.tensor([0, *lens]).cumsum(0)
    length, back = int(offsets[-1]) + 2, torch.tensor(widths)
    segments = loom.documents(offsets=offsets, length=length)
    by_table = loom.masks.within(segments, lambda b, h, q, k, d: (q >= k) & (q - k <= back[d]))
    by_mask = loom.masks.within(segments, loom.masks.per_document([loom.window(back=width) for width in widths]))
    places = [(d, i) for d, n in enumerate(lens) for i in range(n)] + [None, None]
    expected = [[bool(q and k and q[0] == k[0] and 0 <= q[1] - k[1] <= widths[q[0]]) for k in places] for q in places]
    for mask in (by_table, by_mask):
        assert mask.dense(length, length)[0, 0].tolist() == expected


def test_one_bool_for_each_document():
    two_way = torch.tensor([True, False])
    segments = loom.documents(offsets=[0, 2, 5])
    mask = loom.masks.within(segments, lambda b, h, q, k, d: (q >= k) | two_way[d])
    table = mask.dense(5, 5)[0, 0]
    assert table[:2, :2].all() and torch.equal(table[2:, 2:], torch.ones(3, 3).tril().bool())
    query = torch.randn(1, 2, 5, 8)
    blocks = loom.block_mask(mask, 5, 5, device="cpu")
    torch.testing.assert_close(loom.attend(query, query, query, mask), loom.attend(query, query, query, blocks))


def test_documents_of_each_row_by_their_ids():
    ids = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 0, -1]])
    mask = loom.masks.within(loom.documents(ids), loom.masks.per_document([loom.causal, loom.window(back=0)]))
    picture = [
        ["".join(".x"[cell] for cell in row) for row in table] for table in mask.dense(5, 5)[:, 0].int().tolist()
    ]
    assert picture == [
        ["x....", "xx...", "xxx..", "...x.", "....x"],
        ["x....", ".x...", "..x..", "...x.", "....."],
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_any_dtype(dtype):
    back, ids = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    for inner in (
        loom.masks.per_document([loom.causal, loom.window(back=0), loom.everything]),
        lambda b, h, q, k, d: (q >= k) & (q - k <= back[d]),
    ):
        mask, expected = (loom.masks.within(loom.documents(one), inner) for one in (ids.to(dtype), ids))
        assert torch.equal(mask.dense(7, 7), expected.dense(7, 7))
        blocks = loom.block_mask(mask, 7, 7, device="cpu", block_size=2)
        assert torch.equal(blocks.to_dense(), loom.block_mask(expected, 7, 7, device="cpu", block_size=2).to_dense())
        if isinstance(inner, loom.masks.Mask) or dtype == torch.uint8:
            check_mask(mask, q_len=7, kv_len=7)


def test_reprs():
    segments = loom.documents(offsets=[0, 2, 5])
    mask = loom.masks.within(segments, loom.masks.per_document([loom.causal, loom.causal]), lower_right=False)
    assert repr(mask) == "within(documents(offsets=int64[3]), per_document([causal, causal]))"
    crossed = loom.documents(offsets=[0, 2], kv_offsets=[0, 3])
    assert repr(loom.masks.within(crossed, loom.causal, lower_right=True)) == (
        "within(documents(offsets=int64[2], kv_offsets=int64[2]), causal, lower_right=True)"
    )
    parsed = loom.parse("within(documents(offsets=[0, 2, 5]), per_document([causal, window(back=0)]))")
    assert parsed == loom.masks.within(segments, loom.masks.per_document([loom.causal, loom.window(back=0)]))


def test_a_function_answers_with_a_bool():
    mask = loom.masks.within(loom.documents(offsets=[0, 2, 5]), lambda b, h, q, k, d: (q >= k).float())
    query = torch.randn(1, 2, 5, 8)
    for call in (lambda: mask.dense(5, 5), lambda: loom.attend(query, query, query, mask)):
        with pytest.raises(TypeError, match=r"a mask_mod answers with one bool .* gave float32"):
            call()


def test_inside_compile():
    segments = loom.documents(offsets=[0, 2, 5])
    back = torch.tensor([1, 0])

    def attention(query, back):
        return loom.attend(
            query, query, query, loom.masks.within(segments, lambda b, h, q, k, d: (q - k).abs() <= back[d])
        )

    query = torch.randn(1, 2, 5, 8)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, back), attention(query, back))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: loom.masks.within(loom.documents(offsets=[0, 2, 5, 7]), loom.masks.per_document([loom.causal])),
            ValueError,
            "per_document has masks for 1 documents, 0 to 0; ids go up to 2",
        ),
        (lambda: loom.masks.per_document([]), ValueError, "per_document takes one mask for each document; got none"),
        (lambda: loom.masks.per_document(loom.causal), TypeError, "per_document takes a list .* got causal"),
        (lambda: loom.causal & loom.masks.per_document([loom.causal]), TypeError, "per_document|unsupported"),
        (
            lambda: loom.masks.within(loom.documents(offsets=[0, 2]), loom.causal, lower_right=True),
            TypeError,
            r"lower_right needs documents\(offsets=\.\., kv_offsets=\.\.\); got documents\(offsets",
        ),
        (
            lambda: loom.masks.within(loom.causal, loom.causal),
            TypeError,
            r"within takes documents made by documents\(...\); got causal",
        ),
        (
            lambda: loom.masks.within(loom.documents([0, 0], kv_ids=[0, 1, 0]), loom.causal),
            ValueError,
            "document 0 has 2 pieces",
        ),
        (
            lambda: loom.masks.within(loom.documents(offsets=[0, 2]), lambda b, h, q: q),
            TypeError,
            "takes four arguments",
        ),
        (lambda: loom.parse("per_document([causal])"), loom.ParseError, "per_document"),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
