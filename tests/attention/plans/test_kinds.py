"""A plan for a mask of a structure that was seen before is what a plan made from nothing would be."""

import gc
import importlib
import weakref

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import maskloom as loom
from maskloom.attention.backends import base
from maskloom.attention.plans import kinds
from maskloom.blocks import construct, index_tables
from maskloom.blocks.dense import dense_of
from maskloom.blocks.replay import kinds as kinds_of_blocks
from maskloom.blocks.tile_states import PARTIAL, tile_states
from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from tests.all_masks import ALL_MASKS, BATCH, HEADS, KV_LEN, Q_LEN
from tests.attention.test_host_cost import count_calls, launches  # noqa: F401 - a fixture

attending = importlib.import_module("maskloom.attention.attend")
D = 64
CHANGING = [name for name, make in ALL_MASKS.items() if captures.tensors(make()) and name != "documents_packed"]


@pytest.fixture(autouse=True)
def known(monkeypatch, launches):  # noqa: F811
    """No kinds but those of one test; tensors of which no values are read, as on a GPU."""
    monkeypatch.setattr(kinds, "readable", lambda tensor: False)
    monkeypatch.setattr(kinds, "_kinds", LRU(256))
    monkeypatch.setattr(kinds, "_exact", LRU(256))
    for module in (kinds, attending):  # sizes are small here: tiles would not be told apart
        monkeypatch.setattr(module, "visits_all", lambda *given: False)
    return kinds._kinds


@pytest.fixture
def few_tiles(known, monkeypatch):
    for module in (kinds, attending):
        monkeypatch.setattr(module, "visits_all", base.visits_all)


@loom.masks.mask_dataclass
class Permuted(loom.Mask):
    """Visible are the keys whose places a table allows."""

    table: torch.Tensor
    places: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.table[self.places[kv_idx]]


def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, HEADS, length, D, generator=generator).bfloat16() for length in (Q_LEN, KV_LEN, KV_LEN)]


def variants(mask):
    """The mask, and others of its structure."""
    rolled = captures.moved(mask, lambda table: table.roll(1, 0))
    return [mask, rolled, captures.moved(mask, lambda table: table.flip(0)), captures.moved(rolled, torch.clone)]


def is_right(launched, mask):
    blocks = launched[4]
    expected = mask.dense(Q_LEN, KV_LEN, batch=BATCH, heads=HEADS)
    return torch.equal(dense_of(blocks, BATCH, HEADS).expand_as(expected), expected)


@pytest.mark.parametrize("backend", ["triton", "flash"])
@pytest.mark.parametrize("name", CHANGING)
def test_masks_of_one_structure(name, backend, launches, known):  # noqa: F811
    qkv = inputs()
    for mask in variants(ALL_MASKS[name]()):
        loom.attend(*qkv, mask, backend=backend)
        assert is_right(launches[-1], mask)
    assert [type(kind).__name__ for kind in known.entries().values()] in (["_Kind"], ["str"])


@pytest.mark.parametrize("backend", ["triton", "flash"])
@pytest.mark.parametrize("name", CHANGING)
def test_few_tiles_are_all_visited(name, backend, launches, known, few_tiles):  # noqa: F811
    """The tables are those of the sizes, whatever is in the mask."""
    qkv = inputs()
    for mask in variants(ALL_MASKS[name]()):
        loom.attend(*qkv, mask, backend=backend)
        assert is_right(launches[-1], mask)
        assert (tile_states(launches[-1][4]) == PARTIAL).all()
    assert len({id(launched[4].kv_indices) for launched in launches}) == 1
    assert [type(kind).__name__ for kind in known.entries().values()] in (["_Kind"], ["str"])


