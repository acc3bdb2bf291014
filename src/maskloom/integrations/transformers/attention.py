"""The half that attends: what each layer of a model calls."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.attend import attend
from maskloom.attention.weights import attention_weights
from maskloom.core.checks import readable
from maskloom.integrations.transformers.keywords import Said, refuse_own_mask, said
from maskloom.integrations.transformers.layer_mask import LayerMask, Place
from maskloom.integrations.transformers.mask_functions import kept_for_batch
from maskloom.integrations.transformers.masks import placed
from maskloom.integrations.transformers.packing import isolated
from maskloom.masks.algebra import Mask, everything
from maskloom.masks.patterns.from_tables import from_dense
from maskloom.masks.patterns.padding import key_padding
from maskloom.masks.patterns.relative import causal, window_counting_itself
from maskloom.nn.convert.masks import AddedTable
from maskloom.scores.base import ScoreMod
from maskloom.scores.compose import compose
from maskloom.scores.softcap import softcap


class Call(NamedTuple):
    """A layer's attention as arguments of `attend`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask | BlockMask | Tensor
    options: dict[str, Any]


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LayerMask | BlockMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer, for transformers' ``AttentionInterface``.

    Args:
        module: the layer; ``is_causal`` of it counts where there is no mask.
        query: (B, H, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E).
        attention_mask: what `layer_mask` made; or a user's BlockMask, or table (1 or B, 1 or H, 1 or Q, K): bool, True = may
            attend, or floats that are added to the scores, where -inf and the lowest number of the dtype hide.
        scaling: of the scores; by default ``1 / sqrt(D)``.
        dropout: of probabilities, as `maskloom.attend` drops them.
        keywords: see `Said`.

    Returns:
        (B, Q, H, E), and the weights (B, H, Q, K), before dropout, where ``output_attentions`` asks for them.

    Raises:
        TypeError: a keyword that is not known and may change the answer, a mask of another kind, or a layer that makes its own
            mask without the one that it got.
        ValueError: a mask that does not fit.
    """
    call, told = call_of(module, query, key, value, attention_mask, scaling, dropout, keywords)
    out = attend(call.query, call.key, call.value, call.mask, **call.options).transpose(1, 2).contiguous()
    return out, _weights(call) if told.output_attentions else None


def call_of(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LayerMask | BlockMask | Tensor | None,
    scaling: float | None,
    dropout: float,
    keywords: dict[str, Any],
) -> tuple[Call, Said]:
    """What `attend` is called with, and the keywords that count."""
    told = said(keywords)
    mask, added = _mask_of(module, query, key, attention_mask, told)
    scores: list[ScoreMod] = []  # softcap first, then what is added, as in transformers' own functions
    if told.softcap:
        scores.append(softcap(told.softcap))
    if told.position_bias is not None:
        scores.append(_added(told.position_bias[..., : key.shape[2]]))
    if added is not None:
        scores.append(_added(added))
    options: dict[str, Any] = {
        "scale": scaling,
        "score_mod": compose(*scores) if scores else None,
        "dropout": dropout,
        "sinks": told.sinks,
        "deterministic": bool(told.deterministic),
        "kernel_options": told.kernel_options,
    }
    return Call(query, key, value, mask, options), told


def _weights(call: Call) -> Tensor:
    options = {name: call.options[name] for name in ("scale", "score_mod", "sinks")}
    return attention_weights(call.query, call.key, call.mask, **options)


# -- masks -------------------------------------------------------------------------------------------------------------


def _mask_of(
    module: torch.nn.Module, query: Tensor, key: Tensor, given: Any, told: Said
) -> tuple[Mask | BlockMask | Tensor, Tensor | None]:
    """The mask, and what a user's float mask adds to scores."""
    if given is None:
        given = _without_mask(module, query, key, told)
    if isinstance(given, LayerMask):
        if key.shape[2] > given.place.kv_len:
            if given.positions.of_itself is False and given.place.kv_len == 1 < key.shape[2]:
                raise TypeError(
                    f'{type(module).__name__} attends to {key.shape[2]} keys with a mask for one, which "eager" takes for all of them: '
                    "whether that is meant is not known. Give a mask of the keys, encoder_attention_mask say, or run it in one part"
                )
            raise TypeError(
                f"{type(module).__name__} attends to {key.shape[2]} keys with a mask for {given.place.kv_len}: it appends keys of its own, "
                'and makes a mask for them only where it is a tensor. Load the model with attn_implementation="eager"'
            )
        return isolated(given, told), None
    if isinstance(given, BlockMask):
        return given, None
    refuse_own_mask(module)
    return _of_table(given, len(query), query.shape[2], key.shape[2])


