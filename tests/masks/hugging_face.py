"""Masks as Hugging Face transformers makes them, from 5.0 on: names and arguments changed on the way."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, masking_utils

_MAKERS: dict[str, Callable[..., Any]] = {
    "full": masking_utils.create_causal_mask,
    "sliding": masking_utils.create_sliding_window_causal_mask,
    "chunked": masking_utils.create_chunked_causal_mask,
}

REMAPS_PACKED = hasattr(masking_utils, "remap_positions_for_packed_sequence")
"""Whether windows and chunks of a packed row are counted inside each document."""


def dense_of(
    mask_function: Callable[..., Any], batch: int, q_len: int, kv_len: int, *, q_offset: int = 0, **options: Any
) -> Tensor:
    """The table of one of transformers' mask functions: bool (B, 1, Q, K)."""
    positions = {"q_length": q_len, "q_offset": q_offset, "cache_position": torch.arange(q_len) + q_offset}
    taken = {name: value for name, value in positions.items() if _takes(masking_utils.sdpa_mask, name)}
    table = masking_utils.sdpa_mask(
        batch_size=batch, kv_length=kv_len, mask_function=mask_function, allow_is_causal_skip=False, **taken, **options
    )
    assert table is not None
    return table


def dense_of_a_layer(position_ids: Tensor, *, kind: Literal["full", "sliding", "chunked"], **numbers: int) -> Tensor:
    """The table that a model gets for one kind of layer and these positions (B, L), without padding and cache: bool (B, 1, L, L)."""
    config = PreTrainedConfig()
    config._attn_implementation = "sdpa"
    for name, number in numbers.items():
        setattr(config, name, number)
    batch, length = position_ids.shape
    embeddings = torch.empty(batch, length, 1)
    given = {
        "config": config, "inputs_embeds": embeddings, "input_embeds": embeddings, "position_ids": position_ids,
        "cache_position": torch.arange(length), "attention_mask": None, "past_key_values": None, "cache": None,
    }  # fmt: skip
    return _MAKERS[kind](**{name: value for name, value in given.items() if _takes(_MAKERS[kind], name)})


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters
