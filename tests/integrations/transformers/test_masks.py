"""transformers' mask functions as masks of maskloom: equal, structured, and built once."""

import gc
import weakref

import pytest
import torch
from transformers import masking_utils as theirs

import maskloom as loom
from maskloom.attention import tables
from maskloom.integrations.transformers import masks
from maskloom.integrations.transformers.mask_functions import read_mask_function
from maskloom.integrations.transformers.masks import layer_mask
from tests.integrations.transformers.models import BATCH, DECODERS, LENGTH, attention_mask, pair, position_ids, tokens
from tests.masks.hugging_face import REMAPS_PACKED

GROUPS = torch.tensor([[-1, 0, 0, -1, 1, 1, 1, -1, -1, -1, 2, 2, -1, -1, -1, -1, -1, -1, -1]])
LEFT = torch.tensor([0, 3, 7])
FUNCTIONS = {
    "causal": theirs.causal_mask_function,
    "bidirectional": theirs.bidirectional_mask_function,
    "sliding": theirs.sliding_window_causal_mask_function(5),
    "wide": theirs.sliding_window_causal_mask_function(50),
    "overlay": theirs.sliding_window_overlay(5),
    "both sides": theirs.sliding_window_bidirectional_mask_function(3),
    "chunked": theirs.chunked_causal_mask_function(4, torch.zeros(BATCH, dtype=torch.int64)),
    "chunked, padded": theirs.chunked_causal_mask_function(4, LEFT),
    "groups": theirs.or_masks(theirs.causal_mask_function, theirs.blockwise_overlay(GROUPS.repeat(BATCH, 1))),
    "another": theirs.and_masks(theirs.causal_mask_function, lambda b, h, q, k: (q + k) % 3 > 0),
}


def is_equal(function, q_len, kv_len, q_offset=0, kv_offset=0, real=None):
    given = {
        "batch_size": BATCH, "q_length": q_len, "kv_length": kv_len, "q_offset": q_offset, "kv_offset": kv_offset,
        "mask_function": function, "attention_mask": real,
    }  # fmt: skip
    expected = theirs.sdpa_mask(**given, allow_is_causal_skip=False)
    made = layer_mask(**given).unbuilt.dense(q_len, kv_len, batch=BATCH).expand(expected.shape)
    if real is not None:  # of padded queries a causal mask hides all
        positions = torch.arange(q_len) + q_offset
        is_real = real[:, positions.clamp(max=LENGTH - 1)] & (positions < LENGTH)
        made, expected = (table & is_real[:, None, :, None] for table in (made, expected))
    return made.equal(expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "place",
    [(17, 17, 0, 0), (1, 17, 16, 0), (5, 13, 8, 0), (17, 19, 2, 0), (1, 5, 11, 7), (17, 19, 0, 0), (3, 7, 11, 7)],
)
def test_each_function_at_each_place(name, place):
    function = FUNCTIONS[name]
    q_len, kv_len, q_offset, kv_offset = place
    if name == "groups" and max(q_offset + q_len, kv_offset + kv_len) > GROUPS.shape[1]:
        pytest.skip("beyond the table")
    for real in (None, attention_mask("left").bool(), attention_mask("right").bool()):
        assert is_equal(function, *place, real=real)
        assert is_equal(function, q_len, kv_len, torch.tensor(q_offset), kv_offset, real=real)


def test_an_offset_in_a_tensor_is_that_of_now():
    """A static cache writes into it before the layers attend."""
    offset = torch.tensor(3)
    made = layer_mask(batch_size=1, q_length=17, kv_length=23, q_offset=offset)
    offset.add_(17)
    assert made.mask.dense(17, 23).equal(loom.causal.dense(17, 23, q_offset=3))


def read(name):
    return repr(read_mask_function(FUNCTIONS[name]))


def test_they_are_read_as_structured_masks():
    assert read("causal") == "causal"
    assert read("sliding") == "window(back=4, ahead=0)"
    assert read("both sides") == "window(back=3, ahead=3)"
    assert read("chunked") == "chunked(4) & causal"
    assert read("groups") == "causal | documents(int64[3, 19])"
    assert read("another") == "None"


@pytest.mark.skipif(not REMAPS_PACKED, reason="newer transformers")
@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("make", [theirs.sliding_window_overlay, theirs.sliding_window_bidirectional_overlay])
def test_a_window_of_no_keys(make, size):
    """Qwen 2 MoE has its mask made, and no layer that takes it."""
    for function in (make(size), theirs.and_masks(make(size), theirs.causal_mask_function)):
        for place in ((17, 17, 0, 0), (1, 17, 16, 0)):
            assert is_equal(function, *place, real=attention_mask("left").bool())
    hidden = read_mask_function(theirs.and_masks(theirs.sliding_window_overlay(size), theirs.causal_mask_function))
    assert repr(hidden) == "nothing"


def test_packed_documents_are_read_in_each_order_that_transformers_had():
    by_ids = theirs.packed_sequence_mask_function(theirs.find_packed_sequence_indices(position_ids()))
    plain = read_mask_function(theirs.and_masks(FUNCTIONS["sliding"], by_ids))
    assert repr(plain) == "documents(int64[1, 23]) & window(back=4, ahead=0)"
    if not REMAPS_PACKED:
        return
    remapped = theirs.remap_positions_for_packed_sequence(FUNCTIONS["sliding"], position_ids())
    for functions in ((by_ids, remapped), (remapped, by_ids)):
        mask = read_mask_function(theirs.and_masks(*functions))
        assert repr(mask) == "documents(position_ids=int64[23]) & window(back=4, ahead=0)"


