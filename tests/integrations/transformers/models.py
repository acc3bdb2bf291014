"""Tiny models of transformers with random weights, as pairs: by "eager" and by maskloom."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5.17")
import transformers as tf

import maskloom.integrations.transformers as hf

hf.register()

BATCH, LENGTH, VOCABULARY = 3, 17, 97  # more than 16 queries: fewer take the way of a step of decoding
PACKED = (5, 7, 11)

_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
_ENCODER = {name: _TEXT[name] for name in ("vocab_size", "intermediate_size", "num_hidden_layers")} | {
    "hidden_size": 32, "num_attention_heads": 4,
}  # fmt: skip
_SEQUENCES = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_CLIP_TEXT = _ENCODER | {"max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VISION = {name: _ENCODER[name] for name in _ENCODER if name != "vocab_size"} | {"image_size": 20, "patch_size": 4}

DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_TEXT, sliding_window=5)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_TEXT, **_BOTH, use_sliding_window=True)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_TEXT)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**_TEXT)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_TEXT, **_BOTH)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_TEXT, **_BOTH)),
    "gpt-oss": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(**_TEXT, **_BOTH, num_local_experts=3, num_experts_per_tok=2)
    ),
    "llama4": lambda: tf.Llama4ForCausalLM(
        tf.Llama4TextConfig(
            **_TEXT, attention_chunk_size=4, intermediate_size_mlp=20, num_local_experts=2, use_qk_norm=False,
            layer_types=["chunked_attention", "full_attention"],
        )
    ),
}  # fmt: skip
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertModel(tf.BertConfig(**_ENCODER)),
    "roberta": lambda: tf.RobertaModel(tf.RobertaConfig(**_ENCODER, pad_token_id=0)),
    "modernbert": lambda: tf.ModernBertModel(
        tf.ModernBertConfig(
            **_ENCODER, pad_token_id=0, local_attention=6, bos_token_id=1, eos_token_id=2, cls_token_id=1,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}  # fmt: skip
SEQUENCES: dict[str, Callable[[], Any]] = {
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=20, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(**_SEQUENCES, max_position_embeddings=64, forced_eos_token_id=None)
    ),
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(**_SEQUENCES, num_mel_bins=7, max_source_positions=11, max_target_positions=64)
    ),
}
VISION: dict[str, Callable[[], Any]] = {
    "clip": lambda: tf.CLIPModel(tf.CLIPConfig(text_config=_CLIP_TEXT, vision_config=_VISION)),
    "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(text_config=_CLIP_TEXT, vision_config=_VISION)),
}


def pair(make: Callable[[], Any]) -> tuple[Any, Any]:
    """The same model by "eager" and by maskloom, both in eval mode."""
    torch.manual_seed(0)
    eager = make().eval()
    for name, parameter in eager.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    ours = copy.deepcopy(eager)
    eager.set_attn_implementation("eager")
    ours.set_attn_implementation("maskloom")
    return eager, ours


def tokens(batch: int = BATCH, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def attention_mask(side: str) -> Tensor:
    """1 = real: int (BATCH, LENGTH), padded at a side, or not at all."""
    pads = torch.tensor([0, 3, 7])[:, None] if side in ("left", "right") else torch.zeros(BATCH, 1)
    positions = torch.arange(LENGTH)
    return (positions >= pads if side == "left" else positions < LENGTH - pads).long()


def position_ids() -> Tensor:
    """Of a packed row: (1, sum of PACKED)."""
    return torch.cat([torch.arange(length) for length in PACKED])[None]
