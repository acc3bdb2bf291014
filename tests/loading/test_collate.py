"""Sequences of unequal length to a batch."""

import os
import pickle
from decimal import Decimal
from fractions import Fraction
from itertools import chain

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, LlamaConfig
from transformers.trainer_utils import RemoveColumnsCollator

import maskloom as loom
from maskloom.batches import Batch, Collator
from tests.blocks.random_masks import differing

SEQUENCES = [[5, 6, 7], [8, 9], [4], [3, 2, 1, 5, 6], []]
FORMS = {
    "padded": {},
    "padded to a length": {"length": 7},
    "padded at the left": {"side": "left"},
    "one row": {"packed": True},
    "one row, rounded up": {"packed": True, "multiple_of": 8},
    "rows of a length": {"packed": True, "length": 7},
}
sequences = st.lists(st.lists(st.integers(1, 97), max_size=7), min_size=1, max_size=6)
forms = st.sampled_from(list(FORMS.values()))


def read(batch: Batch, table):
    """The tokens of a table (R, L) by sequence, in order."""
    found: dict[int, list] = {}
    for document, item in enumerate(batch.items.tolist()):
        found.setdefault(item, []).extend(table[batch.ids == document].tolist())
    return [found.get(item, []) for item in range(max(found) + 1)]


@given(sequences, forms)
def test_every_token_comes_out_once_in_order(given_, form):
    batch = Collator(blocks=False, **form)(given_)
    assert read(batch, batch.inputs) == given_
    assert read(batch, batch.positions) == [list(range(len(one))) for one in given_]
    assert sorted(batch.lengths.tolist()) == sorted(map(len, given_))
    assert (batch.inputs[batch.ids < 0] == 0).all() and (batch.positions[batch.ids < 0] == 0).all()
    if any(given_):
        assert read(batch, batch.labels) == [[-100, *one[1:]] if one else [] for one in given_]
        assert read(batch, batch.targets) == [[*one[1:], -100] if one else [] for one in given_]
        assert (batch.labels[batch.ids < 0] == -100).all() and (batch.targets[batch.ids < 0] == -100).all()
        shifted = torch.cat([batch.labels[:, 1:], torch.full((len(batch.labels), 1), -100)], 1)
        assert torch.equal(batch.targets, shifted)


@given(sequences, st.sampled_from(["split", "truncate", "drop"]), st.booleans(), st.integers(1, 5))
def test_sequences_over_the_length(given_, over, packed, length):
    expected = {"split": given_, "truncate": [one[:length] for one in given_],
                "drop": [one if len(one) <= length else [] for one in given_]}[over]  # fmt: skip
    collate = Collator(length=length, over=over, packed=packed, blocks=False)
    if over == "drop" and all(len(one) > length for one in given_):
        with pytest.raises(ValueError, match=f"sequences are longer than length {length}, and dropped: none is left"):
            collate(given_)
        return
    batch = collate(given_)
    found = read(batch, batch.inputs)
    assert batch.inputs.shape[1] == length
    assert found + [[]] * (len(given_) - len(found)) == expected


MASKS = {
    "causal": loom.causal,
    "window": loom.causal & loom.window(back=1),
    "sinks": loom.window(back=1) | loom.sinks(1),
    "prefix": loom.causal | loom.prefix(2),
    "chunks": loom.causal & loom.masks.chunked(2),
    "everything": None,
    "function": lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 != 1,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MASKS)
def test_the_mask_speaks_of_positions_in_a_sequence(name, form):
    batch = Collator(MASKS[name], block_size=2, **FORMS[form])(SEQUENCES)
    rows, length = batch.inputs.shape
    alone = loom.as_mask(loom.everything if MASKS[name] is None else MASKS[name]).dense(7, 7)[0, 0]
    expected = torch.zeros(rows, length, length, dtype=torch.bool)
    for row, ids in enumerate(batch.ids):
        for document in set(ids.tolist()) - {-1}:
            at = (ids == document).nonzero()[:, 0]
            expected[row, at[:, None], at] = alone[: len(at), : len(at)]
    assert torch.equal(batch.mask.dense(length, length, batch=rows)[:, 0], expected)
    again = loom.block_mask(batch.mask, length, length, device="cpu", block_size=2)
    assert differing(batch.blocks, again) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_made_on_the_cpu_whatever_the_default_device(form):
    torch.set_default_device("meta")
    try:
        batch = Collator(**FORMS[form])([{"input_ids": one, "weight": len(one)} for one in SEQUENCES])
    finally:
        torch.set_default_device(None)
    held = [*vars(batch).values(), *batch.fields.values()]
    assert {one.device.type for one in held if isinstance(one, torch.Tensor)} == {"cpu"}
    assert batch.blocks.kv_indices.device.type == "cpu"