def test_tensors_that_changed_are_no_work_where_tiles_are_few(launches, known, few_tiles, monkeypatch):  # noqa: F811
    qkv, lens = inputs(), torch.tensor([5, 13, 2])
    mask = loom.causal & loom.lengths(lens)
    for _ in range(3):
        lens.add_(1)
        loom.attend(*qkv, mask, backend="triton")
    (kind,) = known.entries().values()
    assert kind.recipe.bare.visits_all and kind.recipe.states is None and kind.recipe.derive is None
    monkeypatch.setattr(index_tables, "to_block_mask", None)
    monkeypatch.setattr(kinds_of_blocks, "to_block_mask", None)
    monkeypatch.setattr(kinds._Kind, "plan_for", None)
    for _ in range(2):
        lens.add_(1)
        loom.attend(*qkv, mask, backend="triton")
        assert is_right(launches[-1], mask)
    reference = weakref.ref(mask)
    del mask
    launches.clear()
    gc.collect()
    assert reference() is None


def test_plans_that_last_are_of_one_call_and_of_the_same_tensors(launches, known, few_tiles):  # noqa: F811
    qkv, lens = inputs(), torch.tensor([5, 13, 2])
    mask = loom.causal & loom.lengths(lens)
    wider = [torch.cat((tensor, tensor), -1) for tensor in qkv]
    for _ in range(4):
        lens.add_(1)
        for given in (qkv, wider):
            loom.attend(*given, mask, backend="triton")
            assert launches[-1][0].shape[-1] == given[0].shape[-1] and is_right(launches[-1], mask)
    lens.data = lens.int()  # a compiled graph is of one dtype
    loom.attend(*qkv, mask, backend="triton")
    assert launches[-1][4].mask_mod.parts[1].lens.dtype == torch.int32 and len(known) == 3
    lens.resize_(2)
    with pytest.raises(ValueError, match="2"):
        loom.attend(*qkv, mask, backend="triton")


@pytest.mark.parametrize(
    "make",
    [
        lambda: loom.masks.shifted(loom.key_padding(torch.rand(BATCH, KV_LEN) < 0.3), kv_offset=5),
        lambda: loom.masks.shifted(loom.masks.from_dense(torch.rand(Q_LEN, KV_LEN) < 0.5), q_offset=1),
    ],
)
@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_positions_beyond_a_table_are_errors_where_all_tiles_are_visited(make, backend, launches, few_tiles):  # noqa: F811
    for _ in range(4):
        with pytest.raises(ValueError, match="reads position"):
            loom.attend(*inputs(), make(), backend=backend, q_offset=0)
    assert not launches


def test_with_options_for_the_kernel_tiles_are_skipped(launches, few_tiles):  # noqa: F811
    """They may say that the first tile of each row shows something."""
    query, key, value = (torch.randn(BATCH, HEADS, 300, D).bfloat16() for _ in range(3))
    mask = loom.key_padding(torch.arange(300).expand(BATCH, -1) < 140)
    loom.attend(query, key, value, mask, backend="triton", kernel_options={"ROWS_GUARANTEED_SAFE": True})
    assert not tile_states(launches[-1][4])[..., 0].any()


@pytest.mark.parametrize("backend", ["triton", "flash"])
@pytest.mark.parametrize("name", CHANGING)
def test_block_masks_of_one_structure(name, backend, launches, known):  # noqa: F811
    qkv = inputs()
    for mask in variants(ALL_MASKS[name]()):
        blocks = loom.block_mask(mask, Q_LEN, KV_LEN, batch=BATCH, heads=HEADS)
        loom.attend(*qkv, blocks, backend=backend)
        assert is_right(launches[-1], mask)
        assert launches[-1][4].kv_indices is blocks.kv_indices


