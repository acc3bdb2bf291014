"""nn.MultiheadAttention, run by `attend`; modules and models converted to it and back."""

import copy
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskloom.attention.attend import attend
from maskloom.attention.weights import attention_weights
from maskloom.attention.zeros import zeros_both_ways
from maskloom.core.symbols import known
from maskloom.core.words import brief
from maskloom.nn.convert.inputs import Layout, check_attn_mask, checked_layout, checked_padding
from maskloom.nn.convert.masks import CAUSAL, Masks, masks_of

M = TypeVar("M", bound=nn.Module)


class MultiheadAttention(nn.MultiheadAttention):
    """torch's nn.MultiheadAttention, run by `maskloom.attend`: its arguments, parameters, forward and result.

    ::

        attention = loom.nn.MultiheadAttention(64, 8, batch_first=True)
        out, weights = attention(x, x, x, key_padding_mask=pads)      # True hides, as there

    Made new, of a module by `from_torch`, or in a whole model by `replace_attention`. Outputs, weights and gradients are
    torch's, except:

    - A query that sees nothing attends to nothing: its weights are 0, and its output is the bias of ``out_proj``. torch
      gives NaN.
    - What lies in keys and values that key_padding_mask hides, NaN too, changes no output.
    - Each call runs here. torch's fast path for inference (`torch.backends.mha`), which reads the parameters and calls
      no module, is not taken; so ``_qkv_same_embed_dim``, by which nn.TransformerEncoderLayer decides, is False.
    - Nested tensors are refused.

    -inf in a float mask hides as True does in a bool one. Other values are added to scores in the kernel, and learn.
    With ``need_weights=False`` the table of weights is never made. Dropout is then that of `maskloom.attend`: of the same rate,
    by a generator of its own, which `torch.manual_seed` sets.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention. Letters as there: N batch rows, L queries, S keys, H heads.

        Args:
            query: (L, N, embed_dim), with batch_first (N, L, embed_dim), unbatched (L, embed_dim). key, value: likewise,
                of S and ``kdim``, ``vdim`` features.
            key_padding_mask: (N, S), unbatched (S,): bool, True = ignored, or floating point, added to scores.
            need_weights: whether the result has weights. Without them, and without dropout in training, their table of
                N × H × L × S is not made.
            attn_mask: (L, S) or (N·H, L, S): bool, True = hidden, or floating point, added to scores.
            average_attn_weights: weights averaged over heads, or of each head.
            is_causal: a hint that attn_mask is the causal one. It counts where torch's counts: without weights and
                key_padding_mask; there attn_mask is not read.

        Returns:
            The output, shaped as query, and the weights (N, L, S) or (N, H, L, S), or None. bias_k and add_zero_attn
            each make S larger by one.

        Raises:
            TypeError, ValueError: shapes and dtypes that do not fit, nested tensors, is_causal without attn_mask.
        """
        layout = checked_layout(self, query, key, value)
        padding = checked_padding(key_padding_mask, layout, query.device)
        check_attn_mask(attn_mask, layout, self.num_heads, is_causal, query.device)
        if padding is None and not need_weights and known(is_causal):  # a hint: a trace may not know it
            masks = CAUSAL
        else:
            extra = (self.bias_k is not None) + self.add_zero_attn
            masks = masks_of(attn_mask, padding, heads=self.num_heads, extra=extra)
        key, value = _cleaned(key, value, masks, layout)
        projected = self._projected(query, key, value)
        queries, keys, values = [layout.in_heads(one, self.num_heads) for one in projected]
        keys, values = self._with_extra(keys, values)
        attended, weights = self._attended(queries, keys, values, masks, need_weights)
        out = self.out_proj(layout.out_of_heads(attended))
        if weights is None:
            return out, None
        return out, layout.unbatched(weights.mean(1) if average_attn_weights else weights)

    if TYPE_CHECKING:  # nn.Module's own says that it returns Any

        def __call__(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            key_padding_mask: Tensor | None = None,
            need_weights: bool = True,
            attn_mask: Tensor | None = None,
            average_attn_weights: bool = True,
            is_causal: bool = False,
        ) -> tuple[Tensor, Tensor | None]: ...

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values side by side for all heads; in one product where they are made of one tensor."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key is value:
            return F.linear(query, weight, bias).chunk(3, -1)
        parts = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if weight is None else weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        if weight is not None and key is value:
            both = F.linear(key, weight[self.embed_dim :], None if bias is None else bias[self.embed_dim :])
            return F.linear(query, parts[0], biases[0]), *both.chunk(2, -1)
        return tuple(map(F.linear, (query, key, value), parts, biases))

    def _with_extra(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) with what the module adds to them: a learned one, and zeros."""
        batch = keys.shape[0]
        if self.bias_k is not None and self.bias_v is not None:
            learned = [
                one.view(1, self.num_heads, 1, -1).expand(batch, -1, -1, -1) for one in (self.bias_k, self.bias_v)
            ]
            keys, values = torch.cat([keys, learned[0]], 2), torch.cat([values, learned[1]], 2)
        if self.add_zero_attn:
            keys, values = F.pad(keys, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1))
        return keys, values

    def _attended(
        self, queries: Tensor, keys: Tensor, values: Tensor, masks: Masks, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The attention (B, H, L, D), and the weights (B, H, L, S) where they are needed: after dropout, as torch's."""
        rate = self.dropout if self.training else 0.0
        if any(known(size == 0) for size in (queries.shape[2], keys.shape[2])):  # torch's softmax takes no keys
            weights = torch.softmax(queries @ keys.mT, -1)
            return weights @ values, weights if need_weights else None
        if not need_weights:
            return attend(queries, keys, values, masks.mask, score_mod=masks.score_mod, dropout=rate), None
        weights = attention_weights(queries, keys, masks.mask, score_mod=masks.score_mod)
        weights = F.dropout(weights, rate) if rate else weights
        return weights @ values, weights

    def to_torch(self) -> nn.MultiheadAttention:
        """torch's own module, with copies of the parameters: the inverse of `from_torch`."""
        theirs: nn.MultiheadAttention = copy.deepcopy(self)
        theirs.__class__ = nn.MultiheadAttention
        theirs._qkv_same_embed_dim = theirs.in_proj_weight is not None
        return theirs

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None  # torch's own goes by it
        super()._reset_parameters()
        self._qkv_same_embed_dim = False  # torch's layers then call the module, in eval too

    def _get_name(self) -> str:
        return "maskloom.nn.MultiheadAttention"


