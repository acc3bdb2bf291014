"""Positions before 0: padding and segments hide what lies there, tables have no entry for it, and all readings agree."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import maskloom as loom
from maskloom.attention.backends.flash_mask import for_flash, refused
from maskloom.blocks.tile_states import tile_states
from maskloom.masks.dense import dense
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.masks.patterns.position import FirstGlobal, ListedGlobal, MarkedGlobal
from maskloom.testing import check_mask
from tests.catalog import EVERY
from tests.catalog.sources import BATCH, HEADS, SOURCES, K, Q

OFFSETS = [-1, -3, -19, 0, 2, torch.tensor(-2), torch.tensor(1), torch.tensor([-4, 0, 2]), torch.tensor([-30, -1, -7])]
GLOBAL = (FirstGlobal, ListedGlobal, MarkedGlobal)


def names_of_masks():
    """All masks of one batch size that do not compute with the number of the batch row or head."""
    return [name for name in EVERY if "function" not in name and "repeat_heads_given" not in name]


def shifted_dense(mask, q_offset, kv_offset, q_len, kv_len):
    """The mask at shifted positions, False where those are negative: its own table for positions from 0 on."""

    def rows(offset, length):
        first = torch.as_tensor(offset).expand(BATCH)
        return first[:, None] + torch.arange(length)

    q, kv = rows(q_offset, q_len), rows(kv_offset, kv_len)
    table = dense(mask, max(int(q.max()), 0) + 1, max(int(kv.max()), 0) + 1, batch=BATCH, heads=HEADS)
    b = torch.arange(BATCH)[:, None, None]
    found = table.movedim(1, -1)[b, q.clamp(min=0)[:, :, None], kv.clamp(min=0)[:, None]]
    real = (q >= 0)[:, :, None] & (kv >= 0)[:, None]
    return (found & real[..., None]).movedim(-1, 1)


HIDES_BOTH = {
    name: row for name, row in SOURCES.items()
    if not name.startswith(("key_", "query_", "prefix", "global", "per_", "transposed", "repeat", "shifted", "two"))
}  # fmt: skip


@pytest.mark.parametrize("name", HIDES_BOTH)
@pytest.mark.parametrize("q_offset, kv_offset", [(-3, -3), (-19, -2), (torch.tensor([-4, 0, -1]), torch.tensor(-2))])
def test_nothing_before_position_0_sees_or_is_seen(name, q_offset, kv_offset):
    make, tensors, _ = HIDES_BOTH[name]
    mask = make(*tensors)
    moved = loom.masks.shifted(mask, q_offset=q_offset, kv_offset=kv_offset)
    expected = shifted_dense(mask, q_offset, kv_offset, Q, K)
    assert torch.equal(moved.dense(Q, K, batch=BATCH, heads=HEADS), expected)
    assert torch.equal(loom.masks.simplify(moved).dense(Q, K, batch=BATCH, heads=HEADS), expected)


def test_keys_alone_are_hidden_by_padding_of_keys():
    pads = torch.tensor([[False, True, False]])
    moved = loom.masks.shifted(loom.key_padding(pads), q_offset=-2, kv_offset=-2).dense(5, 5)
    assert torch.equal(moved, torch.tensor([0, 0, 1, 0, 1]).bool().expand(1, 1, 5, 5))


def test_nothing_before_position_0_is_global():
    for mask in (
        loom.masks.global_tokens(2),
        loom.masks.global_tokens([0, 1]),
        loom.masks.global_tokens(torch.arange(9) < 2),
    ):
        assert isinstance(mask, GLOBAL)
        moved = loom.masks.shifted(mask, q_offset=-3, kv_offset=torch.tensor(-3)).dense(7, 7)[0, 0]
        own = torch.zeros(7, dtype=torch.bool)
        own[3:5] = True
        assert torch.equal(moved, own[:, None] | own)


def test_position_ids_that_begin_before_0():
    documents = loom.documents(position_ids=torch.tensor([-2, -1, 0, 1, 0, 1]))
    table = loom.masks.within(documents, loom.lengths([2])).dense(6, 6)[0, 0]
    assert not table[:2].any() and not table[:, :2].any() and table[2:4, 2:4].all() and table[4:, 4:].all()


@settings(max_examples=40)
@given(
    st.sampled_from(names_of_masks()),
    st.sampled_from(OFFSETS),
    st.sampled_from(OFFSETS),
    st.booleans(),
    st.integers(1, 5),
)
def test_every_reading_of_a_shifted_mask_agrees(name, q_offset, kv_offset, beside_causal, block):
    make, q_len, kv_len = EVERY[name]
    mask = make() & loom.causal if beside_causal else make()
    most = [max(0, int(torch.as_tensor(offset).max())) for offset in (q_offset, kv_offset)]
    q_len, kv_len = max(1, q_len - most[0]), max(1, kv_len - most[1])
    moved = loom.masks.shifted(mask, q_offset=q_offset, kv_offset=kv_offset)
    try:
        table = moved.dense(q_len, kv_len, batch=BATCH)
    except ValueError:
        return  # for another batch size
    heads = table.shape[1]
    assert torch.equal(loom.masks.simplify(moved).dense(q_len, kv_len, batch=BATCH, heads=heads), table)
    keys, queries = known_padding(moved, kv_len), known_hidden_queries(moved, q_len)
    assert keys is None or not (table & keys[:, None, None]).any()
    assert queries is None or not (table & queries[:, None, :, None]).any()
    options = {"batch": BATCH, "heads": heads, "block_size": block, "device": "cpu"}
    given = [
        loom.block_mask(moved, q_len, kv_len, **options),
        loom.block_mask(mask, q_len, kv_len, q_offset=q_offset, kv_offset=kv_offset, **options),
    ]
    theirs = torch.nn.attention.flex_attention.create_block_mask(moved, BATCH, heads, q_len, kv_len, "cpu", block)
    for blocks in given:
        assert torch.equal(tile_states(blocks), tile_states(theirs))
    if refused(moved, torch.device("cpu")) is None:
        taken = loom.as_mask(for_flash(moved, BATCH, torch.device("cpu")))
        assert torch.equal(taken.dense(q_len, kv_len, batch=BATCH, heads=heads), table)


PIECES = {
    "lengths": lambda: loom.lengths([5, 0, 13]),
    "documents": lambda: loom.documents(offsets=[0, 2, 2, 7], length=13),
    "ids": lambda: loom.documents(torch.arange(13) // 4),
    "padding": lambda: loom.padding(torch.arange(13).expand(BATCH, -1) % 5 == 1),
    "real": lambda: loom.real(torch.arange(13).expand(BATCH, -1) % 5 != 1),
    "window": lambda: loom.window(back=3),
    "ahead": lambda: loom.window(back=5, ahead=2),
    "causal": lambda: loom.causal,
    "within": lambda: loom.masks.within(loom.documents(offsets=[0, 4, 13]), loom.masks.chunked(3)),
    "inner shift": lambda: loom.masks.shifted(loom.causal & loom.lengths([5, 0, 13]), q_offset=-1, kv_offset=2),
    "inner offset": lambda: loom.masks.shifted(
        loom.causal & loom.documents(offsets=[0, 6, 20]), q_offset=5, kv_offset=5
    ),
}
expressions = st.recursive(
    st.sampled_from([make() for make in PIECES.values()]),
    lambda parts: st.one_of(
        parts.map(lambda part: ~part),
        st.lists(parts, min_size=2, max_size=4).map(lambda many: loom.and_masks(loom.causal, *many)),
        st.tuples(parts, parts).map(lambda two: two[0] | two[1]),
        st.tuples(parts, parts).map(lambda two: two[0] ^ two[1]),
        parts.map(loom.masks.transposed),
    ),
    max_leaves=8,
)


@given(expressions, st.sampled_from([o for o in OFFSETS if int(torch.as_tensor(o).max()) <= 0]), st.booleans())
def test_simplify_changes_no_answer_before_position_0(mask, offset, together):
    moved = loom.masks.shifted(mask, q_offset=offset, kv_offset=offset if together else -1)
    expected = moved.dense(13, 11, batch=BATCH, heads=HEADS)
    assert torch.equal(loom.masks.simplify(moved).dense(13, 11, batch=BATCH, heads=HEADS), expected)


def test_left_padding_hides_what_right_padding_hid():
    lens = torch.tensor([3, 7, 5])
    pads = 7 - lens
    mask = loom.masks.shifted(loom.causal & loom.lengths(lens), q_offset=-pads, kv_offset=-pads)
    real = torch.arange(7) >= pads[:, None]
    expected = torch.ones(7, 7).tril().bool() & (real[:, None, :] & real[:, :, None])
    assert torch.equal(mask.dense(7, 7)[:, 0], expected)
    assert torch.equal(known_padding(mask, 7), ~real) and torch.equal(known_hidden_queries(mask, 7), ~real)
    q, k, v = torch.randn(3, 3, 2, 7, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    k[~real[:, None].expand(3, 2, -1)] = torch.nan
    found = loom.attend(q, k, v, mask, clean_padding=True)
    plain, _ = loom.reference(q, k.nan_to_num(), v, expected[:, None])
    torch.testing.assert_close(found, plain)


def test_a_first_query_before_position_0():
    q, k, v = torch.randn(3, 3, 2, 7, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = loom.padding(torch.arange(7).expand(3, -1) > 4)
    for offset in (-2, torch.tensor(-2), torch.tensor([-2, -2, -2])):
        expected, _ = loom.reference(q, k, v, loom.masks.shifted(mask, q_offset=offset))
        torch.testing.assert_close(loom.attend(q, k, v, mask, q_offset=offset), expected)
    assert torch.equal(
        mask.dense(7, 7, q_offset=torch.tensor(-2)), loom.masks.shifted(mask, q_offset=-2).dense(7, 7, batch=3)
    )


def test_simplify_keeps_the_checks_of_lengths():
    mask = loom.causal & loom.documents(offsets=[0, 2, 5])
    words = "the mask reads a table with 5 positions, and there are 9 "
    for form in (mask, loom.masks.simplify(mask)):
        for q_len, kv_len, side in ((5, 9, "keys"), (9, 5, "queries")):
            with pytest.raises(ValueError, match=words + side):
                form.dense(q_len, kv_len)
            with pytest.raises(ValueError, match=words + side):
                loom.block_mask(form, q_len, kv_len)
    mask = loom.causal & loom.lengths([2, 5])
    for form in (mask, loom.masks.simplify(mask)):
        with pytest.raises(ValueError, match="the mask reads a table for 2 batch rows"):
            form.dense(5, 5, batch=3)


def test_an_offset_in_a_tensor_keeps_the_checks_of_lengths():
    mask = loom.padding(torch.zeros(1, 5, dtype=torch.bool))
    for offset in (2, torch.tensor(2), torch.tensor([2])):
        with pytest.raises(ValueError, match="the mask reads a table with 5 positions, and there are 6 queries"):
            loom.block_mask(mask, 4, 5, q_offset=offset)
    for offset in (-4, torch.tensor(-4), torch.tensor([-4])):
        assert loom.block_mask(mask, 9, 5, q_offset=offset) is not None


@pytest.mark.parametrize("offset", [2, 0, torch.tensor([1, 0, 2])])
def test_where_positions_are_known_not_to_be_negative_nothing_looks_out_for_them(offset):
    from maskloom.program.record import record

    mask = loom.causal & loom.padding(torch.zeros(BATCH, K, dtype=torch.bool))
    names = [step.op.overloadpacket.__name__ for step in record(loom.masks.shifted(mask, q_offset=offset), "cpu").steps]
    assert names.count("mul") == isinstance(offset, torch.Tensor)  # for the query alone


def test_shifted_masks_keep_the_laws():
    pads = -torch.tensor([0, 4, 2])
    for mask in (
        loom.causal & loom.documents(offsets=[0, 3, 17]) & loom.lengths([17, 3, 5]),
        loom.masks.per_head(
            [loom.real(torch.arange(17).expand(3, -1) < 11), loom.masks.from_dense(torch.ones(17, 17).bool())]
        ),
    ):
        check_mask(loom.masks.shifted(mask, q_offset=pads, kv_offset=pads))
