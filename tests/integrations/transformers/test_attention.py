"""What models of transformers do around their attention: checkpoints, autocast, weights, masks of the user, one graph."""

import pytest
import torch
import transformers as tf
from torch._dynamo.utils import counters
from torch.testing import assert_close
from transformers import AttentionInterface, DynamicCache, StaticCache

import maskloom as loom
from maskloom.integrations.transformers import attention as hf_attention
from tests.attention.test_host_cost import count_calls
from tests.integrations.transformers.models import (
    BATCH,
    DECODERS,
    ENCODERS,
    LENGTH,
    SEQUENCES,
    SIDES,
    VISION,
    attention_mask,
    compare,
    hf,
    pair,
    tokens,
)


@torch.no_grad()
def test_one_part_of_a_model():
    eager, ours = pair(VISION["clip"])
    ours.set_attn_implementation({"text_config": "eager", "vision_config": "maskloom"})
    given = {"input_ids": tokens(), "pixel_values": torch.randn(BATCH, 3, 20, 20)}
    compare(ours(**given).image_embeds, eager(**given).image_embeds)


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "float", "added"])
@pytest.mark.parametrize("shape", ["b11k", "111k", "bh1k", "b1qk", "bhqk", "b1q1", "1h11"])
def test_tables_that_are_the_same_for_some_axes(shape, kind):
    """As scaled_dot_product_attention takes them."""
    sizes = dict(zip("bhqk", (BATCH, 4, 19, 23), strict=True))
    query, key = torch.randn(BATCH, 4, 19, 8), torch.randn(BATCH, 2, 23, 8)
    wide = [sizes.get(axis, 1) for axis in shape]
    seen = torch.rand(wide) < 0.8
    table = {
        "bool": seen,
        "float": torch.zeros(wide).masked_fill(~seen, torch.finfo(torch.float32).min),
        "added": torch.randn(wide).masked_fill(~seen, -torch.inf),
    }[kind]
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, key, table, enable_gqa=True).nan_to_num(0)
    hidden = ~seen.expand(BATCH, 4, 19, 23).any(-1, keepdim=True)  # where sdpa takes the mean of all values
    for _ in range(2):
        out, _ = hf_attention.attention(torch.nn.Module(), query, key, key, table)
        assert_close(out.transpose(1, 2), theirs.masked_fill(hidden, 0))


@pytest.mark.parametrize("shape", [(BATCH, 1, LENGTH, LENGTH), (1, 1, 1, LENGTH), (BATCH, 1, 1, LENGTH + 3)])
@torch.no_grad()
def test_a_float_table_is_read_once_for_all_layers(shape, monkeypatch):
    _, ours = pair(DECODERS["llama"])
    seen, split = [], hf_attention._split
    monkeypatch.setattr(hf_attention, "_split", lambda *given: seen.append(given) or split(*given))
    table = torch.zeros(shape)
    outputs = [ours(tokens(), attention_mask=table).logits for _ in range(2)]
    assert len(seen) == 1 and torch.equal(*outputs)
    table[..., 0] = -torch.inf
    assert not torch.equal(ours(tokens(), attention_mask=table).logits, outputs[0])
    assert len(seen) == 2


# -- gradients ---------------------------------------------------------------------------------------------------------


def loss_and_gradients(model, given):
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    eager, ours = pair(DECODERS["gpt-oss"])
    real = attention_mask("right")
    given = {"input_ids": tokens(), "attention_mask": real, "labels": tokens().masked_fill(real == 0, -100)}
    ours.train()
    ours.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_close(loss_and_gradients(ours, given), loss_and_gradients(eager, given), rtol=1e-4, atol=1e-6)


def test_autocast():
    eager, ours = pair(DECODERS["llama"])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert_close(ours(tokens()).logits, eager(tokens()).logits, rtol=0.02, atol=0.01)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss", "t5", "bart"])
@torch.no_grad()
def test_weights_that_are_asked_for(name):
    eager, ours = pair({**DECODERS, **SEQUENCES}[name])
    given = {"input_ids": tokens(), "output_attentions": True}
    if name in SEQUENCES:
        given["decoder_input_ids"] = tokens(length=7)
    theirs, own = eager(**given), ours(**given)
    kinds = ["encoder_attentions", "decoder_attentions", "cross_attentions"] if name in SEQUENCES else ["attentions"]
    for kind in kinds:
        assert len(own[kind]) == len(theirs[kind])  # before 5.18 T5 hands none on
        assert_close(tuple(own[kind]), tuple(theirs[kind]), rtol=1e-5, atol=1e-6)


