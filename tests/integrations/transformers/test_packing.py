"""Packed documents are isolated: with a cache and without, by position ids and by offsets."""

import itertools

import pytest
import torch
import transformers as tf
from torch._dynamo.utils import counters
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening, StaticCache
from transformers.modeling_outputs import BaseModelOutput

import maskloom as loom
from maskloom.integrations.transformers import mask_functions, packing
from maskloom.integrations.transformers.keywords import Said, said
from maskloom.integrations.transformers.layer_mask import LayerMask, Place
from maskloom.integrations.transformers.packing import isolated
from maskloom.masks.patterns.packed.segments import FromRunStart
from tests.integrations.transformers.models import DECODERS, ENCODERS, PACKED, SEQUENCES, pair, position_ids, tokens
from tests.masks.hugging_face import REMAPS_PACKED

ROW = tokens(1, sum(PACKED))


def apart(model):
    """Each document in a forward of its own."""
    return torch.cat([model(part)[0] for part in ROW.split(PACKED, 1)], 1)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_what_the_collator_flattens(name, use_cache):
    eager, ours = pair(DECODERS[name])
    features = [{"input_ids": part[0].tolist()} for part in ROW.split(PACKED, 1)]
    for flags in ({}, {"return_flash_attn_kwargs": True}):
        batch = DataCollatorWithFlattening(return_tensors="pt", **flags)(features)
        batch.pop("labels")
        assert_close(ours(**batch, use_cache=use_cache).logits, apart(eager), rtol=1e-5, atol=5e-6)


@pytest.mark.skipif(not REMAPS_PACKED, reason="newer transformers")
@torch.no_grad()
def test_a_users_function_beside_packed_documents():
    """With a cache and without, positions restart for it in each document, as transformers has it."""
    from transformers import DynamicCache
    from transformers.masking_utils import create_causal_mask

    _, ours = pair(DECODERS["llama"])
    odd = {"and_mask_function": lambda b, h, q, k: (q + k) % 3 > 0}
    given = ours.config, torch.empty(1, sum(PACKED), 1), None
    expected = torch.block_diag(*[_odd(length) for length in PACKED]).bool()
    for cache in (None, DynamicCache()):
        mask = create_causal_mask(*given, cache, position_ids(), **odd)
        assert packing.isolated(mask, Said()).dense(sum(PACKED), sum(PACKED))[0, 0].equal(expected)


def _odd(length):
    q, k = torch.arange(length)[:, None], torch.arange(length)
    return ((q + k) % 3 > 0) & (k <= q)