def test_most_masks_have_kinds(known):
    qkv = inputs()
    for name in CHANGING:
        for mask in variants(ALL_MASKS[name]()):
            loom.attend(*qkv, mask, backend="triton")
    found = list(known.entries().values())
    assert sum(isinstance(kind, kinds._Kind) for kind in found) >= 0.8 * len(found)


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_packed_documents(backend, launches, known):  # noqa: F811
    """Their simpler form holds tensors that are computed from theirs."""
    qkv = [tensor[:, :, :Q_LEN] for tensor in inputs()]
    for ends in ([0, 2, 2, 11], [0, 1, 7, 13], [0, 4, 9, 9], [0, 13, 13, 13], [0, 3, 5, 12]):
        mask = loom.causal & loom.documents(offsets=torch.tensor(ends), length=Q_LEN)
        loom.attend(*qkv, mask, backend=backend)
        expected = mask.dense(Q_LEN, Q_LEN)
        assert torch.equal(dense_of(launches[-1][4], BATCH, HEADS).expand_as(expected), expected)
    assert [type(kind).__name__ for kind in known.entries().values()] == ["_Kind"]


def test_packed_documents_of_many_numbers_are_of_two_kinds(launches, known):  # noqa: F811
    """17 to 32 of them, and 33 to 64: their offsets have as many entries, whose last ones are alike."""
    qkv = [torch.randn(1, 1, 211, D).bfloat16() for _ in range(3)]
    for number in (17, 30, 33, 64, 32, 50, 21, 40):
        ends = torch.randint(212, (number + 1,)).sort().values
        ends[0] = 0
        mask = loom.causal & loom.documents(offsets=ends, length=211)
        loom.attend(*qkv, mask, backend="triton")
        assert torch.equal(dense_of(launches[-1][4], 1, 1), mask.dense(211, 211))
        assert torch.equal(loom.batches.document_ids(offsets=ends, length=211), mask.parts[1].ids)
    assert [type(kind).__name__ for kind in known.entries().values()] == ["_Kind"] * 2


def test_a_mask_whose_reads_depend_on_values_has_no_kind(launches, known):  # noqa: F811
    """A table read at the entries of another: where one is negative, the kernel gets another form of the mask."""
    table = torch.rand(KV_LEN) < 0.5
    for places in (torch.arange(KV_LEN), torch.arange(KV_LEN).flip(0), torch.arange(KV_LEN) - 5, torch.arange(KV_LEN)):
        mask = Permuted(table, places)
        loom.attend(*inputs(), mask, backend="triton")
        assert is_right(launches[-1], mask)
    assert not any(isinstance(kind, kinds._Kind) for kind in known.entries().values())


@loom.masks.mask_dataclass
class Row(loom.Mask):
    """Visible are the keys that a row allows."""

    row: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.row[kv_idx]


@loom.masks.mask_dataclass
class SecondRow(loom.Mask):
    """Its simpler form computes with a view of its table."""

    table: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.table[1, kv_idx]

    def beside_causal(self):
        return Row(self.table[1].roll(0))


SCORES = {
    "softcap": lambda: loom.scores.softcap(30),
    "alibi": lambda: loom.scores.alibi(HEADS),
    "relative bias": lambda: loom.scores.relative_bias(torch.randn(HEADS, 7)),
    "composed": lambda: loom.scores.compose(loom.scores.softcap(5), loom.scores.relative_bias(torch.randn(HEADS, 7))),
}


@pytest.mark.parametrize("name", SCORES)
def test_score_mods_of_one_structure(name, launches, known):  # noqa: F811
    """The kernel gets that of the call, and the plan holds none."""
    qkv, table = inputs(), torch.rand(BATCH, KV_LEN) < 0.3
    mask = loom.causal & loom.key_padding(table)
    for _ in range(5):
        table.logical_not_()
        score_mod = SCORES[name]()
        loom.attend(*qkv, mask, score_mod=score_mod, backend="triton")
        assert launches[-1][3] is score_mod and is_right(launches[-1], mask)
    assert [type(kind).__name__ for kind in known.entries().values()] == ["_Kind"]
    held = [weakref.ref(tensor) for tensor in captures.tensors(score_mod)]
    launches.clear()
    del score_mod
    gc.collect()
    assert not any(reference() is not None for reference in held)