# -- masks of the user -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_masks_that_the_user_gives():
    eager, ours = pair(DECODERS["llama"])
    seen = torch.ones(LENGTH, LENGTH).tril().bool()[None, None].repeat(BATCH, 1, 1, 1)
    seen[1, :, 7:, 2] = False
    lowest = torch.finfo(torch.float32).min
    floats = torch.where(seen, 0.0, lowest)
    expected = eager(tokens(), attention_mask=floats).logits
    for given in (seen, floats, torch.where(seen, 0.0, -torch.inf), seen.expand(BATCH, 6, LENGTH, LENGTH)):
        compare(ours(tokens(), attention_mask=given).logits, expected)
    added = floats + torch.randn(BATCH, 1, LENGTH, LENGTH)
    compare(ours(tokens(), attention_mask=added).logits, eager(tokens(), attention_mask=added).logits)
    blocks = loom.block_mask(loom.masks.from_dense(seen), LENGTH, LENGTH)
    compare(ours(tokens(), attention_mask=blocks).logits, expected)


def test_masks_that_are_none():
    _, ours = pair(DECODERS["llama"])
    with pytest.raises(TypeError, match=r"floats that are added to the scores; got torch.int64 \(3, 1, 17, 17\)"):
        ours(tokens(), attention_mask=torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.int64))


@torch.no_grad()
def test_a_layer_that_would_lose_its_mask():
    """Doge adds what it computes of its values to a table, and not to a BlockMask: causality would vanish in silence."""
    config = tf.DogeConfig(
        vocab_size=97, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    model = tf.DogeForCausalLM(config).eval()
    model.set_attn_implementation("maskloom")
    with pytest.raises(TypeError, match=r'DogeAttention makes its mask of the values .* attn_implementation="sdpa"'):
        model(tokens())


@pytest.mark.skipif(not hasattr(tf, "DeepseekV4Config"), reason="newer transformers")
@torch.no_grad()
def test_a_layer_that_appends_keys_to_its_mask():
    """DeepSeek V4 appends compressed keys, and makes the mask longer only where that is a tensor."""
    config = tf.DeepseekV4Config(
        vocab_size=97, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1,
        head_dim=16, q_lora_rank=16, o_lora_rank=8, o_groups=2, qk_rope_head_dim=8, n_routed_experts=4, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=5, index_n_heads=2, index_head_dim=8, index_topk=4,
        layer_types=["compressed_sparse_attention"], max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    model = tf.DeepseekV4ForCausalLM(config).eval()
    model.set_attn_implementation("maskloom")
    for length in (LENGTH, 9):  # a table of tiles, and one of elements
        with pytest.raises(
            TypeError, match=r"DeepseekV4Attention attends to \d+ keys with a mask for .*: it appends keys of"
        ):
            model(tokens()[:, :length])


@torch.no_grad()
def test_a_model_that_converts_its_mask():
    config = tf.MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=97, max_seq_len=64)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="maskloom")
    with pytest.raises(
        TypeError, match="this model converts its mask as a tensor, outside transformers' attention interf"
    ):
        model(tokens())


def test_a_model_whose_window_is_switched_off():
    """Qwen 2 MoE says so by a window of 0 keys."""
    config = {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 97,
    }
    experts = {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 12,
    }
    eager, ours = pair(lambda: tf.Qwen2MoeForCausalLM(tf.Qwen2MoeConfig(**config, **experts, num_key_value_heads=1)))
    assert not ours.config.sliding_window
    for given in ({}, {"attention_mask": attention_mask("right")}):
        with torch.no_grad():
            logits, expected = (model(tokens(), **given).logits for model in (ours, eager))
        real = given.get("attention_mask", torch.ones_like(tokens())).bool()
        assert_close(logits[real], expected[real])


def test_functions_that_the_user_joins_to_the_mask():
    """They are not read: the mask is made by the general door."""
    from transformers.masking_utils import create_causal_mask

    eager, ours = pair(DECODERS["llama"])
    odd = {"or_mask_function": lambda b, h, q, k: (q - k) % 3 == 0, "and_mask_function": lambda b, h, q, k: q + k != 9}
    for side in SIDES:
        real = attention_mask(side)
        made = [
            create_causal_mask(model.config, torch.empty(BATCH, LENGTH, 1), real, DynamicCache(), **odd)
            for model in (eager, ours)
        ]
        eager_out, own = (
            model(tokens(), attention_mask=mask).logits for model, mask in zip((eager, ours), made, strict=True)
        )
        compare(own, eager_out, real.bool())


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 3}])
def test_other_ways_to_generate(options):
    eager, ours = pair(DECODERS["gemma3"])
    given = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, **options}
    prompts = tokens(batch=1)
    assert ours.generate(prompts, **given).equal(eager.generate(prompts, **given))


