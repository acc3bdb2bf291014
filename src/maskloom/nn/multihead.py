"""Multi-head attention under any mask; values in padded positions cannot affect real positions."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack, overload

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.attend import attend
from maskloom.attention.checks import placed_beside
from maskloom.attention.weights import attention_weights
from maskloom.attention.zeros import zeros_backward
from maskloom.core.words import what_it_is
from maskloom.masks.packed_form import packed_form
from maskloom.nn.cache import KVCache
from maskloom.nn.call import AttendOptions, MultiheadOutput, MultiheadOutputWithWeights, check_options
from maskloom.nn.hidden import Hidden, hidden_by_mask, moved
from maskloom.nn.inputs import check_entries, check_need_weights, check_placing, checked_context
from maskloom.nn.packing import IN_ROW, NOT_PACKED, Packing, heads_in_batch, packing_of
from maskloom.nn.projections import Positions, ProjectedHeads
from maskloom.nn.rotary import Rotary
from maskloom.nn.shared_sequence import SharedSequence, check_goes_with_plan, multihead_by_plan
from maskloom.nn.upcoming import Upcoming
from maskloom.program.program import MaskMod
from maskloom.scores.compose import compose
from maskloom.scores.shift import shifted_score


class CallOptions(AttendOptions, total=False):
    """What a call of the module takes by name, but for ``need_weights``, which decides what it returns."""

    context: Tensor | None
    positions: Positions | None
    cache: KVCache | None
    pads: Tensor | None


class MultiheadFlexAttention(ProjectedHeads):
    """Multi-head attention: a projection to queries, keys and values, `maskloom.attend`, a projection back.

    The order: projection, norm of queries and keys, rotary, cache, attention, gate, projection back. Key-value heads
    are never repeated.

    Values in padded positions, even NaN and infinity, change no output and no gradient at real positions: where the
    mask is known to hide a key from every query (a padding mask at the top level of a conjunction), x is set to zero.
    For a BlockMask, its mask_mod defines the padding; a hand-made BlockMask must not list tiles of padding as full. An
    incoming gradient at padded outputs counts like any other, even NaN, unless ``clean_padding=True``. Attention
    returns zero for a fully masked query, so its output is the bias of ``out_proj``.

    Where the host knows how many positions are real (a padding mask made of a list or on the CPU, then moved or not), and it
    pays, the projections work on the real tokens alone, packed into one row with one more of zeros for padding; forward
    hooks of the projections see that row. The result is the same, to rounding: at padding the output is the bias of
    ``out_proj``, and queries and keys are those of a zero vector.

    Names in ``state_dict``, with H heads and Hkv key-value heads of d_head features: ``in_proj.weight``
    ((H + 2 Hkv) d_head, d_in), the rows of queries, keys and values; with ``d_context`` ``q_proj.weight``
    (H d_head, d_in) and ``kv_proj.weight`` (2 Hkv d_head, d_context); ``out_proj.weight`` (d_out, H d_head), and a
    ``.bias`` of each; ``q_norm.weight``, ``k_norm.weight`` (d_head,); ``sinks`` (H,); ``gate_proj.weight``
    (H d_head, d_in). `load_state_dict` also takes the names of nn.MultiheadAttention, of transformers' Llama and of
    Meta's (`maskloom.nn.state_names`), and `state_dict_as` gives the first two.

    Args:
        d_in: number of features of x.
        d_out: number of features of the output; without ``d_head`` a multiple of ``n_heads``.
        n_heads: number of query heads.
        bias: whether the projections of queries, keys, values and the gate have a bias.
        n_kv_heads: number of key-value heads, a divisor of ``n_heads``, by default as many: grouped queries (GQA), with
            1 multi-query attention.
        d_head: features of a head, by default ``d_out / n_heads``.
        d_context: features of ``context``, for cross-attention with projections of its own. Without it a context has
            ``d_in`` features and takes the keys' and values' part of ``in_proj``.
        out_bias: whether ``out_proj`` has a bias.
        qk_norm: an RMSNorm over each head's queries and over its keys, before rotary, as in Qwen3 and Gemma 3.
        rotary: a `Rotary` for heads of this width; layers may share one.
        sinks: one learned logit for each head that takes part in the softmax and has no value (gpt-oss); 0 at first.
        softcap: scores become ``softcap * tanh(score / softcap)``, before a score_mod (Gemma 2).
        dropout: in training, the share of probabilities that become 0, from 0 to 1, as in nn.MultiheadAttention; see
            `maskloom.attend`. ``module.dropout`` may be set anew.
        gate: the output is ``out_proj(heads * sigmoid(gate_proj(x)))``, where ``heads`` is the attention of all heads
            side by side, (B, L, H d_head): a factor for each feature of each head.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: sizes below 1, d_out that n_heads does not divide, heads that n_kv_heads does not divide,
            a rotary of another width.

    Source: Ainslie et al. 2023 (GQA, arXiv 2305.13245); Qiu et al. 2025 (gated attention, arXiv 2505.06708).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        n_heads: int,
        bias: bool = False,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        d_context: int | None = None,
        out_bias: bool = True,
        qk_norm: bool = False,
        rotary: Rotary | None = None,
        sinks: bool = False,
        softcap: float | None = None,
        gate: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_in, d_out, n_heads, bias,
            n_kv_heads=n_kv_heads, d_head=d_head, d_context=d_context, out_bias=out_bias, qk_norm=qk_norm,
            rotary=rotary, sinks=sinks, softcap=softcap, gate=gate, dropout=dropout, device=device, dtype=dtype,
        )  # fmt: skip

    if TYPE_CHECKING:  # nn.Module's own says that it returns Any

        @overload
        def __call__(
            self,
            x: Tensor,
            block_mask: BlockMask | MaskMod | Tensor | SharedSequence | None = None,
            *,
            need_weights: Literal[False] = False,
            **options: Unpack[CallOptions],
        ) -> MultiheadOutput: ...

        @overload
        def __call__(
            self,
            x: Tensor,
            block_mask: BlockMask | MaskMod | Tensor | SharedSequence | None = None,
            *,
            need_weights: Literal[True, "mean"],
            **options: Unpack[CallOptions],
        ) -> MultiheadOutputWithWeights: ...

        def __call__(self, x: Tensor, *given: object, **options: object) -> object: ...

    def forward(
        self,
        x: Tensor,
        block_mask: BlockMask | MaskMod | Tensor | SharedSequence | None = None,
        *,
        context: Tensor | None = None,
        positions: Positions | None = None,
        cache: KVCache | None = None,
        pads: Tensor | None = None,
        need_weights: bool | Literal["mean"] = False,
        **options: Unpack[AttendOptions],
    ) -> MultiheadOutput | MultiheadOutputWithWeights:
        """Attend from each position of x to the positions that the mask shows it.

        Args:
            x: (B, L, d_in).
            block_mask: a BlockMask, a Mask, a mask_mod, or None for everything, over L queries and L keys (K of a
                context); or a table as in `attend`: (L, K), (B, L, K) or (B, H, L, K), True = may attend (in
                nn.MultiheadAttention True hides). Padding of x and context: ``lengths(lens, kv_lens)``,
                ``padding(pads, kv_pads)`` and their kin. With a cache a Mask or mask_mod of true positions, `causal` say,
                for tokens of any step. Or a plan (`maskloom.distributed.plan`), if x are this rank's rows of a sequence that
                ranks share: there is no context and no cache, and rotary uses ``plan.positions``.
            context: (B, K, d_context), what keys and values are made of, for cross-attention.
            positions: of each token, for rotary: integers (L,) or (B, L), by default 0, 1, ... from ``q_offset`` on. Of
                packed rows and padding on the left give them. Beside a context a pair, those of x and those of the
                context; None is 0, 1, ...
            cache: the `KVCache` of this layer. x are the next tokens of each row; their positions are known from it.
            pads: bool (B, L), True = padding, which the cache does not take: see `KVCache.append`. Without a cache the
                mask says it.
            need_weights: True for the probabilities of each head, "mean" for their average over heads. They cost a table
                of B × H × L × K, and are those before dropout.
            options: of `maskloom.attend`, except return_aux; ``dropout_seed`` is for the module's dropout, and not read in eval. ``clean_padding=True`` sets the incoming
                gradient at padded positions to 0, whatever it was.

        Returns:
            `MultiheadOutput`, or with ``need_weights`` `MultiheadOutputWithWeights`.

        Raises:
            TypeError, ValueError: what does not fit, or does not go together, before any work.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a tensor (batch, length, features); got {what_it_is(x)}")
        check_options(options, x.device)
        check_need_weights(need_weights)
        if isinstance(block_mask, SharedSequence):
            check_goes_with_plan(options, context=context, cache=cache, pads=pads, need_weights=need_weights)
            check_placing(self, None, positions, None, None, options, has_context=False)
            if x.ndim == 3 and self.d_context is None:
                check_entries("x", x, self.in_proj)
            return multihead_by_plan(self, x, block_mask, positions, self._with_own(options))
        check_placing(self, block_mask, positions, cache, pads, options, has_context=context is not None)
        context = checked_context(self, x, context, cache)
        coming = None if cache is None else cache.upcoming(x.shape[1], pads)
        packing = NOT_PACKED
        if coming is None:
            hidden = hidden_by_mask(x, context, block_mask, self.n_heads, options)
            placed = block_mask if isinstance(block_mask, Tensor) else moved(block_mask, options)
            in_row = not need_weights and _may_attend_in_row(x, self._with_own(options))
            packing = packing_of(x, context, placed, in_row=packed_form if in_row else None)
        else:
            hidden = Hidden((coming.positions < 0)[..., None] if coming.is_padded else None)
        made = self._projected_of(x, context, hidden, packing, positions, coming, options)
        (queries, keys, values), mask, passed = made.heads, block_mask, options
        if packing.is_whole:
            passed = {**options, "clean_padding": False}  # what is packed is clean
        if packing.mask is not None:
            mask = packing.mask
        passed = self._with_own(passed)
        if cache is None or coming is None:
            attended = attend(queries, keys, values, mask, **passed)
        else:
            attended, keys, values, mask, passed = _attended_with(
                cache, coming, queries, keys, values, block_mask, passed
            )
        out = self.combined(attended, made.x, packing.queries, in_row=packing.mask is not None)
        if hidden.x is not None and options.get("clean_padding"):
            out = zeros_backward(out, hidden.x)
        if not need_weights:
            return MultiheadOutput(out, made.queries, made.keys)
        weights = _weights(queries, keys, mask, passed)
        return MultiheadOutputWithWeights(
            out, made.queries, made.keys, weights.mean(1) if need_weights == "mean" else weights
        )

    def _projected_of(
        self,
        x: Tensor,
        context: Tensor | None,
        hidden: Hidden,
        packing: Packing,
        positions: Positions | None,
        coming: Upcoming | None,
        options: AttendOptions,
    ) -> "_Projected":
        q_shape = x.shape[0], x.shape[1]
        kv_shape = q_shape if context is None else (context.shape[0], context.shape[1])
        angles = self.angles_of_both(q_shape, kv_shape, positions, coming, options.get("q_offset"), x.device)
        x, context = hidden.cleaned(x, context, packing)
        queries, keys, values = self.projected(x, context)
        q_heads, k_heads = self.turned(queries, angles[0], packing.queries), self.turned(keys, angles[1], packing.keys)
        queries = self.turned_in_batch(queries, q_heads, angles[0], packing.queries, fills=self.fills("queries"))
        keys = self.turned_in_batch(keys, k_heads, angles[1], packing.keys, fills=self.fills("keys"))
        if packing.mask is not None:
            return _Projected(queries, keys, (q_heads, k_heads, values), x)
        if packing.keys is not None:
            values = heads_in_batch(values, packing.keys)
        return _Projected(queries, keys, (queries, keys, values), x)

    def _with_own(self, options: AttendOptions) -> AttendOptions:
        """The options, with the module's own sinks, softcap and dropout."""
        own: AttendOptions = {**options}
        if self.dropout and self.training:
            own["dropout"] = self.dropout
        if self.sinks is not None:
            own["sinks"] = self.sinks
        if self.softcap is not None:
            given = options.get("score_mod")
            own["score_mod"] = self.softcap if given is None else compose(self.softcap, given)
        return own


