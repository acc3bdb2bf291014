"""Masks for FlashAttention 4: equal to what was given, in a form that it takes; what it does not take is named."""

import pytest
import torch
from torch.nn.attention.flex_attention import noop_mask

import maskloom as loom
from maskloom.attention.backends import table_reads
from maskloom.attention.backends.flash_mask import _others, for_flash, refused, refused_in_graph
from maskloom.attention.backends.table_reads import Replayed, _needs_mending, _verdict
from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.core.values import holds_function
from maskloom.masks.algebra import And
from maskloom.program import mask_program
from maskloom.program.record import record
from tests.catalog import EVERY

BATCH, Q, K = 3, 11, 17
TABLE = torch.rand(BATCH, K, Q, generator=torch.Generator().manual_seed(1)) < 0.5
NUMBER = torch.tensor(3)
BYTES = torch.arange(K, dtype=torch.uint8)
WHOLE = "a table that is made, computed with, or read at a constant, before an index reads it"


def same(left, right):
    return torch.equal(left.dense(Q, K, batch=BATCH), right.dense(Q, K, batch=BATCH))


def program_of(mask):
    return record(mask, "cpu")


def offset(number):
    return torch.tensor(number)


OFFSETS = {
    "queries": loom.masks.shifted(loom.causal, q_offset=offset(4)),
    "both": loom.masks.shifted(loom.window(back=3), q_offset=offset(4), kv_offset=offset(2)),
    "int64": loom.masks.shifted(loom.causal, q_offset=torch.tensor(5, dtype=torch.int64)),
    "inside": loom.causal | (~loom.masks.shifted(loom.window(back=3), kv_offset=offset(2)) & loom.lengths([9, 5, 17])),
    "of rows beside": loom.masks.shifted(loom.causal, q_offset=offset(4), kv_offset=torch.tensor([1, 2, 3])),
    "one in another": loom.masks.shifted(
        loom.masks.shifted(loom.causal, q_offset=offset(1)) | loom.prefix(2), q_offset=offset(2)
    ),
    "by a function": loom.masks.shifted(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, q_offset=offset(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFSETS)
def test_an_offset_in_a_tensor_becomes_one_for_each_row(name):
    mask = OFFSETS[name]
    assert refused(mask, "cpu") is None
    taken = for_flash(mask, BATCH, "cpu")
    assert all(tensor.ndim for tensor in captures.tensors(taken))
    assert same(taken, mask)
    assert any(not tensor.ndim for tensor in captures.tensors(mask))  # the mask itself stays as it was


def test_one_tensor_that_is_an_offset_and_something_else():
    number = torch.tensor(4)
    both = loom.masks.shifted(lambda b, h, q_idx, kv_idx: q_idx + number >= kv_idx, q_offset=number)
    assert refused(both, "cpu").endswith("this has a tensor without dimensions")


LAYOUTS = {
    "as it is": TABLE.mT.contiguous(),
    "transposed": TABLE.mT,
    "every second": torch.zeros(BATCH, Q, 2 * K, dtype=torch.bool)[..., ::2],
    "expanded rows": TABLE[:1].mT.contiguous().expand(BATCH, Q, K),
    "expanded columns": TABLE[:, :1, :1].expand(BATCH, Q, K),
    "part of a larger": torch.ones(BATCH, Q + 3, K + 5, dtype=torch.bool)[:, 2 : Q + 2, 4 : K + 4],
    "from row 1 on": TABLE.mT.contiguous().repeat(2, 1, 1)[1 : BATCH + 1],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tables_lie_close(name):
    table = LAYOUTS[name]
    for mask in (loom.masks.from_dense(table), loom.as_mask(lambda b, h, q_idx, kv_idx: table[b][q_idx, kv_idx])):
        taken = for_flash(mask, BATCH, "cpu")
        (given,), (found,) = captures.tensors(mask), captures.tensors(taken)
        assert found.stride(-1) == 1 and 0 not in found.stride() and torch.equal(found, given)
        assert same(taken, mask)
        untouched = name in ("as it is", "part of a larger", "from row 1 on")
        assert (found is given) == untouched


@pytest.mark.parametrize("name", EVERY)
def test_every_mask_is_taken_as_it_is_or_mended_or_refused(name):
    mask = EVERY[name][0]()
    words = refused(mask, "cpu")
    assert words is None or words.startswith("its masks are")
    asks = captures.holds_code(mask) or isinstance(program_of(mask).answer, torch.Tensor)
    taken = for_flash(mask, BATCH, torch.device("cpu"))
    assert (taken is mask) != (asks or isinstance(taken, Replayed))


CONSTANTS = {
    "noop_mask": noop_mask,
    "everything": loom.everything,
    "nothing": loom.nothing,
    "a mask of a function": loom.as_mask(lambda b, h, q_idx, kv_idx: q_idx.new_ones((), dtype=torch.bool)),
    "an offset": loom.masks.shifted(loom.everything, q_offset=3),
    "an offset in a tensor": loom.masks.shifted(loom.nothing, q_offset=torch.tensor(3)),
    "two of them": And((loom.everything, loom.everything)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_masks_that_torch_would_take_for_a_constant(name):
    given = CONSTANTS[name]
    assert refused(given, "cpu") is None
    taken = for_flash(given, BATCH, "cpu")
    assert "ge" in [step.op.overloadpacket.__name__ for step in program_of(taken).steps]
    assert same(taken, loom.as_mask(given))


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda b, h, q, k: q >= k + NUMBER, "a tensor without dimensions"),
        (lambda b, h, q, k: q >= k + (NUMBER + 1), "a tensor without dimensions"),
        (lambda b, h, q, k: TABLE[0, k, q], "a table read at a constant"),
        (lambda b, h, q, k: TABLE[0][k, q], WHOLE),
        (lambda b, h, q, k: (~TABLE)[b, k, q], WHOLE),
        (lambda b, h, q, k: torch.arange(17).cumsum(0)[q] >= k, WHOLE),
        (lambda b, h, q, k: torch.tensor([1, 2, 3])[b] >= k, WHOLE),
        (lambda b, h, q, k: q.to(torch.uint8) == k, "a cast to torch.uint8"),
        (lambda b, h, q, k: BYTES[q] == BYTES[k], "a table of torch.uint8"),
        (lambda b, h, q, k: q // 4 >= k, "floor_divide"),
        (lambda b, h, q, k: q % 4 >= k, "remainder"),
        (lambda b, h, q, k: (q >> 2) >= k, "__rshift__"),
        (lambda b, h, q, k: (q - k).clamp(0, 5) >= 2, "clamp"),
        (lambda b, h, q, k: torch.minimum(q, k) >= 2, "minimum"),
        (lambda b, h, q, k: (TABLE[b, k] & (q > 1)).any(), "any"),
        (lambda b, h, q, k: (q.float() / 2).floor() >= k, "div, floor"),
    ],
)
def test_what_is_refused(function, word):
    words = refused(function, "cpu")
    assert words == f"its masks are comparisons, logic, + - * and choices of tables read at indices; this has {word}"


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, k: (q - k).abs() <= 3 * q - 5,
        lambda b, h, q, k: -q <= torch.where(k > 3, k, q),
        lambda b, h, q, k: q.float() * 1.5 >= k,
        lambda b, h, q, k: TABLE[b, k, q] | (h > 1),
        lambda b, h, q, k: TABLE[b][k][q],
        lambda b, h, q, k: (q >= k) & b.new_ones((), dtype=torch.bool),
        lambda b, h, q, k: (q >= k) | torch.tensor(False),
    ],
)
def test_what_is_taken(function):
    assert refused(function, "cpu") is None


# -- inside torch.compile, where a mask cannot be read -----------------------------------------------------------------

PLACES = {
    "as it is": lambda mask: mask,
    "joined": lambda mask: loom.causal & ~mask,
    "held": lambda mask: loom.masks.transposed(mask),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", EVERY)
def test_a_class_says_of_its_masks_what_their_programs_say(name, place):
    """It may say less: a class whose masks flash takes only with some fields says that it does not."""
    mask = PLACES[place](EVERY[name][0]())
    suits = refused(mask, torch.device("cpu")) is None and not _needs_mending(mask, torch.device("cpu"), True)
    says = refused_in_graph(mask) is None
    assert says <= suits
    if suits and not says:
        assert any(word in refused_in_graph(mask) for word in ("RepeatedHeads", "Flamingo", "Shifted")), name


def doubled(table):
    """A table of the same entries, with each dimension but those of 1 twice as long."""
    for dim in range(table.ndim):
        table = table if table.shape[dim] == 1 else torch.cat([table, table], dim)
    return table


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name", [name for name in EVERY if "morton" not in name]
)  # whose tables have a column for each axis
def test_of_our_classes_it_says_the_same_whatever_the_lengths(name, place):
    """So what is found out of one batch is true of the next, where its tables are longer."""
    cpu, mask = torch.device("cpu"), PLACES[place](EVERY[name][0]())
    longer = captures.moved(mask, doubled)
    assert holds_function(mask) or _others(mask, cpu) == _others(longer, cpu)
    for narrow in (False, True):
        found = _verdict(mask, cpu, narrow)
        assert holds_function(mask) or found == _verdict(longer, cpu, narrow)


def test_a_mask_of_other_lengths_needs_no_other_program(monkeypatch):
    recorded = []
    monkeypatch.setattr(mask_program, "_answers", LRU(256))
    monkeypatch.setattr(table_reads, "record", lambda *args, **more: recorded.append(args) or record(*args, **more))
    for length in (11, 13, 17, 19):
        mask = loom.causal & loom.padding(torch.zeros(2, length, dtype=torch.bool))
        assert refused(mask, torch.device("cpu")) is None
        assert not _needs_mending(mask, torch.device("cpu"), True)
    assert len(recorded) == 1


OTHERS = {
    "a function": (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, "a function"),
    "joined with a function": (loom.causal & (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx), "a FromFunction"),
    "shifted": (loom.masks.shifted(loom.causal, q_offset=torch.tensor(3)), "a Shifted"),
    "divides": (loom.causal & loom.masks.chunked(4), "a Chunked"),
    "unsigned": (loom.masks.documents(ids=BYTES), "a tensor of torch.uint8 with 1 dimensions and strides (1,)"),
    "turned": (loom.padding(TABLE[0, :, :BATCH].mT), "a tensor of torch.bool with 2 dimensions and strides (1, 11)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_known_to_suit_it_is_named(name):
    mask, words = OTHERS[name]
    expected = f"inside torch.compile it takes Masks that are known to suit it; this has {words}"
    assert refused_in_graph(mask) == expected
    if callable(mask):
        blocks = loom.create_block_mask(mask, BATCH, None, Q, Q, device="cpu")
        assert refused_in_graph(blocks) == expected


def test_a_class_of_a_user_is_not_taken_for_ours():
    class Mine(type(loom.causal)):
        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx % 3 >= kv_idx

    assert "a test_a_class_of_a_user" in refused_in_graph(Mine())
