"""Masks of one sequence and of packed ones: every law, picture and error, torch's tables, and plain loops as oracles."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.masks.known_padding import known_padding
from maskloom.masks.patterns.blockwise import chunked, fixed, strided
from maskloom.masks.patterns.conversations import shared_prefix, turns
from maskloom.masks.patterns.packed.segments import document_prefix, documents
from maskloom.masks.patterns.packed.within import within
from maskloom.masks.patterns.position import global_tokens, key_range, prefix, query_range, random_blocks
from maskloom.masks.patterns.relative import (
    anticausal,
    band,
    causal,
    causal_lower_right,
    dilated,
    window,
    window_both_ways,
    window_counting_itself,
    window_reaching_back,
)
from maskloom.masks.patterns.transforms import per_batch, per_head, repeat_heads, transposed
from maskloom.testing import check_mask, public_names
from tests.blocks.random_masks import differing
from tests.catalog.sequences import CONTINUATIONS, IDS_BY_ROW, KV_LEN, MASKS, POSITION_IDS, Q_LEN, VISIBLE
from tests.masks.test_meanings import drawn


@pytest.mark.parametrize("name", MASKS)
def test_every_law(name):
    factory, q_len, kv_len = MASKS[name]
    check_mask(factory(), q_len=q_len, kv_len=kv_len)


@pytest.mark.parametrize("block", [4, (8, 2)])
@pytest.mark.parametrize("name", MASKS)
def test_tables_are_those_of_torch(name, block):
    factory, q_len, kv_len = MASKS[name]
    mask = factory()
    batch, heads = mask.dense(q_len, kv_len).shape[:2]
    ours = loom.create_block_mask(mask, batch, heads, q_len, kv_len, "cpu", block)
    assert differing(ours, flex.create_block_mask(mask, batch, heads, q_len, kv_len, "cpu", block)) == []
    assert (
        loom.blocks.explain_block_mask(mask, q_len, kv_len, device="cpu", block_size=block).decided.unsupported_ops
        == ()
    )


# -- pictures ----------------------------------------------------------------------------------------------------------

PACKED = documents(offsets=[0, 2, 5])


@pytest.mark.parametrize(
    ("mask", "picture"),
    [
        (anticausal, "xxxx .xxx ..xx ...x"),
        (strided(2, factor=1), "x..... xx.... xxx... .xxx.. ..xxx. ...xxx"),
        (fixed(3, factor=1), "x..... xx.... xxx... ...x.. ...xx. ...xxx"),
        (documents(position_ids=[0, 1, 0, 1, 2]), "xx... xx... ..xxx ..xxx ..xxx"),
        (PACKED & causal | document_prefix(PACKED, [1, 2]), "x.... xx... ..xx. ..xx. ..xxx"),
    ],
)
def test_pictures_that_no_docstring_draws(mask, picture):
    lines = picture.split()
    assert drawn(mask, len(lines), len(lines[0])) == lines


def test_pictures_of_each_head_and_row():
    heads, rows = per_head([causal, window(back=0)]), per_batch([causal, window(back=0)])
    triangle, diagonal = torch.ones(3, 3).tril().bool(), torch.eye(3).bool()
    assert torch.equal(heads.dense(3, 3), torch.stack([triangle, diagonal])[None])
    assert torch.equal(rows.dense(3, 3), torch.stack([triangle, diagonal])[:, None])
    assert torch.equal(repeat_heads(heads, 2).dense(3, 3), torch.stack([triangle, triangle, diagonal, diagonal])[None])
    assert torch.equal(repeat_heads(per_head([causal]), 2).dense(3, 3, heads=2), triangle.expand(1, 2, 3, 3))


# -- meanings, in plain loops ------------------------------------------------------------------------------------------


def agrees(mask, sees, q_len=Q_LEN, kv_len=KV_LEN):
    """Whether a mask is what ``sees(b, h, q, kv)`` says of Python ints."""
    table = mask.dense(q_len, kv_len)
    batch, heads = table.shape[:2]
    return table.tolist() == [
        [[[bool(sees(b, h, q, kv)) for kv in range(kv_len)] for q in range(q_len)] for h in range(heads)]
        for b in range(batch)
    ]


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_dilated_counts_steps_from_the_query(step):
    seen = {-back for back in range(0, 8, step)} | set(range(0, 5, step))
    assert agrees(dilated(back=7, ahead=4, step=step), lambda b, h, q, kv: kv - q in seen)


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_factors_of_sparse_transformers(stride):
    def near(b, h, q, kv):
        return kv in range(max(0, q - stride), q + 1)

    def far(b, h, q, kv):
        return kv in range(q, -1, -stride)

    assert agrees(strided(stride, factor=1), near)
    assert agrees(strided(stride, factor=2), far)
    assert strided(stride, factor=2).dense(13, 13).equal(dilated(back=13, step=stride).dense(13, 13))
    both = (strided(stride, factor=1) | strided(stride, factor=2)).dense(13, 17)
    assert both.equal(strided(stride).dense(13, 17))


@pytest.mark.parametrize(("stride", "summary"), [(1, 1), (4, 1), (5, 3), (3, 3)])
def test_fixed_factors(stride, summary):
    ends = {start + stride - 1 - i for start in range(0, KV_LEN, stride) for i in range(summary)}
    assert agrees(fixed(stride, summary=summary, factor=2), lambda b, h, q, kv: kv in ends and kv <= q)
    assert fixed(stride, factor=1).dense(13, 17).equal((causal & chunked(stride)).dense(13, 17))
    both = fixed(stride, summary=summary, factor=1) | fixed(stride, summary=summary, factor=2)
    assert both.dense(13, 17).equal(fixed(stride, summary=summary).dense(13, 17))


@pytest.mark.parametrize(("stride", "summary"), [(5, 2), (4, 1), (6, 3), (3, 3)])
def test_heads_with_parts_of_their_own(stride, summary):
    """As in the Sparse Transformer's code: head h has part h % parts, from the end of the block."""
    parts, heads = stride // summary, 7
    ends = [[stride - 1 - summary * part - i for i in range(summary)] for part in range(parts)]

    def far(b, h, q, kv):
        return kv <= q and kv % stride in ends[h % parts]

    part = torch.arange(heads) % parts
    assert agrees(fixed(stride, summary=summary, factor=2, part=part), far)
    both = fixed(stride, summary=summary, part=part.tolist())
    assert agrees(both, lambda b, h, q, kv: far(b, h, q, kv) or (kv <= q and kv // stride == q // stride))
    one_by_one = per_head([fixed(stride, summary=summary, part=number % parts) for number in range(heads)])
    assert torch.equal(both.dense(Q_LEN, KV_LEN), one_by_one.dense(Q_LEN, KV_LEN))
    assert fixed(stride, summary=summary, part=0) == fixed(stride, summary=summary)


def test_one_thing_by_two_names():
    def same(mask, other):
        return mask.dense(Q_LEN, KV_LEN).equal(other.dense(Q_LEN, KV_LEN))

    assert window_counting_itself(4) == window(back=3)
    assert window_reaching_back(4) == window(back=4)
    assert window_both_ways(3) == window(back=3, ahead=3)
    assert same(anticausal, transposed(causal))
    assert same(band(-3, 2), window(back=3, ahead=2))
    assert same(dilated(back=3, ahead=2, step=1), window(back=3, ahead=2))
    assert same(causal_lower_right(13, 17), loom.masks.shifted(causal, q_offset=4))
    assert same(query_range(2, 7), transposed(key_range(2, 7)))
    assert same(prefix(5), key_range(0, 5))
    assert same(global_tokens(3), global_tokens([2, 0, 1]))
    assert transposed(transposed(causal)) is causal
    assert repeat_heads(causal, 4) is causal
    assert global_tokens([3, 1, 3]) == global_tokens((1, 3))


def test_ranges_of_each_row():
    starts, stops = [0, 3, 5], [17, 3, 11]
    assert agrees(key_range(starts, stops), lambda b, h, q, kv: starts[b] <= kv < stops[b])
    assert agrees(query_range(torch.tensor(starts), 12), lambda b, h, q, kv: starts[b] <= q < 12)


def test_random_blocks_are_drawn_once_and_alone():
    before = torch.get_rng_state()
    mask = random_blocks(block_size=3, blocks=2, length=17, seed=5)
    assert torch.get_rng_state().equal(before)
    assert mask == random_blocks(block_size=3, blocks=2, length=17, seed=5)
    assert mask != random_blocks(block_size=3, blocks=2, length=17, seed=6)
    table = mask.dense(17, 17)[0, 0]
    for block in range(6):
        rows = table[3 * block : 3 * block + 3]
        assert (rows == rows[0]).all()
        assert sum(bool(rows[0, 3 * key]) for key in range(6)) == 2
        assert all(len(set(rows[0, 3 * key : 3 * key + 3].tolist())) == 1 for key in range(6))
    with pytest.raises(ValueError, match="table with 17 positions, and there are 19 keys"):
        mask.dense(17, 19)


def test_documents_begin_where_positions_do_not_count_up():
    document, ids = -1, []
    places = POSITION_IDS.tolist()
    for i, place in enumerate(places):
        document += i == 0 or place != places[i - 1] + 1
        ids.append(document)
    assert agrees(documents(position_ids=POSITION_IDS), lambda b, h, q, kv: ids[q] == ids[kv])
    narrow = torch.tensor([254, 255, 0, 1], dtype=torch.uint8)
    assert drawn(documents(position_ids=narrow), 4, 4) == ["xx..", "xx..", "..xx", "..xx"]


def test_positions_restart_in_each_document():
    rows = IDS_BY_ROW.tolist()

    def place(b, i):
        return i - rows[b].index(rows[b][i])

    def sees(b, h, q, kv):
        own = rows[b][q] == rows[b][kv] >= 0
        return own and place(b, q) // 3 == place(b, kv) // 3 and place(b, kv) % 2 == 0

    assert agrees(within(documents(IDS_BY_ROW), lambda b, h, q, kv: (q // 3 == kv // 3) & (kv % 2 == 0)), sees)


def test_position_ids_are_the_positions_inside():
    continued = documents(position_ids=[3, 4, 5, 0, 1, 2])
    assert drawn(within(continued, chunked(2)), 6, 6) == ["x.....", ".xx...", ".xx...", "...xx.", "...xx.", ".....x"]
    assert drawn(document_prefix(continued, [1, 2]), 6, 6) == ["x....."] * 3 + ["...xx."] * 3


def test_prefix_of_each_document():
    rows, n = IDS_BY_ROW.tolist(), [[2, 7, 0], [1, 0, 3], [0, 5, 0]]

    def sees(b, h, q, kv):
        document = rows[b][q]
        return document == rows[b][kv] >= 0 and kv - rows[b].index(document) < n[b][document]

    assert agrees(document_prefix(documents(IDS_BY_ROW), n), sees)
    same_for_all = document_prefix(documents(IDS_BY_ROW), [2, 2, 2])
    assert same_for_all.dense(13, 17).equal(within(documents(IDS_BY_ROW), prefix(2)).dense(13, 17))


def test_continuations_see_the_prompt_and_themselves():
    ids = CONTINUATIONS.tolist()

    def sees(b, h, q, kv):
        return kv <= q and ids[q] >= 0 and ids[kv] in (0, ids[q])

    assert agrees(shared_prefix(ids=CONTINUATIONS), sees)
    assert shared_prefix(3, [4, 5, 3], length=17) == shared_prefix(ids=CONTINUATIONS.int())
    ragged = shared_prefix([3, 0], [[2, 1], [4, 0]])
    assert ragged.ids.tolist() == [[0, 0, 0, 1, 1, 2], [1, 1, 1, 1, -1, -1]]


def test_turns_see_what_the_rule_says():
    rows = IDS_BY_ROW.tolist()

    def sees(b, h, q, kv):
        return min(rows[b][q], rows[b][kv]) >= 0 and VISIBLE[rows[b][q], rows[b][kv]]

    assert agrees(turns(IDS_BY_ROW, visible=VISIBLE), sees)
    assert (
        turns(IDS_BY_ROW[0].to(torch.uint8), visible=VISIBLE)
        .dense(13, 17)
        .equal(turns(IDS_BY_ROW[0], visible=VISIBLE).dense(13, 17))
    )


def test_offsets_of_each_row():
    starts = [0, 4, 2]
    assert agrees(loom.masks.shifted(causal, q_offset=torch.tensor(starts)), lambda b, h, q, kv: q + starts[b] >= kv)
    assert agrees(
        loom.masks.shifted(chunked(5), q_offset=[0, -4, -2], kv_offset=torch.tensor([0, -4, -2])),
        lambda b, h, q, kv: (q - starts[b]) // 5 == (kv - starts[b]) // 5,
    )
    blocks = loom.block_mask(causal, Q_LEN, KV_LEN, q_offset=torch.tensor(starts), device="cpu", block_size=4)
    shifted_blocks = loom.block_mask(
        loom.masks.shifted(causal, q_offset=starts), Q_LEN, KV_LEN, device="cpu", block_size=4
    )
    assert differing(blocks, shifted_blocks) == []
    assert blocks.mask_mod == loom.masks.shifted(causal, q_offset=torch.tensor(starts))
    assert repr(loom.masks.shifted(causal, q_offset=[1, 2])) == "shifted(causal, q_offset=int64[2], kv_offset=0)"


def test_padding_is_known_where_segments_have_it():
    assert known_padding(causal & within(documents(offsets=[0, 2, 3], length=5), causal), 5).tolist() == [
        [False, False, False, True, True]
    ]
    assert known_padding(shared_prefix(1, [2], length=5), 4).tolist() == [[False, False, False, True]]
    assert known_padding(turns([0, -1, 0], visible=[[True]]), 3).tolist() == [[False, True, False]]


@pytest.mark.parametrize("name", ["global_listed", "random_blocks", "bigbird", "per_head_equal"])
def test_reprs_of_masks_made_of_numbers_evaluate(name):
    mask = MASKS[name][0]()
    for made in (mask, transposed(mask), per_batch([mask, causal]), repeat_heads(per_head([causal, mask]), 3)):
        assert eval(repr(made), public_names()) == made


def test_equal_masks_of_heads_share_the_work():
    mask = per_head([causal, window(back=2), causal, window(back=2), window(back=2)])
    assert mask.parts == (causal, window(back=2))
    assert mask.which.tolist() == [0, 1, 0, 1, 1]
    lens = [loom.lengths([5, 7]) for _ in range(2)]  # equal, and only their values say so
    assert per_head([*lens, lens[0]]).which.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("mask", "sizes", "words"),
    [
        (per_head([causal, anticausal]), {"heads": 5}, "heads .H. is 5, and the mask reads a table for 2 heads"),
        (per_batch([causal, anticausal]), {"batch": 3}, "batch .B. is 3, and the mask reads a table for 2 batch rows"),
        (
            repeat_heads(per_head([causal, anticausal]), 3),
            {"heads": 2},
            "heads .H. is 2, and the mask reads a table for 6",
        ),
        (per_batch([causal, loom.lengths([1, 2, 3])]), {}, "different numbers of batch rows: 2 and 3"),
    ],
)
def test_counts_that_do_not_fit(mask, sizes, words):
    with pytest.raises(ValueError, match=words):
        mask.dense(5, 7, **sizes)


# -- any lengths -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_documents_are_the_same_however_they_are_given(lens, rest):
    offsets = loom.batches.offsets_from_lengths(lens)
    length = int(offsets[-1])
    ids = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens))
    position_ids = torch.cat([torch.arange(one) for one in lens])
    ways = [documents(offsets=offsets), documents(ids), documents(position_ids=position_ids)]
    inside = [within(way, causal & chunked(2) | prefix(1)) for way in ways]
    for way, mask in zip(ways[1:], inside[1:], strict=True):
        assert way.dense(length, length).equal(ways[0].dense(length, length))
        assert mask.dense(length, length).equal(inside[0].dense(length, length))
    longer = within(documents(offsets=offsets, length=length + rest), causal)
    alone = [causal.dense(one, one)[0, 0] for one in [*lens, *[1] * rest]]
    expected = torch.block_diag(*alone).bool()
    expected[length:] = False
    assert longer.dense(length + rest, length + rest)[0, 0].equal(expected)


@given(st.integers(0, 5), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_each_continuation_behind_the_prompt_is_causal(prompt, lens):
    length = prompt + sum(lens)
    assume(length > 0)
    table = shared_prefix(prompt, lens).dense(length, length)[0, 0]
    begin = prompt
    for one in lens:
        own = [*range(prompt), *range(begin, begin + one)]
        assert table[own][:, own].equal(torch.ones(len(own), len(own)).tril().bool())
        assert not table[begin : begin + one, prompt:begin].any()
        begin += one


# -- words -------------------------------------------------------------------------------------------------------------

REAL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: anticausal(), TypeError, "anticausal is itself a mask, .*: write anticausal, without brackets"),
        (lambda: causal(), TypeError, "causal is itself a mask, .*: write causal, without brackets"),
        (lambda: window_counting_itself(0), ValueError, "size is a number of positions, at least 1; got 0"),
        (lambda: window_reaching_back(-1), ValueError, "size is a number of positions, at least 0; got -1"),
        (lambda: window_both_ways(1.5), TypeError, "size is a number of positions, an int; got float: 1.5"),
        (lambda: band(2, -1), ValueError, "from low up to high; got low=2 and high=-1"),
        (lambda: band(0.5, 1), TypeError, "low is a distance in positions, an int; got float: 0.5"),
        (lambda: dilated(back=3, step=0), ValueError, "step is a number of positions, at least 1; got 0"),
        (lambda: strided(0), ValueError, "stride is a number of positions, at least 1; got 0"),
        (lambda: strided(3, factor=3), ValueError, "factor is 1 for the near keys, 2 for the far ones.*; got 3"),
        (lambda: fixed(3, factor=True), ValueError, "got True"),
        (lambda: fixed(5, summary=2, part=2), ValueError, "part is one of the 2 parts of a block, 0 to 1; got 2"),
        (lambda: fixed(5, part=[0, 5]), ValueError, "the 5 parts of a block, 0 to 4; got 5"),
        (lambda: fixed(5, part=-1), ValueError, "part is a number of parts, at least 0; got -1"),
        (lambda: fixed(5, part=[[0]]), ValueError, r"one for each head, \(H,\); got shape \(1, 1\)"),
        (lambda: fixed(5, part=[0.5]), TypeError, "part are integers; got torch.float32"),
        (lambda: fixed(3, summary=4), ValueError, "summary is a part of a block of stride=3 positions; got 4"),
        (lambda: chunked(0), ValueError, "size is a number of positions, at least 1; got 0"),
        (lambda: causal_lower_right(0, 3), ValueError, "q_len is a number of positions, at least 1; got 0"),
        (lambda: key_range(5, 2), ValueError, "stop is not before start; got start=5 and stop=2"),
        (lambda: query_range([1, 4], 3), ValueError, "stop is not before start; got start=4 and stop=3"),
        (lambda: key_range([1, 4], [3, 5, 7]), ValueError, "start has 2 batch rows and stop has 3"),
        (lambda: key_range(-1, 2), ValueError, "start is a number of positions, at least 0; got -1"),
        (lambda: global_tokens(-1), ValueError, "positions is a number of positions, at least 0; got -1"),
        (lambda: global_tokens([2, -1]), ValueError, r"none negative; got \[2, -1\]"),
        (lambda: global_tokens([]), ValueError, r"at least one, none negative; got \[\]"),
        (lambda: global_tokens([1.5]), TypeError, "each of positions is a position, an int; got float: 1.5"),
        (lambda: global_tokens(torch.tensor([1, 2])), TypeError, "positions is a bool tensor, True = global; got"),
        (lambda: global_tokens(REAL[None]), ValueError, r"positions has shape \(L,\) or \(B, L\), .* got \(1, 2, 3\)"),
        (
            lambda: random_blocks(block_size=4, blocks=4, length=9, seed=0),
            ValueError,
            "blocks is 4, and 9 positions in blocks of 4 make 3",
        ),
        (
            lambda: random_blocks(block_size=4, blocks=-1, length=9, seed=0),
            ValueError,
            "blocks is a number of blocks, at least 0; got -1",
        ),
        (
            lambda: random_blocks(block_size=4, blocks=1, length=9, seed=0.5),
            TypeError,
            "seed is the seed of the draw, an",
        ),
        (lambda: loom.real(REAL, REAL.int() * 3), ValueError, "kv_is_real holds 0 and 1; got values from 3 to 3"),
        (lambda: loom.real(REAL, REAL[:1]), ValueError, "is_real has 2 batch rows and kv_is_real has 1"),
        (lambda: documents([0], position_ids=[0]), TypeError, "got ids and position_ids"),
        (lambda: documents(position_ids=[0], length=3), TypeError, "take no length="),
        (lambda: documents(position_ids=[0.5]), TypeError, "position_ids are integers; got torch.float32"),
        (lambda: documents(position_ids=REAL.int()[None]), ValueError, r"position_ids has shape \(L,\) or \(B, L\)"),
        (lambda: documents(offsets=[0, 3], length=0), ValueError, "length is a number of positions, at least 1; got 0"),
        (lambda: within(causal, causal), TypeError, "within takes documents made by documents.* got causal"),
        (
            lambda: within(documents([0, 1, 0]), causal),
            ValueError,
            "within needs documents in one piece, .*; document 0 has 2 pieces$",
        ),
        (
            lambda: within(documents([[0, 1, 1], [2, -1, 2]]), causal),
            ValueError,
            "document 2 has 2 pieces in row 1",
        ),
        (lambda: within(PACKED, 3), TypeError, "a mask is a function"),
        (
            lambda: document_prefix(PACKED, [1]),
            ValueError,
            "n has numbers for 1 documents, 0 to 0; ids go up to 1",
        ),
        (lambda: document_prefix(PACKED, [1, -2]), ValueError, "n are numbers of positions, at least 0; got -2"),
        (lambda: document_prefix(PACKED, [[1, 2]]), ValueError, r"got shape \(1, 2\) for ids of shape \(5,\)"),
        (lambda: shared_prefix(), TypeError, "shared_prefix takes one of continuation_lengths, ids; got none"),
        (lambda: shared_prefix(3), TypeError, "got none"),
        (lambda: shared_prefix(3, ids=[0, 1]), TypeError, "together, or ids alone"),
        (lambda: shared_prefix(3, [2], length=4), ValueError, "length is 4, and 5 positions are filled"),
        (lambda: shared_prefix(0, [0]), ValueError, "a row has at least 1 position; got 0"),
        (lambda: shared_prefix(3, [2, -1]), ValueError, "continuation_lengths are .* at least 0; got -1"),
        (lambda: shared_prefix([3, 2], [[1]]), ValueError, "prefix_length has 2 .* continuation_lengths has 1"),
        (
            lambda: documents(offsets=torch.tensor([0, 9, 4], dtype=torch.uint8)),
            ValueError,
            "never fall; got 9 and then 4",
        ),
        (lambda: turns(visible=VISIBLE), TypeError, "turns takes one of ids, offsets; got none"),
        (lambda: turns([0, 3], visible=VISIBLE), ValueError, "a rule for 3 turns, 0 to 2; ids go up to 3"),
        (lambda: turns([0], visible=[[1]]), TypeError, r"visible is bool \(T, T\), .* got torch.int64"),
        (lambda: turns([0], visible=VISIBLE[:2]), ValueError, r"visible has shape \(T, T\), .* got \(2, 3\)"),
        (lambda: per_head([]), ValueError, "per_head takes one mask for each head; got none"),
        (lambda: per_batch(causal), TypeError, "a list with one mask for each batch row; got causal"),
        (lambda: per_head([causal, 3]), TypeError, "a mask is a function .* got int: 3"),
        (lambda: repeat_heads(causal, 0), ValueError, "times is a number of heads, at least 1; got 0"),
        (lambda: repeat_heads(lambda b, h, q, k: q >= k + h, 2), ValueError, "pass heads="),
        (lambda: repeat_heads(per_head([causal, anticausal]), 2, heads=3), ValueError, "is 3, .* for 2 heads"),
        (
            lambda: causal.dense(3, 5, q_offset=torch.tensor([1, 2])),
            ValueError,
            r"one position for all .* shape \(2,\)",
        ),
        (
            lambda: loom.masks.shifted(causal, q_offset=True),
            TypeError,
            "q_offset is a position, an int or .*; got True",
        ),
        (lambda: loom.masks.shifted(causal, q_offset=[]), ValueError, r"q_offset are integers, at least one; got \[\]"),
        (lambda: loom.masks.shifted(causal, kv_offset=torch.tensor(1.0)), TypeError, "kv_offset .*; got torch.float32"),
        (
            lambda: loom.masks.shifted(causal, kv_offset=[[1], [2]]),
            ValueError,
            r"kv_offset is one position, or one for each batch row, \(B,\); got shape \(2, 1\)",
        ),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