def _may_attend_in_row(x: Tensor, options: AttendOptions) -> bool:
    """Whether attention with these options is the same over the packed row, and fast, if the mask is."""
    if x.dtype not in IN_ROW.get(x.device.type, ()):
        return False
    if x.device.type == "cuda" and torch.cuda.get_device_properties(x.device).major > 9:
        return False  # FLASH has larger tiles there, which batch rows would share
    by_places = options.get("dropout") or any(
        options.get(name) is not None for name in ("score_mod", "q_offset", "h_offset", "kernel_options")
    )
    return not by_places and options.get("backend", "auto") in ("auto", "flash", "triton")


class _Projected(NamedTuple):
    """What the projections make.

    Attributes:
        queries, keys: of the whole batch.
        heads: the queries, keys and values that attention gets: these, or those of the packed row.
        x: what they were made of: packed, or with zeros at padding.
    """

    queries: Tensor
    keys: Tensor
    heads: tuple[Tensor, Tensor, Tensor]
    x: Tensor


def _attended_with(
    cache: KVCache,
    coming: Upcoming,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Any,
    options: AttendOptions,
) -> tuple[Tensor, Tensor, Tensor, MaskMod, AttendOptions]:
    """The attention to all tokens so far; their keys and values, and mask and options as they are for them.

    The cache holds the new tokens then. If attention refuses the call, it is as before.
    """
    before = cache.counted()
    keys, values, slots = cache.append(keys, values, upcoming=coming)
    options = {**options, "clean_padding": False}  # what comes out of a cache is clean
    mask = slots if mask is None else slots & mask
    if torch.compiler.is_compiling():
        return attend(queries, keys, values, mask, **options), keys, values, mask, options
    try:
        attended = attend(queries, keys, values, mask, **options)
    except BaseException:
        cache.undo(before, coming, keys, values)
        raise
    return attended, keys, values, mask, options


def _weights(queries: Tensor, keys: Tensor, mask: Any, options: AttendOptions) -> Tensor:
    """The probabilities of what `attend` ran."""
    q_offset, h_offset, score_mod = options.get("q_offset"), options.get("h_offset"), options.get("score_mod")
    if score_mod is not None:
        score_mod = placed_beside(mask, score_mod)
    if score_mod is not None and not (q_offset is None and h_offset is None):
        score_mod = shifted_score(score_mod, q_offset=0 if q_offset is None else q_offset, h_offset=h_offset)
    mask = mask if isinstance(mask, Tensor) else moved(mask, options)
    scale, sinks = options.get("scale"), options.get("sinks")
    return attention_weights(queries, keys, mask, score_mod=score_mod, scale=scale, sinks=sinks)