def _without_mask(module: torch.nn.Module, query: Tensor, key: Tensor, told: Said) -> LayerMask:
    """The mask of a layer for which the model made none, as transformers' own functions understand it."""
    (batch, _, q_len, _), kv_len = query.shape, key.shape[2]
    place = Place(batch, q_len, kv_len, 0, 0, query.device)
    is_causal = getattr(module, "is_causal", True) if told.is_causal is None else told.is_causal
    if not is_causal or q_len == 1:
        return LayerMask(everything, everything, place)
    if q_len != kv_len:
        raise ValueError(
            f"{type(module).__name__} is causal and got no mask for {q_len} queries and {kv_len} keys: which keys are "
            "earlier is not known. Give attention_mask, or run the model that the layer belongs to"
        )
    pattern = window_counting_itself(told.sliding_window) if told.sliding_window else causal
    return LayerMask(pattern, placed(pattern, place), place)


def _of_table(table: Any, batch: int, q_len: int, kv_len: int) -> tuple[Mask | Tensor, Tensor | None]:
    """A table of elements, of a user or of a model, as mask and as what is added; both of the first ``kv_len`` keys.

    All layers get the same table, and so the same mask.
    """
    if not isinstance(table, Tensor) or table.ndim != 4 or not (table.dtype == torch.bool or table.is_floating_point()):
        what = f"{table.dtype} {tuple(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(
            "the mask of a layer is a BlockMask, or a table (batch, heads, queries, keys) of bools, True = may attend, or of "
            f"floats that are added to the scores; got {what}"
        )
    if table.dtype == torch.bool and not _is_of_keys(table, q_len):
        return table if table.shape[-1] == kv_len else table[..., :kv_len], None
    if table.requires_grad or torch.compiler.is_dynamo_compiling():
        return _split(table, batch, q_len, kv_len)
    sizes = batch, q_len, kv_len
    return kept_for_batch(table, ("seen and added", sizes), lambda table: _split(table, *sizes))


def _is_of_keys(table: Tensor, q_len: int) -> bool:
    """Whether a table says the same for all heads and several queries: (1 or B, 1, 1, K)."""
    return table.shape[1] == table.shape[2] == 1 and q_len > 1


def _split(table: Tensor, batch: int, q_len: int, kv_len: int) -> tuple[Mask, Tensor | None]:
    """What a table hides, and what it adds; None where it is known to add nothing."""
    table = table.expand(-1, -1, -1, kv_len) if table.shape[3] == 1 else table[..., :kv_len]
    seen = table if table.dtype == torch.bool else table > torch.finfo(table.dtype).min
    mask: Mask
    if _is_of_keys(seen, q_len):
        mask = key_padding(~seen[:, 0, 0].expand(batch, -1))
    else:
        mask = from_dense(seen.expand(-1, -1, q_len, -1))
    if table.dtype == torch.bool:
        return mask, None
    added = table.masked_fill(~seen, 0)
    adds = table.requires_grad or not readable(table) or bool(added.any())
    return mask, added if adds else None


def _added(table: Tensor) -> AddedTable:
    """Adds a table (1 or B, 1 or H, 1 or Q, K)."""
    axes = "".join(axis for axis, size in zip("bhqk", table.shape, strict=True) if axis == "k" or size > 1)
    return AddedTable(
        table.reshape([size for size, axis in zip(table.shape, "bhqk", strict=True) if axis in axes]), axes
    )