def test_packed_documents_of_this_transformers_are_read():
    _, ours = pair(DECODERS["mistral"])
    made = theirs.create_sliding_window_causal_mask(ours.config, torch.empty(1, 23, 1), None, None, position_ids())
    assert repr(made.mask) == "documents(position_ids=int64[23]) & window(back=4, ahead=0)"


@pytest.mark.parametrize(
    ("given", "mask"),
    [
        ({"mask_function": FUNCTIONS["sliding"]}, "window(back=4, ahead=0)"),
        ({"mask_function": FUNCTIONS["wide"]}, "causal"),
        ({"q_length": 1, "q_offset": 16}, "everything"),
        (
            {"q_length": 1, "q_offset": 16, "attention_mask": attention_mask("left").bool()},
            "from_dense(bool[3, 1, 17])",
        ),
        ({"attention_mask": attention_mask("left").bool()}, "causal & real(bool[3, 17])"),
        ({"attention_mask": attention_mask("none").bool()}, "causal"),
    ],
)
def test_what_always_holds_is_left_out(given, mask):
    assert repr(layer_mask(**{"batch_size": BATCH, "q_length": LENGTH, "kv_length": LENGTH, **given}).unbuilt) == mask


def test_padded_queries_are_hidden_in_training_alone():
    """``generate()`` goes on from the last position, even if that is padding."""
    given = {
        "batch_size": BATCH,
        "q_length": LENGTH,
        "kv_length": LENGTH,
        "attention_mask": attention_mask("right").bool(),
    }
    assert not layer_mask(**given).mask.dense(LENGTH, LENGTH, batch=BATCH)[1, 0, 15].any()
    with torch.no_grad():
        seen = layer_mask(**given).mask.dense(LENGTH, LENGTH, batch=BATCH)[1, 0, 15]
    assert seen.equal(attention_mask("right")[1].bool() & (torch.arange(LENGTH) <= 15))


def test_an_option_that_is_not_known():
    with pytest.raises(TypeError, match="transformers gives tilt to its mask functions"):
        layer_mask(batch_size=1, q_length=2, kv_length=2, tilt=3)


@pytest.mark.parametrize(("name", "kinds"), [("llama", 1), ("gemma2", 2), ("llama4", 2), ("mistral", 1)])
@torch.no_grad()
def test_one_table_for_each_kind_of_layer_and_none_again(name, kinds, monkeypatch):
    _, ours = pair(DECODERS[name])
    ours.config._attn_implementation = "maskloom"
    built = []
    monkeypatch.setattr(
        tables, "rows_of", lambda *given, whole=tables.rows_of, **named: built.append(1) or whole(*given, **named)
    )
    ours(tokens(length=29), attention_mask=torch.ones(BATCH, 29).tril(21))
    assert len(built) == kinds
    built.clear()
    ours(tokens(length=29))
    first = len(built)
    ours(tokens(length=29))
    assert len(built) == first <= kinds


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_one_mask_for_all_forwards_of_a_batch_until_its_padding_is_written_to(dtype, monkeypatch):
    eager, ours = pair(DECODERS["llama"])
    real = attention_mask("right").to(dtype)
    made = []
    monkeypatch.setattr(masks, "real", lambda flags, whole=masks.real: made.append(1) or whole(flags))
    for again in (False, True, False, True):
        given = {"attention_mask": real, "labels": tokens().masked_fill(real == 0, -100)}
        torch.testing.assert_close(ours(tokens(), **given).loss, eager(tokens(), **given).loss)
        assert len(made) == (0 if again else 1)
        made.clear()
        if again:
            real[1, 9:] = 0
    held = weakref.ref(real)
    del real, given
    gc.collect()
    assert held() is None  # what is kept beside it does not hold it


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("is_view", [False, True])
def test_writes_that_torch_does_not_count_are_said(dtype, is_view):
    eager, ours = pair(DECODERS["qwen2"])
    written = attention_mask("right").to(dtype).numpy()
    real = torch.from_numpy(written)[:, 1:] if is_view else torch.from_numpy(written)
    rows = tokens()[:, LENGTH - real.shape[1] :]
    for last in (11, 7):
        written[1, last:] = 0
        loom.masks.mark_changed(real)
        given = {"attention_mask": real, "labels": rows.masked_fill(real == 0, -100)}
        torch.testing.assert_close(ours(rows, **given).loss, eager(rows, **given).loss)


def test_what_an_inference_made_is_not_kept_for_training():
    _, ours = pair(DECODERS["llama"])
    real = attention_mask("right")
    with torch.inference_mode():
        ours(tokens(), attention_mask=real)
    ours(tokens(), attention_mask=real, labels=tokens()).loss.backward()


def test_100_steps_record_no_mask_again(monkeypatch):
    from maskloom.program import mask_program

    _, ours = pair(DECODERS["gemma3"])
    recorded = []
    monkeypatch.setattr(
        mask_program,
        "record",
        lambda *given, whole=mask_program.record, **named: recorded.append(1) or whole(*given, **named),
    )
    given = {"attention_mask": attention_mask("left"), "do_sample": False, "eos_token_id": None}
    for cache, kinds in (("dynamic", 2), ("static", 1)):
        ours.generate(tokens(), **given, max_new_tokens=9, cache_implementation=cache)
        recorded.clear()
        ours.generate(tokens(), **given, max_new_tokens=100, cache_implementation=cache)
        assert len(recorded) <= kinds  # one for each 128 keys, and for each size of a static cache