HIDING = {
    "lengths": lambda t: loom.causal & loom.lengths((t * Q_LEN).long()[:, 0], (t * KV_LEN).long()[:, 1]),
    "key padding": lambda t: loom.key_padding(t[:, :KV_LEN] < 0.4),
    "padding": lambda t: loom.padding(t[:, :Q_LEN] < 0.4, t[:, :KV_LEN] < 0.6),
    "real": lambda t: loom.causal & loom.real(t[:, :Q_LEN] < 0.4, t[:, :KV_LEN] < 0.6),
    "two paddings": lambda t: loom.key_padding(t[:, :KV_LEN] < 0.4) & loom.lengths(
        (t * Q_LEN).long()[:, 0], (t * KV_LEN).long()[:, 1]
    ),
}  # fmt: skip


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("in_a_block_mask", [False, True])
@pytest.mark.parametrize("name", HIDING)
def test_padding_that_is_cleaned(name, in_a_block_mask, trains, launches, known):  # noqa: F811
    """What the kernel gets has zeros where this very mask hides; without gradients, of values alone."""
    qkv = [tensor.requires_grad_(trains) for tensor in inputs()]
    for seed in range(5):
        mask = HIDING[name](torch.rand(BATCH, KV_LEN, generator=torch.Generator().manual_seed(seed)))
        given = loom.block_mask(mask, Q_LEN, KV_LEN, batch=BATCH) if in_a_block_mask else mask
        loom.attend(*qkv, given, backend="triton", clean_padding=True)
        assert is_right(launches[-1], mask)
        queries, keys = known_hidden_queries(mask, Q_LEN), known_padding(mask, KV_LEN)
        hides = [None if queries is None else queries, keys, keys] if trains else [None, None, keys]
        for got, tensor, rows in zip(launches[-1], qkv, hides, strict=False):
            expected = tensor if rows is None else tensor.masked_fill(rows[:, None, :, None], 0)
            assert torch.equal(got, expected) and (got is tensor) == (rows is None)
    assert [type(kind).__name__ for kind in known.entries().values()] == ["_Kind"]


def test_parts_of_one_table(launches):  # noqa: F811
    """They lie at other places of its memory, where recorded views look."""
    qkv, tables = [tensor[:, :, :Q_LEN] for tensor in inputs()], torch.rand(5, 2, Q_LEN) < 0.5
    for table in tables:
        mask = loom.causal & SecondRow(table)
        loom.attend(*qkv, mask, backend="triton")
        expected = mask.dense(Q_LEN, Q_LEN)
        assert torch.equal(dense_of(launches[-1][4], BATCH, HEADS).expand_as(expected), expected)
        blocks = loom.block_mask(mask, Q_LEN, Q_LEN)
        assert torch.equal(dense_of(blocks, 1, 1).expand_as(expected), expected)


def test_tensors_that_change_in_place(launches):  # noqa: F811
    lens = torch.tensor([5, 13, 2])
    mask, qkv = loom.causal & loom.lengths(lens, torch.tensor([17, 11, 7])), inputs()
    for step in range(6):
        lens.copy_(torch.tensor([step, 13 - step, 2 * step]))
        loom.attend(*qkv, mask, backend="triton")
        assert is_right(launches[-1], mask)


def test_numbers_and_shapes_make_kinds_of_their_own(launches, known):  # noqa: F811
    qkv = inputs()
    for back in (2, 3, 2, 3, 2, 3):
        mask = loom.window(back=back) & loom.key_padding(torch.rand(BATCH, KV_LEN) < 0.3)
        loom.attend(*qkv, mask, backend="triton")
        assert is_right(launches[-1], mask)
    shorter = [tensor[:, :, :11] for tensor in qkv]
    loom.attend(*shorter, loom.window(back=2) & loom.key_padding(torch.rand(BATCH, 11) < 0.3), backend="triton")
    assert len(known) == 3


