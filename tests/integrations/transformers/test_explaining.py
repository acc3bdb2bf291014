"""What is said of each layer."""

import pytest
from transformers import AttentionInterface

from maskloom.integrations.transformers.attention import attention
from tests.integrations.transformers.models import DECODERS, attention_mask, hf, pair, tokens


def test_each_layer_is_explained():
    _, ours = pair(DECODERS["gemma3"])
    found = hf.explain(ours, {"input_ids": tokens(), "attention_mask": attention_mask("right")})
    assert [layer.name for layer in found.layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert [layer.mask for layer in found.layers] == [
        "window(back=4, ahead=0) & real(bool[3, 17])",
        "causal & real(bool[3, 17])",
    ]
    assert "given: causal & real(bool[3, 17])\n  backend: sdpa (" in str(found)
    assert found.others == {}
    assert AttentionInterface()["maskloom"] is attention


def test_layers_that_are_alike_are_told_once():
    _, ours = pair(DECODERS["llama"])
    text = str(hf.explain(ours, {"input_ids": tokens()}))
    assert text.startswith(
        "model.layers.0.self_attn to model.layers.1.self_attn, 2 layers\n  given: causal\n  backend: sdpa ("
    )


def test_parts_that_run_otherwise_are_named():
    eager, _ = pair(DECODERS["llama"])
    found = hf.explain(eager, {"input_ids": tokens()})
    assert (
        str(found)
        == "the model: attn_implementation='eager', not 'maskloom'\nmodel: attn_implementation='eager', not 'maskloom'"
    )


def test_what_is_explained():
    _, ours = pair(DECODERS["llama"])
    with pytest.raises(TypeError, match="explain takes a model of transformers; got int"):
        hf.explain(3, {})
    with pytest.raises(TypeError, match=r"explain takes a batch as a dict of arguments, .* got Tensor"):
        hf.explain(ours, tokens())
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        hf.explain(ours, {})
    assert AttentionInterface()["maskloom"] is attention