def _cleaned(key: Tensor, value: Tensor, masks: Masks, layout: Layout) -> tuple[Tensor, Tensor]:
    """Key and value with zeros where they are hidden from every query; one tensor stays one."""
    if masks.pads is None:
        return key, value
    rows = layout.of_rows(masks.pads)
    cleaned = zeros_both_ways(key, rows)
    return cleaned, cleaned if value is key else zeros_both_ways(value, rows)


def from_torch(module: nn.MultiheadAttention) -> MultiheadAttention:
    """The same attention, run by maskloom: same parameters (copies), forward and result. The module given stays as it is.

    ::

        ours = loom.nn.from_torch(nn.MultiheadAttention(64, 8, dropout=0.1, batch_first=True))
        out, weights = ours(x, x, x, key_padding_mask=pads)
        theirs = ours.to_torch()

    State dicts have the same names, so each loads the other's. Hooks, training mode and dropout come along.

    Raises:
        TypeError: another module, or a subclass, which may compute something else.
    """
    _check_convertible(module, "from_torch takes an nn.MultiheadAttention")
    return _converted(copy.deepcopy(module))


def replace_attention(model: M) -> M:
    """Run every nn.MultiheadAttention of a model by maskloom, in place; return the model.

    ::

        encoder = loom.nn.replace_attention(nn.TransformerEncoder(layer, num_layers=6))

    For nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer and any module that holds nn.MultiheadAttention, or
    is one. The modules themselves change their class to `MultiheadAttention`: parameters, optimisers that hold them,
    hooks and state dicts stay. torch's fast path for inference, which would pass the new modules by, is taken no more, and
    nn.TransformerEncoder makes no nested tensors; so outputs at padding are not 0 in eval, but what they are in training.

    Call it before what wraps modules: `fully_shard`, parametrizations, quantization.

    Raises:
        TypeError: the model holds a subclass of nn.MultiheadAttention, which may compute something else. Nothing is
            changed then. ValueError: it holds no nn.MultiheadAttention.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_attention takes a module; got {brief(model)}")
    found = {name: one for name, one in model.named_modules() if isinstance(one, nn.MultiheadAttention)}
    if not found:
        raise ValueError(f"there is no nn.MultiheadAttention in this {type(model).__name__}")
    for name, module in found.items():
        _check_convertible(module, f"{name or 'the model'} should be an nn.MultiheadAttention")
    for module in found.values():
        _converted(module)
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False
    return model


def _check_convertible(module: object, what: str) -> None:
    if type(module) in (nn.MultiheadAttention, MultiheadAttention):
        return
    kind = type(module)
    if isinstance(module, nn.MultiheadAttention):
        raise TypeError(
            f"{what} itself; got {kind.__module__}.{kind.__qualname__}, a subclass, which may compute something else. "
            "Convert before it is sharded, parametrized or quantized"
        )
    hint = "; replace_attention takes a whole model" if isinstance(module, nn.Module) else ""
    raise TypeError(f"{what}; got {kind.__name__}{hint}")


def _converted(module: nn.MultiheadAttention) -> MultiheadAttention:
    """The module itself, of our class from now on."""
    module.__class__ = MultiheadAttention
    module._qkv_same_embed_dim = False
    assert isinstance(module, MultiheadAttention)
    return module