@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_empty_sequences(form):
    batch = Collator(**FORMS[form])([[], []])
    assert batch.inputs.eq(0).all() and batch.ids.eq(-1).all() and batch.lengths.tolist() == [0, 0]
    assert not batch.mask.dense(*batch.inputs.shape[1:] * 2, batch=len(batch.inputs)).any()


def test_one_row_of_relative_masks_is_cheap_to_ask():
    assert repr(Collator(packed=True)(SEQUENCES).mask) == "causal & documents(offsets=int32[6])"
    assert repr(Collator()(SEQUENCES).mask) == "causal & lengths(int64[5])"
    within = Collator(loom.causal | loom.prefix(2), packed=True)(SEQUENCES).mask
    assert repr(within).startswith("within(documents(offsets=int32[6]), ")


# -- what goes in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda one: np.array(one, np.uint16)])
def test_sequences_come_in_any_form(kind):
    batch = Collator()([kind([5, 6, 7]), kind([8])])
    assert batch.inputs.dtype == torch.int64
    assert batch.inputs.tolist() == [[5, 6, 7], [8, 0, 0]]
    frozen = np.array([5, 6])
    frozen.setflags(write=False)  # as a memory-mapped file
    assert Collator()([frozen]).inputs.tolist() == [[5, 6]]


def test_vectors_have_no_labels_of_their_own():
    x = [torch.randn(length, 2, dtype=torch.float64) for length in (3, 5)]
    batch = Collator(packed=True)(x)
    assert torch.equal(batch.inputs, torch.cat(x)[None]) and batch.labels is batch.targets is None
    with_labels = Collator(tokens="x", pad_id=9)([{"x": one, "labels": [7] * len(one)} for one in x])
    assert with_labels.inputs[0, 3:].eq(0).all()
    assert with_labels.targets.tolist() == [[7, 7, -100, -100, -100], [7, 7, 7, 7, -100]]
    assert "inputs_embeds" in with_labels.transformers()


def test_fields_beside_the_tokens():
    given_ = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1], "weight": [0.5, 1, 2], "id": 4, "text": "abc"},
        {"input_ids": [8, 9], "labels": [8, 9], "attention_mask": [1, 1], "weight": [3, 4.0], "id": 2, "text": "de"},
    ]  # fmt: skip
    batch = Collator(packed=True, multiple_of=3, pad_id=1)(given_)
    assert batch.inputs.tolist() == [[5, 6, 7, 8, 9, 1]]
    assert batch.labels.tolist() == [[-100, 6, 7, -100, 9, -100]]
    assert batch.fields["weight"].tolist() == [[0.5, 1, 2, 3, 4, 0]] and batch.fields["id"].tolist() == [4, 2]
    assert batch.fields["text"] == ["abc", "de"] and "attention_mask" not in batch.fields
    split = Collator(length=2, over="split")(given_)
    assert split.fields["id"].tolist() == [4, 4, 2] and split.items.tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_fields_of_several_numbers_for_each_token(kind):
    boxes = [[[0, 0, 1, 1], [2, 2, 3, 3]], [[4, 5, 6, 7]]]
    given_ = [{"input_ids": [5] * len(own), "bbox": kind(own)} for own in boxes]
    assert Collator()(given_).fields["bbox"].tolist() == [boxes[0], [*boxes[1], [0] * 4]]
    assert Collator(packed=True)(given_).fields["bbox"].tolist() == [boxes[0] + boxes[1]]


@pytest.mark.parametrize("own", [["a", "b"], np.array(["a", "b"]), [[1], [2, 3]], [["a"], ["b"]], [{}, {}]])
def test_fields_that_are_no_numbers_stay_a_list(own):
    """Whether there are as many as tokens, or not."""
    for tokens in ([5], [5, 6], [5, 6, 7]):
        (found,) = Collator()([{"input_ids": tokens, "field": own}]).fields["field"]
        assert found is own


def test_labels_of_sequences_are_a_field():
    for labels in ([3, 1], [[0.0, 1.0], [1.0, 0.0]], [torch.tensor(3), torch.tensor(1)]):
        given_ = [{"input_ids": ids, "labels": own} for ids, own in zip([[5, 6, 7], [8]], labels, strict=True)]
        batch = Collator()(given_)
        assert batch.labels is batch.targets is None
        assert torch.equal(torch.as_tensor(batch.fields["labels"]), torch.as_tensor(labels))
        assert "labels" in batch.transformers()