@torch.no_grad()
def test_several_packed_rows():
    eager, ours = pair(DECODERS["mistral"])
    rows = tokens(2, sum(PACKED))
    positions = torch.cat([position_ids(), torch.arange(sum(PACKED))[None]])
    out = ours(rows, position_ids=positions).logits
    assert_close(
        out[:1], torch.cat([eager(part).logits for part in rows[:1].split(PACKED, 1)], 1), rtol=1e-5, atol=5e-6
    )
    assert_close(out[1:], eager(rows[1:]).logits, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_into_an_empty_static_cache():
    eager, ours = pair(DECODERS["gemma3"])
    cache = StaticCache(config=ours.config, max_cache_len=31)
    out = ours(ROW, position_ids=position_ids(), past_key_values=cache).logits
    assert_close(out, apart(eager), rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_documents_of_an_encoder_by_offsets():
    eager, ours = pair(ENCODERS["bert"])
    offsets = torch.tensor([0, *PACKED]).cumsum(0).int()
    out = ours(ROW, position_ids=position_ids(), cu_seq_lens_q=offsets, cu_seq_lens_k=offsets.clone())[0]
    assert_close(out, apart(eager), rtol=1e-5, atol=5e-6)


def counted_documents(run, monkeypatch):
    """How often masks of packed documents are made."""
    made = []
    with monkeypatch.context() as patched:
        for module in (packing, mask_functions):
            whole = module.documents
            patched.setattr(
                module, "documents", lambda *given, whole=whole, **named: made.append(1) or whole(*given, **named)
            )
        run()
    return len(made)


@pytest.mark.parametrize("use_cache", [False, True])
def test_one_mask_for_all_layers_and_for_all_forwards_of_a_batch(use_cache, monkeypatch):
    _, ours = pair(DECODERS["llama"])
    positions = position_ids()
    for _ in range(2):
        assert counted_documents(lambda: ours(ROW, position_ids=position_ids(), use_cache=use_cache), monkeypatch) == 1
    assert counted_documents(lambda: ours(ROW, position_ids=positions, use_cache=use_cache), monkeypatch) == 1
    assert counted_documents(lambda: ours(ROW, position_ids=positions, use_cache=use_cache), monkeypatch) == 0


@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_other_positions_in_the_same_tensor_are_another_batch(use_cache):
    eager, ours = pair(DECODERS["mistral"])
    positions = torch.empty(1, sum(PACKED), dtype=torch.int64)
    for lengths in (PACKED, (3, 7, 13), PACKED):
        positions.copy_(torch.cat([torch.arange(length) for length in lengths]))
        expected = torch.cat([eager(part).logits for part in ROW.split(lengths, 1)], 1)
        assert_close(ours(ROW, position_ids=positions, use_cache=use_cache).logits, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_rows_of_the_collator_of_this_library(name):
    """Offsets count on from row to row; what fills a row up is one document more."""
    eager, ours = pair(DECODERS[name])
    parts = [part[0].tolist() for part in ROW.split(PACKED, 1)]
    batch = loom.batches.Collator(names="transformers", packed=True, length=17)(parts)
    assert batch["input_ids"].shape == (2, 17)
    expected = {tuple(part): eager(torch.tensor([part])).logits[0] for part in parts}
    for use_cache in (False, True):
        logits = ours(**batch, use_cache=use_cache).logits.flatten(0, 1)
        for first, last in itertools.pairwise(batch["cu_seq_lens_q"].tolist()):
            document = tuple(batch["input_ids"].flatten()[first:last].tolist())
            if document in expected:
                assert_close(logits[first:last], expected[document], rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_rows_of_an_encoder():
    eager, ours = pair(ENCODERS["bert"])
    rows = torch.cat([ROW, ROW.flip(1)])
    offsets = torch.tensor([0, *PACKED, 3, 20]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in offsets.diff()]).view(2, -1)
    out = ours(rows, position_ids=positions, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets.clone())[0]
    expected = [*ROW.split(PACKED, 1), *ROW.flip(1).split([3, 20], 1)]
    assert_close(out.view(1, 46, -1), torch.cat([eager(part)[0] for part in expected], 1), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("offsets", [[0, 7, 17], [0, 7, 17, 40, 51], [0, 17, 34, 50]], ids=str)
def test_offsets_of_other_rows(offsets):
    _, ours = pair(DECODERS["llama"])
    with pytest.raises(
        ValueError, match=r"no document is in two rows; the batch has 3 rows of 17, and cu_seq_lens is \[0"
    ):
        ours(tokens(), cu_seq_lens_q=torch.tensor(offsets))


@pytest.mark.parametrize("rows", [1, 2])
def test_documents_that_transformers_found_are_those_of_position_ids(rows, monkeypatch):
    """Which are known to follow one another: their mask is one comparison beside causal."""
    made = []
    whole = LayerMask.__init__
    monkeypatch.setattr(
        LayerMask, "__init__", lambda self, *given, **how: made.append(given[1]) or whole(self, *given, **how)
    )
    eager, ours = pair(DECODERS["llama"])
    ids, places = ROW.expand(rows, -1), position_ids().expand(rows, -1).contiguous()
    found = ours(ids, position_ids=places, use_cache=False).logits
    assert_close(found, apart(eager).expand(rows, -1, -1), rtol=1e-5, atol=5e-6)
    assert {type(part) for part in made[0].parts} == {FromRunStart, type(loom.causal)}
    places[:] = torch.arange(sum(PACKED))  # a write is noticed
    assert_close(ours(ids, position_ids=places, use_cache=False).logits, eager(ids).logits, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", ["gpt-oss", "llama4"])  # one tells its layers the positions, one does not
@torch.no_grad()
def test_packed_in_one_graph(name):
    torch._dynamo.reset()
    eager, ours = pair(DECODERS[name])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert_close(compiled(ROW, position_ids=position_ids()).logits, apart(eager), rtol=1e-5, atol=5e-6)
    plain = torch.arange(sum(PACKED))[None]  # the same graph
    assert_close(compiled(ROW, position_ids=plain).logits, eager(ROW).logits, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_packed_in_a_graph_for_each_layer():
    eager, ours = pair(DECODERS["llama4"])
    for layer in ours.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    assert_close(ours(ROW, position_ids=position_ids()).logits, apart(eager), rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_flattened_batches_in_one_graph_for_all_layers():
    """The first layer leaves nothing that others would find, and the lengths that a collator tells are no constants."""
    torch._dynamo.reset()
    counters.clear()
    eager, ours = pair(DECODERS["llama"])
    for layer in ours.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    for lengths in ((5, 7, 11), (5, 3, 15)):
        parts = ROW.split(lengths, 1)
        collate = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)
        batch = collate([{"input_ids": part[0].tolist()} for part in parts])
        batch.pop("labels")
        apart = torch.cat([eager(part)[0] for part in parts], 1)
        assert_close(ours(**batch, use_cache=False).logits, apart, rtol=1e-5, atol=5e-6)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_layers_mask_moves_and_says_what_it_is():
    mask = LayerMask(loom.causal, loom.causal, Place(2, 3, 5, 0, 0, torch.device("cpu")))
    assert repr(mask.to("cpu").contiguous()) == "LayerMask(causal, shape=(2, 1, 3, 5))"
    step = LayerMask(loom.causal, torch.ones(2, 1, 1, 5).bool(), mask.place._replace(q_len=1))
    assert repr(step.to("cpu")) == "LayerMask(bool[2, 1, 1, 5], shape=(2, 1, 1, 5))"
    assert (mask.ndim, mask.dim(), mask.size(), mask.size(-1), mask.device.type) == (4, 4, (2, 1, 3, 5), 5, "cpu")
    with pytest.raises(TypeError, match="this model indexes its mask as a tensor"):
        mask[0]
    assert mask == mask and mask != None and mask in {mask}  # noqa: E711


@pytest.mark.skipif(
    not hasattr(tf, "EuroBertConfig"), reason="this transformers has no encoder that hands on position ids"
)
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_an_encoder_that_hands_on_position_ids(compiled):
    """With "eager" its documents see each other."""
    torch._dynamo.reset()
    config = tf.EuroBertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = tf.EuroBertModel(config).eval()
    alone = torch.cat([model(part)[0] for part in ROW.split(PACKED, 1)], 1)
    model.set_attn_implementation("maskloom")
    run = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    assert_close(run(ROW, position_ids=position_ids())[0], alone, rtol=1e-5, atol=5e-6)
    assert_close(run(ROW, position_ids=torch.arange(sum(PACKED))[None])[0], model(ROW)[0], rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_a_mask_of_one_key_for_all():
    """ "eager" takes it for all keys: so BART reads a prompt in parts, after its encoder has seen the last part alone."""
    model = pair(SEQUENCES["bart"])[1]
    with pytest.raises(
        TypeError, match='BartAttention attends to 9 keys with a mask for one, which "eager" takes for all'
    ):
        model(
            decoder_input_ids=tokens(1, 3), attention_mask=torch.ones(1, 1).long(),
            encoder_outputs=BaseModelOutput(torch.randn(1, 9, model.config.d_model)),
        )  # fmt: skip


AS_A_TENSOR = {
    "indexes": [lambda mask: mask[0], lambda mask: mask[:, :, ::2, :], lambda mask: mask[:, :1, :, :], lambda mask: mask[:, :, -1], lambda mask: mask[:, :, :2, :]],
    "computes with": [
        lambda mask: torch.cat([mask, mask], -1), lambda mask: torch.where(torch.ones(2).bool(), mask, 0.0), lambda mask: torch.zeros_like(mask),
        lambda mask: torch.zeros(2) + mask, lambda mask: 1.0 - mask, lambda mask: ~mask, lambda mask: mask * 2, lambda mask: mask == 0,
        lambda mask: mask != torch.ones(2), lambda mask: mask > 0, lambda mask: mask & mask,
    ],
    "converts": [
        lambda mask: mask.to(torch.bool), lambda mask: mask.to("cpu", torch.bool), lambda mask: mask.to(dtype=torch.float32),
        lambda mask: mask.to(torch.zeros(2)),
    ],
    "asks for .bool of": [lambda mask: mask.bool()],
    "asks for .expand of": [lambda mask: mask.expand(2, 1, 3, 5)],
    "asks for .masked_fill of": [lambda mask: mask.masked_fill(torch.ones(2).bool(), 0.0)],
    "asks for .dtype of": [lambda mask: mask.dtype],
}  # fmt: skip


@pytest.mark.parametrize("what", list(AS_A_TENSOR))
def test_a_layers_mask_is_no_tensor(what):
    """Models that compute with their mask are told so, and not of what Python or torch makes of it."""
    mask = LayerMask(loom.causal, loom.causal, Place(2, 3, 5, 0, 0, torch.device("cpu")))
    for use in AS_A_TENSOR[what]:
        with pytest.raises((TypeError, AttributeError), match=f"this model {what} its mask as a tensor, outside trans"):
            use(mask)
    assert not hasattr(mask, "bool") and not hasattr(mask, "no such name")


def test_a_mask_of_the_last_queries():
    """Gemma 4 cuts the mask where it computes the last positions alone."""
    place = Place(2, 19, 23, 4, 0, torch.device("cpu"))
    pads = torch.zeros(2, 23, dtype=torch.bool)
    pads[1, :3] = True
    given = loom.masks.shifted(loom.causal, q_offset=4) & loom.key_padding(pads)
    table = given.dense(19, 23, batch=2)
    for mask in (LayerMask(loom.causal, given, place), LayerMask(loom.causal, table, place)):
        assert mask[:, :, 0:, :] is mask and mask[:, :, -40:, :] is mask
        for last in (1, 17):
            cut = mask[:, :, -last:, :]
            found = cut.given if isinstance(cut.given, torch.Tensor) else cut.given.dense(last, 23, batch=2)
            assert cut.shape == (2, 1, last, 23) and cut.place.q_offset == 23 - last
            assert torch.equal(found, table[:, :, -last:])
            assert torch.equal(cut.to("cpu").unbuilt.dense(last, 23, batch=2), table[:, :, -last:])
        with pytest.raises(IndexError, match="a mask of 19 queries has none from 19 on"):
            mask[:, :, 19:, :]


def test_a_cut_mask_isolates_packed_documents():
    place = Place(1, 29, 29, 0, 0, torch.device("cpu"))
    mask = LayerMask(loom.causal, loom.causal, place)
    positions = torch.cat([torch.arange(11), torch.arange(18)])[None]
    for last in (1, 18):
        found = isolated(mask[:, :, -last:, :], said({"position_ids": positions}))
        table = found if isinstance(found, torch.Tensor) else found.dense(last, 29)
        assert not table[..., :11].any()
        assert torch.equal(table[0, 0, :, 11:], torch.ones(last, 18).tril(18 - last).bool())