@torch.no_grad()
def test_a_prompt_in_parts():
    eager, ours = pair(DECODERS["gemma2"])
    whole = eager(tokens()).logits
    cache = DynamicCache(config=ours.config)
    parts = [ours(part, past_key_values=cache).logits for part in tokens().split([5, 1, 11], 1)]
    compare(torch.cat(parts, 1), whole)


# -- torch.compile -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_without_gradients(mode):
    eager, ours = pair(DECODERS["gpt-oss"])
    with mode():
        compare(ours(tokens()).logits, eager(tokens()).logits)
        real = attention_mask("left")
        compare(ours(tokens(), real).logits, eager(tokens(), real).logits, real.bool())


@pytest.mark.parametrize("name", ["mistral"])
@torch.no_grad()
def test_a_whole_model_in_one_graph(name):
    torch._dynamo.reset()
    eager, ours = pair(DECODERS[name])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for side in SIDES:
        real = attention_mask(side)
        compare(
            compiled(tokens(), attention_mask=real).logits, eager(tokens(), attention_mask=real).logits, real.bool()
        )


@torch.no_grad()
def test_lengths_share_a_graph():
    """One for the first length, and one for all others, whether they are few or many."""
    torch._dynamo.reset()
    counters.clear()
    eager, ours = pair(DECODERS["llama"])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for length in (20, 33, 9, 17, 16):
        ids = torch.randint(3, 90, (BATCH, length))
        real = torch.arange(length) < torch.tensor([[length], [5], [3]])
        given = {"attention_mask": real.long()}
        compare(compiled(ids, **given).logits, eager(ids, **given).logits, real)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("name", ["llama"])
@torch.no_grad()
def test_steps_of_decoding_in_one_graph(name):
    """With a static cache, whose position is a tensor: the mask of a few queries is made in the graph."""
    torch._dynamo.reset()
    counters.clear()
    eager, ours = pair(DECODERS[name])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    caches = [StaticCache(config=model.config, max_cache_len=32) for model in (ours, eager)]
    for model, cache in zip((ours, eager), caches, strict=True):
        model(tokens(), past_key_values=cache)
    for step in range(3):
        one = tokens()[:, step : step + 1]
        compare(compiled(one, past_key_values=caches[0]).logits, eager(one, past_key_values=caches[1]).logits)
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_an_exported_model():
    eager, ours = pair(DECODERS["gemma2"])
    given = {"input_ids": tokens(), "attention_mask": attention_mask("left"), "use_cache": False}
    exported = torch.export.export(ours, (), given, strict=False).module()
    real = attention_mask("right")  # of others
    given["attention_mask"] = real
    compare(exported(**given).logits, eager(**given).logits, real.bool())


def test_dropout_of_attention_weights_in_training():
    _, ours = pair(ENCODERS["bert"])
    for name, module in ours.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith("self.dropout"):
            module.p = 0.0
    plain = ours(tokens())[0]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(ours.train()(tokens())[0])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2]) and not torch.allclose(found[0], plain)
    assert torch.equal(ours.eval()(tokens())[0], plain)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_causal_layer_without_mask_beside_a_cache():
    _, ours = pair(DECODERS["llama"])
    from maskloom.integrations.transformers.attention import attention

    layer = ours.model.layers[0].self_attn
    with pytest.raises(ValueError, match="LlamaAttention is causal and got no mask for 5 queries and 7 keys"):
        attention(layer, torch.randn(2, 6, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8), None)


# -- what it costs the host --------------------------------------------------------------------------------------------


def calls_of_layers(run, monkeypatch):
    """The Python functions that run in the attention of each layer, but for those inside `attend`."""
    from maskloom.integrations.transformers import attention as half

    found, inside = [], []

    def counting(function, into):
        def counted(*given, **named):
            out = []
            into.append(count_calls(lambda: out.append(function(*given, **named))) - 1)
            return out[0]

        return counted

    run()
    for whole, into in (("attention", found), ("attend", inside)):
        counted = counting(getattr(half, whole), into)
        with monkeypatch.context() as patched:
            patched.setattr(half, whole, counted)
            AttentionInterface.register("maskloom", half.attention)
            run()
    hf.register()
    return [outer - inner for outer, inner in zip(found, inside, strict=True)]


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_a_layer_costs_the_host_few_calls_beside_attend(side, monkeypatch):
    """The first layer of a forward has more to do; for the others all is there."""
    _, ours = pair(DECODERS["llama"])
    given = {"input_ids": tokens(length=29), "labels": tokens(length=29)}
    if side is not None:
        given["attention_mask"] = torch.ones(BATCH, 29).long()
        given["attention_mask"][1, slice(5) if side == "left" else slice(-5, None)] = 0
    costs = calls_of_layers(lambda: ours(**given).loss.backward(), monkeypatch)
    assert max(costs[1:]) <= (10 if side is None else 8)