# -- other libraries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_names_are_those_of_transformers_flattening(with_labels):
    features = [{"input_ids": one} | ({"labels": [-100, *one[1:]]} if with_labels else {}) for one in SEQUENCES[:4]]
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(features)
    ours = Collator(packed=True, names="transformers")(features)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name


def test_padding_at_the_left():
    batch = Collator(side="left", pad_id=9)(SEQUENCES[:3])
    assert batch.inputs.tolist() == [[5, 6, 7], [9, 8, 9], [9, 9, 4]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, -100], [-100, 9, -100], [-100] * 3]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6, 8, 9]
    names = batch.transformers()
    assert names["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert torch.equal(names["position_ids"], batch.positions)
    assert "position_ids" not in Collator()(SEQUENCES).transformers()


def test_padding_is_one_more_document_for_others():
    batch = Collator(packed=True, length=7)(SEQUENCES)
    assert batch.inputs.tolist() == [[8, 9, 3, 2, 1, 5, 6], [5, 6, 7, 4, 0, 0, 0]]
    names = batch.transformers()
    assert names["cu_seq_lens_q"].tolist() == [0, 2, 7, 10, 11, 14] and names["max_length_k"] == 5
    assert names["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 4], [0, 1, 2, 0, 0, 1, 2]]
    assert names["seq_idx"].tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 2, 2, 2]]
    megatron = batch.megatron()
    assert megatron["cu_seqlens"].dtype == torch.int32 and megatron["max_seqlen"] == 5
    assert torch.equal(megatron["cu_seqlens"], names["cu_seq_lens_q"])
    counts = batch.targets != -100
    assert torch.equal(megatron["loss_mask"], counts.float())
    assert torch.equal(megatron["labels"], batch.targets.where(counts, torch.tensor(0)))
    assert torch.equal(Collator(names="megatron")(SEQUENCES)["tokens"], Collator()(SEQUENCES).inputs)