TABLE = torch.rand(BATCH, KV_LEN)
OPERATIONS = {
    "lengths": (lambda: loom.causal & loom.lengths((TABLE * Q_LEN).long()[:, 0], (TABLE * KV_LEN).long()[:, 1]), 13),
    "one lengths": (lambda: loom.causal & loom.lengths((TABLE * KV_LEN).long()[:, 0]), 8),
    "key padding": (lambda: loom.causal & loom.key_padding(TABLE < 0.3), 12),
    "window": (lambda: loom.window(back=3) & loom.key_padding(TABLE < 0.3), 12),
    "ids": (lambda: loom.causal & loom.documents((TABLE[0] * 3).long()), 20),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_for_tensors_that_changed(name, known):
    """One list, views too, in the place of analysis; the tables come behind it."""
    make, most = OPERATIONS[name]
    q_len = KV_LEN if name != "lengths" else Q_LEN
    qkv = [torch.randn(BATCH, HEADS, length, D).bfloat16() for length in (q_len, KV_LEN, KV_LEN)]
    for _ in range(3):
        loom.attend(*qkv, make(), backend="triton")
    (kind,) = known.entries().values()
    assert kind.recipe.states is not None and len(kind.recipe.states.calls) <= most


def test_a_kind_holds_no_tensor_of_the_masks_that_it_was_made_of(known, launches):  # noqa: F811
    qkv, references = inputs(), []
    for _ in range(3):
        pads = torch.rand(BATCH, KV_LEN) < 0.3
        loom.attend(*qkv, loom.causal & loom.key_padding(pads), backend="triton")
        references.append(weakref.ref(pads))
    del pads
    launches.clear()
    gc.collect()
    assert isinstance(known.entries().popitem()[1], kinds._Kind)
    assert [reference() for reference in references] == [None, None, None]


def test_a_function_has_no_kind(known):
    lens = torch.tensor([5, 13, 2])
    for _ in range(3):
        loom.attend(*inputs(), lambda b, h, q_idx, kv_idx: kv_idx < lens[b], backend="triton")
    assert not len(known)


def test_a_kind_is_not_taken_inside_a_transform(known, launches):  # noqa: F811
    """There other backends run."""
    lens = torch.tensor([5, 13, 2])

    def attention(query, key, value):
        return loom.attend(query, key, value, loom.causal & loom.lengths(lens, torch.tensor([17, 11, 7])))

    qkv = inputs()
    for _ in range(3):
        attention(*qkv)
    assert isinstance(known.entries().popitem()[1], kinds._Kind)
    ran = len(launches)
    inside = torch.func.vmap(attention)(*(tensor[None] for tensor in qkv))
    assert len(launches) == ran
    expected = loom.reference(*qkv, loom.causal & loom.lengths(lens, torch.tensor([17, 11, 7])))[0]
    torch.testing.assert_close(inside[0], expected, rtol=2e-2, atol=2e-2)


def test_values_that_are_read_have_no_kind(known, monkeypatch):
    monkeypatch.setattr(kinds, "readable", lambda tensor: True)
    for _ in range(3):
        loom.attend(*inputs(), loom.causal & loom.lengths(torch.tensor([5, 13, 2])), backend="triton", q_offset=0)
    assert not len(known)


def test_what_is_wrong_is_said_of_each_mask(known):
    """Shapes are part of the kind: a mask of other sizes is checked anew."""
    for _ in range(3):
        loom.attend(*inputs(), loom.key_padding(torch.rand(BATCH, KV_LEN) < 0.3), backend="triton")
    with pytest.raises(ValueError, match="batch"):
        loom.attend(*inputs(), loom.key_padding(torch.rand(BATCH + 1, KV_LEN) < 0.3), backend="triton")


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 156), ({"clean_padding": True}, 204), ({"score_mod": loom.scores.relative_bias(torch.zeros(HEADS, 7))}, 188)],
)
def test_calls_for_tensors_that_changed(options, most):
    lens = torch.tensor([5, 13, 2])
    mask, qkv = loom.causal & loom.lengths(lens, torch.tensor([17, 11, 7])), inputs()

    def step():
        lens.add_(0)
        loom.attend(*qkv, mask, backend="triton", **options)

    for _ in range(3):
        step()
    assert count_calls(step) <= most


