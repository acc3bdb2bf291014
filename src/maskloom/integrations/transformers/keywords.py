"""What transformers says to an attention function besides the tensors: what counts, what does not, and what is refused."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from maskloom.core.words import brief


class Said(NamedTuple):
    """The keywords that change what attention computes.

    Attributes:
        softcap: the greatest size of a score. None or 0 is no cap.
        sinks: (H,), ``s_aux`` of gpt-oss.
        position_bias: (1 or B, H, Q, K), added to the scaled scores (T5).
        is_causal: whether a layer without a mask is causal; None leaves it to the module.
        sliding_window: keys that a causal layer without a mask sees, its own counted.
        position_ids: (1 or B, Q). cu_seq_lens_q, cu_seq_lens_k: (documents + 1,), where packed documents begin.
        output_attentions: whether the weights are wanted.
        deterministic: whether gradients are to be the same at every run.
        kernel_options: for torch's flex_attention.
    """

    softcap: float | None = None
    sinks: Tensor | None = None
    position_bias: Tensor | None = None
    is_causal: bool | None = None
    sliding_window: int | None = None
    position_ids: Tensor | None = None
    cu_seq_lens_q: Tensor | None = None
    cu_seq_lens_k: Tensor | None = None
    output_attentions: bool | None = None
    deterministic: bool | None = None
    kernel_options: Mapping[str, object] | None = None


_SYNONYMS = {"s_aux": "sinks"}

HARMLESS = {
    # of the cache and of the outputs, which the layer around the attention sees to
    "cache_position", "past_key_value", "past_key_values", "use_cache", "layer_idx", "position_embeddings",
    "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep", "return_shared_kv_states",
    # of the loss
    "num_items_in_batch", "labels", "shift_labels", "ignore_index",
    # of flash attention and of other kinds of layers: said in another way too
    "max_length_q", "max_length_k", "seq_idx", "target_dtype", "implementation", "use_top_left_mask",
    # tokens and features of other kinds, which make masks and embeddings before the layers
    "token_type_ids", "mm_token_type_ids", "pixel_values", "image_grid_thw", "video_grid_thw", "grid_thw",
}  # fmt: skip
"""Keywords that change nothing in the attention itself."""

_REASONS = {
    "cache": "continuous batching keeps its keys in pages, which only transformers' own functions read",
    "indices": "this model chooses keys for each query (sparse attention), which only its own function does",
    "block_indices": "this model chooses blocks of keys for each query, which only its own function does",
    "head_mask": "heads are scaled after the softmax",
    "layer_head_mask": "heads are scaled after the softmax",
}

_ignored: set[str] = set()


def ignore(names: set[str]) -> None:
    """Take these keywords for harmless from now on."""
    _ignored.update(names)


def said(keywords: dict[str, Any]) -> Said:
    """The keywords that count.

    Raises:
        TypeError: one that is not known, and may change the answer.
    """
    counted: dict[str, Any] = {}
    for name, value in keywords.items():
        field = _SYNONYMS.get(name, name)
        if field in Said._fields:
            counted[field] = value
            if field == "sinks" and value is not None and value.ndim != 1:
                raise TypeError(
                    f'attn_implementation="maskloom" cannot run with {name}={brief(value)}: it has one sink for each head, (H,), and this '
                    'model one for each query. Load it with "eager"'
                )
        # the names first: a number that is looked at while torch traces, as a length, is a constant of the graph
        elif not (name in HARMLESS or name in _ignored or value is None or value is False):
            raise TypeError(_refused(name, value))
    return Said(**counted)


def _refused(name: str, value: Any) -> str:
    if name in _REASONS:
        return f'attn_implementation="maskloom" cannot run with {name}={brief(value)}: {_REASONS[name]}'
    return (
        f"the model gives {name}={brief(value)} to its attention, which maskloom does not know: it may change the answer. "
        f'If it does not, say so: maskloom.integrations.transformers.register(ignore=["{name}"])'
    )


_OWN_MASKS = {
    "DogeAttention": "makes its mask of the values alone where its own is a BlockMask, so that causality and padding are lost"
}


def refuse_own_mask(module: Any) -> None:
    """Raise a TypeError for a layer that is known to leave out the mask that it got."""
    reason = _OWN_MASKS.get(type(module).__name__)
    if reason is not None:
        raise TypeError(f'{type(module).__name__} {reason}. Load the model with attn_implementation="sdpa" or "eager"')