def model():
    config = LlamaConfig(
        vocab_size=101, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double()


def test_a_model_of_transformers_has_the_same_loss_and_gradient_in_both_forms():
    llama, found = model(), []
    features = [{"input_ids": one, "note": "is left out"} for one in SEQUENCES if one]
    # without padding at the left: there transformers gives NaN in float64, whose least number is -inf in its softmax
    for form in [form for form in FORMS.values() if "side" not in form]:
        data_collator = Collator(names="transformers", **form)
        data_collator = RemoveColumnsCollator(data_collator, ["input_ids", "labels"])  # as Trainer wraps it
        inputs = data_collator(features)
        tokens = (inputs["labels"] != -100).sum()  # as Trainer counts num_items_in_batch
        inputs.pop("seq_idx", None)  # of state-space models
        llama.zero_grad()
        result = llama(**inputs, num_items_in_batch=tokens, use_cache=False)  # a cache hides packing from transformers
        scores, labels = result.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        loss = cross_entropy(scores, labels, reduction="sum") / tokens
        torch.testing.assert_close(result.loss, loss, check_dtype=False)  # theirs is in float32
        loss.backward()
        found.append((tokens.item(), loss.item(), llama.model.layers[0].self_attn.q_proj.weight.grad.clone()))
    for tokens, loss, grad in found[1:]:
        assert tokens == found[0][0] == 2 + 1 + 0 + 4
        assert abs(loss - found[0][1]) < 1e-12
        torch.testing.assert_close(grad, found[0][2], rtol=0, atol=1e-9)


# -- the loss ----------------------------------------------------------------------------------------------------------


class Tiny(torch.nn.Module):
    """A language model of one layer with learned positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(101, 6), torch.nn.Embedding(13, 6)
        self.attention = loom.MultiheadFlexAttention(6, 10, 2)
        self.head = torch.nn.Linear(10, 101)

    def forward(self, ids, mask, positions):
        return self.head(self.attention(self.embed(ids) + self.place(positions), mask).out)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "function"])
def test_packed_loss_is_padded_loss(name):
    tiny, found = Tiny().double(), []
    for form in FORMS.values():
        batch = Collator(MASKS[name], **form)(SEQUENCES)
        tiny.zero_grad()
        scores = tiny(batch.inputs, batch.mask, batch.positions)
        loss = cross_entropy(scores.flatten(0, 1), batch.targets.flatten())  # the mean over all targets
        loss.backward()
        found.append((loss.detach(), *(weight.grad.clone() for weight in tiny.parameters())))
    for one in found[1:]:
        for ours, padded in zip(one, found[0], strict=True):
            torch.testing.assert_close(ours, padded, rtol=0, atol=1e-12)


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
@pytest.mark.parametrize("form", ["padded", "rows of a length"])
def test_workers_build_the_same_batches(form, start):
    if start == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork")
    collate = Collator(loom.causal | loom.prefix(2), block_size=4, **FORMS[form])
    data = [list(range(1, length + 1)) for length in (3, 7, 1, 5, 2, 6)]
    loader = DataLoader(
        data, 3, collate_fn=collate, num_workers=0 if start is None else 2, multiprocessing_context=start
    )
    batches = list(loader)
    assert len(batches) == 2
    for batch, given_ in zip(batches, (data[:3], data[3:]), strict=True):
        expected = collate(given_)
        assert torch.equal(batch.inputs, expected.inputs) and torch.equal(batch.targets, expected.targets)
        assert differing(batch.blocks, expected.blocks) == [] and batch.mask == expected.mask
        assert list(chain.from_iterable(read(batch, batch.inputs))) == list(chain.from_iterable(given_))


def test_a_batch_moves_and_is_pinned_whole(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    given_ = [{"input_ids": one, "weight": [1.0] * len(one), "text": "a"} for one in SEQUENCES[:3]]
    batch = Collator(packed=True)(given_)
    copy = torch.utils.data._utils.pin_memory.pin_memory(batch)
    held = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    held += [batch.fields["weight"], batch.blocks.kv_indices, batch.mask.parts[1].offsets]
    assert all(any(one is tensor for tensor in pinned) for one in held)
    assert copy.inputs is not batch.inputs and copy.mask == batch.mask and copy.fields["text"] == ["a"] * 3
    meta = batch.to("meta")
    assert meta.inputs.is_meta and meta.blocks.kv_indices.is_meta and meta.mask.parts[1].offsets.is_meta
    assert pickle.loads(pickle.dumps(batch)).mask == batch.mask
    assert (
        repr(batch)
        == "Batch(packed, 3 documents, inputs Tensor int64[1, 6], mask causal & documents(offsets=int32[4]))"
    )


def test_the_block_mask_is_built_only_where_it_is_wanted():
    assert Collator(blocks=False)(SEQUENCES).blocks is None
    assert Collator(block_size=(2, 4))(SEQUENCES).blocks.BLOCK_SIZE == (2, 4)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Collator()([{"input_ids": [1, 2], "attention_mask": None}]), TypeError, "attention_mask of sequence 0 has a flag"),
        (lambda: Collator()([{"input_ids": [1, 2], "attention_mask": "ab"}]), TypeError, "attention_mask of sequence 0 has a flag"),
        (lambda: Collator()([torch.ones(2, dtype=torch.int64, device="meta")]), ValueError, "input_ids of sequence 0 is on the meta"),
        (lambda: Collator()({"input_ids": [[1, 2]]}), TypeError, "a batch is a list of sequences"),
        (lambda: Collator()("ab"), TypeError, "a batch is a list of sequences"),
        (lambda: Collator(mask=3), TypeError, "3"),
        (lambda: Collator(packed="no"), TypeError, "packed is True or False; got 'no'"),
        (lambda: Collator(blocks=1), TypeError, "blocks is True or False; got 1"),
        (lambda: Collator(length=0), ValueError, "length is a number of positions, at least 1; got 0"),
        (lambda: Collator(multiple_of=0), ValueError, "multiple_of is a number of positions, at least 1; got 0"),
        (lambda: Collator(length=7, multiple_of=4), ValueError, "length is a multiple of 4, as multiple_of says; got 7"),
        (lambda: Collator(over="cut"), ValueError, "over is one of raise, truncate, split, drop; got 'cut'"),
        (lambda: Collator(side="top"), ValueError, "side is one of right, left; got 'top'"),
        (lambda: Collator(side="left", packed=True), ValueError, "packed rows have their padding at the right"),
        (lambda: Collator(names="jax"), ValueError, "names is one of None, transformers, megatron; got 'jax'"),
        (lambda: Collator(pad_id=None), TypeError, "pad_id is the token id that fills up, an int; got NoneType"),
        (lambda: Collator(pad_id=-1)([torch.tensor([255], dtype=torch.uint8)]), ValueError, r"pad_id is from 0 to 255, as input_ids are torch.uint8; got -1"),
        (lambda: Collator(pad_id=128, tokens="x")([{"x": torch.tensor([1], dtype=torch.int8)}]), ValueError, "pad_id is from -128 to 127, as x are torch.int8; got 128"),
        (lambda: Collator(pad_id=2)([torch.tensor([True])]), ValueError, "pad_id is from 0 to 1, as input_ids are torch.bool; got 2"),
        (lambda: Collator()([]), ValueError, "a batch has at least one sequence; got none"),
        (lambda: Collator()([5, 6]), ValueError, r"input_ids of sequence 0 has shape \(length, ...\); got one number"),
        (lambda: Collator()(["ab"]), TypeError, "input_ids of sequence 0 is a tensor, an array or a list of numbers; got 'ab'"),
        (lambda: Collator()([[1], [0.5]]), ValueError, r"input_ids of sequence 1 is Tensor float32\[1\], and of an earlier one"),
        (lambda: Collator()([torch.ones(2, 3), torch.ones(2, 5)]), ValueError, r"float32\[2, 5\], and of an earlier one Tensor float32\[2, 3\]"),
        (lambda: Collator()([{"ids": [1]}]), ValueError, r"has its tokens in 'input_ids'; got \['ids'\]. Give tokens="),
        (lambda: Collator()([{"input_ids": [1]}, [1]]), ValueError, r"sequence 1 has the fields list, and the first one \['input_ids'\]"),
        (lambda: Collator()([{"input_ids": [1, 2], "attention_mask": [1, 0]}]), ValueError, "attention_mask of sequence 0 has a 0"),
        (lambda: Collator()([{"input_ids": [1, 2], "attention_mask": [1]}]), ValueError, r"attention_mask of sequence 0 has a flag for each of 2 tokens; got shape \(1,\)"),
        (lambda: Collator()([{"input_ids": 5, "attention_mask": [1]}]), ValueError, r"input_ids of sequence 0 has shape \(length, ...\); got one number"),
        (lambda: Collator(block_size=0), ValueError, r"the block size is a number of positions, at least 1, or a pair \(Q, KV\); got 0"),
        (lambda: Collator()([{"input_ids": [1, 2], "labels": [1]}]), ValueError, r"labels of sequence 0 are 2 integers, one a token; got Tensor int64\[1\]"),
        (lambda: Collator(length=2)([[1], [1, 2, 3]]), ValueError, "1 of 2 sequences are longer than the capacity 2; the first is number 1, with 3"),
    ],
)  # fmt: skip
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_without_tokens_are_token_ids_too(packed):
    batch = Collator(packed=packed, pad_id=7, multiple_of=3)([[], []])
    assert batch.inputs.tolist() == [[7, 7, 7]] * (1 if packed else 2)
    assert batch.labels is not None and bool((batch.labels == -100).all())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
@pytest.mark.parametrize("packed", [False, True])
def test_unsigned_tokens_of_more_than_a_byte(dtype, packed):
    """As files of tokens hold them."""
    tokens = [[5, 60000, 7], [1, 2, 3, 4, 65535]]
    found, expected = (
        Collator(loom.causal, packed=packed)([torch.tensor(one, dtype=kind) for one in tokens])
        for kind in (dtype, torch.int64)
    )
    assert found.inputs.dtype == torch.int64 and torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.targets, expected.targets)


BIG = 2**63 + 5


@pytest.mark.parametrize(
    ("one", "found"),
    [(np.uint64(3), [3]), (np.uint8(7), [7]), (np.array(5, np.uint32), [5]), (torch.tensor(4, dtype=torch.uint16), [4]),
     (np.array([5, 1], np.uint64), [[5, 1]]), (-(2**63), [-(2**63)])],
)  # fmt: skip
def test_unsigned_fields(one, found):
    assert Collator()([{"input_ids": [1, 2], "hash": one}]).fields["hash"].tolist() == found


@pytest.mark.parametrize(
    "one",
    [BIG, -BIG, np.uint64(BIG), torch.tensor(BIG, dtype=torch.uint64), [BIG, 1], [BIG, BIG], [BIG, 0.5], [[BIG, 1], [2, 3]],
     np.array([BIG, 1], np.uint64), torch.tensor([BIG, 1], dtype=torch.uint64)],
    ids=str,
)  # fmt: skip
def test_integers_beyond_64_bits_are_not_made_others(one):
    with pytest.raises(ValueError, match=r"^hash of sequence 0 .* as int64 has them; got -?9223372036854775813"):
        Collator()([{"input_ids": [1, 2], "hash": one}])


def test_numbers_that_no_tensor_holds_are_a_list():
    values = {"price": Decimal("3.10"), "share": Fraction(1, 3), "name": np.str_("a"), "phase": np.complex64(1j)}
    batch = Collator()([{"input_ids": [1, 2], **values}])
    assert batch.fields == {name: [value] for name, value in values.items()}
    kinds = Collator()([{"input_ids": [1], "a": np.float64(2), "b": torch.tensor(2, dtype=torch.int32), "c": True}])
    assert [field.dtype for field in kinds.fields.values()] == [torch.float64, torch.int32, torch.bool]