@loom.masks.mask_dataclass
class Twice(loom.Mask):
    """Visible are the keys with twice the position of the query; intervals leave all tiles open where they hold odd numbers too."""

    table: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.table[kv_idx] == 2 * q_idx


@pytest.mark.parametrize(("heads", "waits"), [(3, False), (1000, True)])
def test_the_host_waits_where_evaluation_spares_many_visits(heads, waits, known):
    q_len, kv_len = 300, 1290
    table = torch.arange(kv_len) % 7 * 101 | 1
    table[:3] = 0
    qkv = [torch.randn(1, heads, length, 1).expand(-1, -1, -1, D).bfloat16() for length in (q_len, kv_len, kv_len)]
    for _ in range(2):
        loom.attend(*qkv, Twice(table.clone()), backend="triton")
    (kind,) = known.entries().values()
    assert kind.recipe.bare.exact is waits


@pytest.mark.parametrize(
    ("make", "waits"),
    [
        (lambda length: loom.causal & loom.lengths(torch.tensor([length, 5])), False),
        (lambda length: Twice(odd(length)), True),
    ],
    ids=["lengths", "twice"],
)
def test_for_batches_of_other_lengths_the_host_waits_as_for_the_first_ones(make, waits, known, launches, monkeypatch):  # noqa: F811
    """And nothing is recorded for them, but by who comes a second time."""
    manners, recorded = [], []
    classify = construct.classify
    monkeypatch.setattr(
        construct, "classify",
        lambda *args, exact, is_recorded, **more: (
            manners.append((exact, is_recorded)) or classify(*args, exact=exact, is_recorded=is_recorded, **more)
        ),
    )  # fmt: skip
    monkeypatch.setattr(kinds_of_blocks, "record_replay", lambda *args, **more: recorded.append(args) or ([], None))
    for length in (600, 660, 720, 780, 840):  # of one order of magnitude
        qkv = [torch.randn(2, 500, size, 1).expand(-1, -1, -1, D).bfloat16() for size in (300, length, length)]
        manners.clear()
        loom.attend(*qkv, make(length), backend="triton")
    assert manners == [(waits, False)]
    assert not recorded
    assert set(known.entries().values()) == {"second time"}


def odd(length):
    """Few zeros first, and then odd numbers, which are twice no position."""
    return (torch.arange(length) % 7 * 101 | 1).masked_fill(torch.arange(length) < 3, 0)


def alternating(length):
    """Documents whose ids intervals leave open: 0 and 2 in even tiles of keys, 1 and 3 in odd ones."""
    return loom.documents(torch.arange(length) % 2 * 2 + torch.arange(length) // 128 % 2)


def test_short_batches_do_not_decide_for_long_ones(known, launches):  # noqa: F811
    for length in (256, 384, 8192, 12288, 16384):
        query = torch.zeros(1, 1, length, 1).expand(-1, -1, -1, D).bfloat16()
        loom.attend(query, query, query, alternating(length), backend="triton")
    blocks = launches[-1][4]
    assert int(blocks.kv_num_blocks.sum()) == (16384 // 128) ** 2 // 2


def test_a_block_mask_whose_tables_stand_for_other_rows_is_refused_whatever_came_before(known, launches):  # noqa: F811
    rows = torch.stack([torch.arange(512) % 2 * 2 + (torch.arange(512) // 128 % step == 0) for step in (2, 3)])
    qkv = [torch.randn(2, 1, 512, D).bfloat16() for _ in range(3)]
    for turn in range(3):
        loom.attend(*qkv, loom.documents(rows.roll(128 * turn, 1)), backend="triton")
    blocks = create_block_mask(loom.documents(rows), None, None, 512, 512, device="cpu")
    with pytest.raises(ValueError, match="was built with B=None"):
        loom.attend(*qkv, blocks, backend="triton")
