"""Tiny models of transformers with random weights, as pairs: by "eager" and by maskloom."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("transformers", minversion="5.17")
import transformers as tf

import maskloom.integrations.transformers as hf

hf.register()

BATCH, LENGTH, VOCABULARY = 3, 17, 97  # more than 16 queries: fewer take the way of a step of decoding
PACKED = (5, 7, 11)
SIDES = ["none", "right", "left"]  # of padding

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
_ROPE_OF_QWEN = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
_VISION_OF_QWEN = {
    "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 20, "out_hidden_size": 48, "patch_size": 2,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 8, "fullatt_block_indexes": [1],
}  # fmt: skip
PICTURE = 3  # the token in whose place a part of a picture is put

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
if hasattr(
    tf, "Gemma4TextConfig"
):  # whose last layers have no keys of their own, and in generate() no queries but the last
    DECODERS["gemma4"] = lambda: tf.Gemma4ForCausalLM(
        tf.Gemma4TextConfig(
            **_TEXT | {"num_hidden_layers": 3}, global_head_dim=8, vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=8, num_kv_shared_layers=1, sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
        )
    )  # fmt: skip
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertModel(tf.BertConfig(**_ENCODER)),
    "layoutlm": lambda: tf.LayoutLMModel(tf.LayoutLMConfig(**_ENCODER)),  # makes a float mask (B, 1, 1, K) by itself
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
PICTURES: dict[str, Callable[[], Any]] = {
    "qwen2.5-vl": lambda: tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(
            text_config=_TEXT | {"hidden_size": 48, "rope_parameters": _ROPE_OF_QWEN},
            vision_config=_VISION_OF_QWEN, image_token_id=PICTURE, video_token_id=4, vision_start_token_id=5,
            vision_end_token_id=6,
        )
    ),
    "gemma3 with pictures": lambda: tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(
            text_config=_TEXT | _BOTH, vision_config=_VISION | {"image_size": 16}, mm_tokens_per_image=4,
            image_token_index=PICTURE, image_token_id=PICTURE, boi_token_index=5, eoi_token_index=6,
        )
    ),
}  # fmt: skip
"""Decoders that also get pictures. Those of Qwen have several sizes, in one row that is split into windows; the tokens of
a picture of Gemma see each other."""


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


def compare(ours: Tensor, eager: Tensor, real: Tensor | None = None) -> None:
    """Equal at real positions, finite at all."""
    assert ours.isfinite().all()
    at = slice(None) if real is None else real
    assert_close(ours[at], eager[at], rtol=1e-5, atol=5e-6)


def tokens(batch: int = BATCH, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def attention_mask(side: str, most: int = 7) -> Tensor:
    """1 = real: int (BATCH, LENGTH), padded at a side by up to ``most``, or not at all."""
    pads = torch.tensor([0, 3, most])[:, None] if side in ("left", "right") else torch.zeros(BATCH, 1)
    positions = torch.arange(LENGTH)
    return (positions >= pads if side == "left" else positions < LENGTH - pads).long()


def with_pictures(name: str) -> dict[str, Tensor]:
    """Tokens (BATCH, LENGTH), 4 of them for a picture in each row, from position 7 on."""
    ids = tokens().clamp(min=7)
    ids[:, 6], ids[:, 7:11] = 5, PICTURE
    is_picture = (ids == PICTURE).long()
    generator = torch.Generator().manual_seed(2)
    if name == "qwen2.5-vl":
        sizes = torch.tensor([[1, 4, 4], [1, 2, 8], [1, 8, 2]])
        pixels = torch.randn(BATCH * 16, 3 * 2 * 2 * 2, generator=generator)
        return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": sizes, "mm_token_type_ids": is_picture}
    pixels = torch.randn(BATCH, 3, 16, 16, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels, "token_type_ids": is_picture}


def position_ids() -> Tensor:
    """Of a packed row: (1, sum of PACKED)."""
    return torch.cat([torch.arange(length) for length in PACKED])[None]
