"""What a model costs the host beside "sdpa", in calls of Python functions and operations of torch: not in times."""

import sys

import pytest
import torch
import transformers as tf
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from maskloom.attention.backends import compiled, decode
from maskloom.attention.plans import kinds, steps
from maskloom.attention.request import Request
from maskloom.blocks.replay import kinds as kinds_of_blocks
from maskloom.core.cache import LRU
from maskloom.core.checks import readable
from maskloom.integrations.transformers import layer_mask, masks
from tests.attention.test_host_cost import count_calls
from tests.integrations.transformers.models import (
    BATCH,
    DECODERS,
    LENGTH,
    PACKED,
    attention_mask,
    hf,
    pair,
    position_ids,
    tokens,
)

FEW, MANY = 2, 5  # layers


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What chooses kernels takes the tensors to be on a GPU, whose values it does not read; no kernel runs for a step."""

    def launched(query, key, value, table, scale):
        return torch.empty_like(query), None

    for module in [module for name, module in sys.modules.items() if name.startswith("maskloom")]:
        if getattr(module, "readable", None) is readable:
            monkeypatch.setattr(module, "readable", lambda table: False)
    monkeypatch.setattr(layer_mask, "takes_table", lambda place: place.q_len <= layer_mask.FEW)
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(steps, "_table_plans", LRU(3))
    for module in (kinds, kinds_of_blocks):  # other tests leave there what masks of this structure are on a CPU
        monkeypatch.setattr(module, "_kinds", kinds_of_blocks.kinds_cache())
    monkeypatch.setattr(decode, "has_triton", lambda: True)
    monkeypatch.setattr(decode, "_kernel", lambda: launched)
    monkeypatch.setattr(compiled, "_compiled_for", lambda kind, dynamic: _trained)


def _trained(query, key, value, *_):
    """In place of a compiled kernel: what has the gradients that one has, in few operations."""
    return query + key.sum() * value.sum(), None


def llama(layers):
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=20, num_hidden_layers=layers, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config)


def stepping(layers, name):
    """A step of decoding behind prompts that are padded at the left, some steps after the first."""
    model = llama(layers).eval()
    cache, real = DynamicCache(config=model.config), attention_mask("left")
    model.set_attn_implementation("sdpa")
    model(tokens(), attention_mask=real, past_key_values=cache)
    model.set_attn_implementation(name)

    def step():
        nonlocal real
        real = torch.cat([real, real.new_ones(BATCH, 1)], 1)
        places = real.sum(1, keepdim=True) - 1
        model(tokens(length=1), attention_mask=real, position_ids=places, past_key_values=cache)

    for _ in range(3):
        step()
    return step


def costs(make, name, *given):
    """The calls of a layer, and of all else."""
    few, many = (count_calls(make(layers, name, *given)) for layers in (FEW, MANY))
    a_layer = (many - few) // (MANY - FEW)
    return a_layer, few - FEW * a_layer


@torch.no_grad()
def test_a_step_of_decoding_is_few_calls(on_a_gpu):
    ours, theirs = costs(stepping, "maskloom"), costs(stepping, "sdpa")
    assert ours[0] - theirs[0] <= 18
    assert ours[1] - theirs[1] <= 5  # once for all layers


def operations(run):
    """How often each operation of torch is called, those that it calls itself too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    return {each.key: each.count for each in profiled.key_averages() if each.key.startswith("aten::")}


def more_for_a_layer(name):
    few, many = (operations(stepping(layers, name)) for layers in (FEW, MANY))
    return {key: (many[key] - few.get(key, 0)) / (MANY - FEW) for key in many}


@torch.no_grad()
def test_a_step_of_decoding_copies_nothing_in_a_layer(on_a_gpu):
    ours, theirs = more_for_a_layer("maskloom"), more_for_a_layer("sdpa")
    for copying in (
        "aten::clone",
        "aten::copy_",
        "aten::expand",
        "aten::where",
        "aten::bitwise_not",
        "aten::bitwise_and",
    ):
        assert ours.get(copying, 0) <= theirs.get(copying, 0), copying
    assert ours.get("aten::clone", 0) == 0 == ours.get("aten::where", 0)
    assert sum(ours.values()) < sum(theirs.values())


@torch.no_grad()
def test_the_mask_of_a_step_is_a_view_of_the_padding(on_a_gpu):
    real = attention_mask("left").bool()
    given = {"batch_size": BATCH, "q_length": 1, "kv_length": LENGTH, "q_offset": LENGTH - 1, "attention_mask": real}
    made = []
    found = operations(lambda: made.append(masks.layer_mask(**given)))
    assert sum(found.values()) <= 12  # slices and views, each of which counts twice
    assert not {"aten::copy_", "aten::fill_", "aten::bitwise_not", "aten::constant_pad_nd"} & set(found)
    assert made[0].mask.data_ptr() == real.data_ptr()
    assert made[0].mask[:, 0, 0].equal(real)


@torch.no_grad()
def test_explain_says_what_a_step_runs(on_a_gpu):
    _, ours = pair(DECODERS["llama"])
    cache, real = DynamicCache(config=ours.config), attention_mask("left")
    ours(tokens(length=LENGTH - 1), attention_mask=real[:, :-1], past_key_values=cache)
    found = hf.explain(ours, {"input_ids": tokens(length=1), "attention_mask": real, "past_key_values": cache})
    assert [(layer.mask, layer.call.backend) for layer in found.layers] == [("bool[3, 1, 1, 17]", "decode")] * 2


BATCHES = {
    "plain": {"input_ids": tokens()},
    "padded": {"input_ids": tokens(), "attention_mask": attention_mask("right")},
    "packed": {"input_ids": tokens(1, sum(PACKED)), "position_ids": position_ids()},
}


def training(layers, name, form, is_new):
    """A forward and a backward, of a batch that was there before or of a new one like it."""
    model = llama(layers).train()
    model.set_attn_implementation(name)

    def step(batch):
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()

    for _ in range(4):
        step(BATCHES[form] if not is_new else {key: held.clone() for key, held in BATCHES[form].items()})
    batch = BATCHES[form] if not is_new else {key: held.clone() for key, held in BATCHES[form].items()}
    return lambda: step(batch)


@pytest.mark.parametrize(
    ("form", "is_new", "once"),
    [
        ("plain", False, 50), ("padded", False, 60), ("packed", False, 145), ("padded", True, 350), ("packed", True, 425),
    ],
)  # fmt: skip
def test_a_step_of_training_is_few_calls(on_a_gpu, form, is_new, once):
    """Beyond those of "sdpa", in each layer and once for all: less where the same batch comes again."""
    ours, theirs = (costs(training, name, form, is_new) for name in ("maskloom", "sdpa"))
    assert ours[0] - theirs[0] <= 54
    assert ours[1] - theirs[1] <= once
