"""`attend`: attention with a mask, right forward and backward on every device."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, Unpack, overload

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask

from maskloom.attention.backends.base import Backend, BackendName, Options, blocks_of, visits_all
from maskloom.attention.backends.choose import BACKENDS, choose, ruled_out
from maskloom.attention.checks import (
    check_mask_fits,
    check_offsets_fit,
    check_options,
    check_rows_fit,
    check_score_mod_fits,
    checked_q_offset,
    checked_scale,
    checked_tensors,
    placed_beside,
)
from maskloom.attention.clean_padding import Hidden, cleaned, known_hidden, zero_hidden_gradients
from maskloom.attention.dropout.generator import dropping_of
from maskloom.attention.dropout.options import checked_rate, checked_seed, factor_of
from maskloom.attention.empty import of_no_rows
from maskloom.attention.merge import with_sinks
from maskloom.attention.plans.plan import CallPlan, planned
from maskloom.attention.request import Attended, Dropout, Request
from maskloom.attention.resolve import as_block_mask, refuse_shared_tables
from maskloom.blocks.tile_states import tile_counts
from maskloom.core.checks import check_flags, head_offset, is_zero
from maskloom.core.torch_state import autocast_to
from maskloom.core.words import repr_html
from maskloom.errors import FallbackError
from maskloom.masks.algebra import Mask, Placing
from maskloom.masks.dense import table_sizes
from maskloom.masks.in_place import Sizes, as_mask_of
from maskloom.masks.patterns.shift import shifted
from maskloom.masks.simplify import describe
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod, ScoreReading
from maskloom.scores.shift import shifted_score

F = TypeVar("F", bound=Callable[..., object])


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    return_aux: None = None,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    return_aux: AuxRequest,
    **options: Unpack[Options],
) -> tuple[Tensor, AuxOutput]: ...


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    q_offset: int | Tensor | None = None,
    h_offset: int | Tensor | None = None,
    backend: BackendName | Literal["auto"] = "auto",
    return_aux: AuxRequest | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    clean_padding: bool = False,
    deterministic: bool = False,
    allow_slow: bool = False,
    kernel_options: Mapping[str, object] | None = None,
) -> Tensor | tuple[Tensor, AuxOutput]:
    """Scaled dot-product attention of the queries to the keys that the mask lets them see.

    Args:
        query: (B, H, Q, D), floating point. Under autocast all three are cast to its dtype, as torch's own attention
            does it, but for float64. An empty batch, B = 0, gives an empty output.
        key: (B, Hkv, K, D). H is a multiple of Hkv: with fewer key-value heads, each serves H / Hkv query heads (GQA).
        value: (B, Hkv, K, E).
        mask: a BlockMask, a Mask, a mask_mod, a table, or None for everything. From a Mask the BlockMask (on the CPU the dense
            table) is built at the first call and kept with it; in-place changes of its tensors are noticed where torch
            makes them, not through NumPy, ``.data`` or collectives: `mark_changed` says those. What a plain function reads may change unseen, so from one it is
            built at every call, and so it is where an offset is given:
            ``shifted(mask, h_offset=4)``, made once, keeps it.

            A table is a bool tensor (Q, K), (B, Q, K) or (B, H, Q, K), True = may attend, as scaled_dot_product_attention
            has it; B and H of 1, and Q of 1 beside them, are for all. In nn.MultiheadAttention True hides: give
            ``~attn_mask``. Or it is a float mask of 0 and -inf, as `from_dense` takes it. It is of these queries, keys and
            heads, whatever the offsets; what is built from it is kept with the tensor that it is, or is a view of.
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``, as in torch's flex_attention: a plain function, or one of
            maskloom's (`alibi`, `softcap`, `relative_bias`, `compose`, `shifted_score`).
        scale: by default ``1 / sqrt(D)``.
        q_offset: the position of the first query, for mask and score_mod alike: an int, an integer tensor of one element
            (which may change from step to step without a compilation), or one for each batch row, (B,). A BlockMask has its
            offset in it, given to `block_mask`: there, and beside a table, this is for score_mod and dropout alone. None is 0, of whole rows: where there are
            as many queries as keys, rows that the mask declares longer (on the CPU) are an error. An explicit 0 allows
            them, as for the first chunk of a prefill.
        h_offset: the first of these heads among those that mask and score_mod were made for, where devices share the
            heads (tensor parallelism): an int, 0 too, or an integer tensor without dimensions. None: these heads are all.
            A BlockMask likewise has it in it.
        backend: "auto", or one of `maskloom.attention.backends.choose.BACKENDS`, which says when each is chosen.
        return_aux: torch's ``AuxRequest(lse=True)`` for the log-sum-exp beside the output.
        sinks: (H,), learned sink logits (gpt-oss): each head's softmax has one more term, which no value belongs to.
        dropout: the share of probabilities that become 0, from 0 to 1; the others are divided by ``1 - dropout``, as
            nn.MultiheadAttention does it in training. It costs a second pass, forward and backward. What is dropped follows from
            the seed, the batch row, the head, the query and the key (their positions with the offsets), and is the same on
            every backend. The log-sum-exp and sinks are as without it.
        dropout_seed: an integer tensor of one element on the device (new values compile nothing anew), or an int. None draws
            one from torch's generator, which `torch.manual_seed` sets, and torch.utils.checkpoint sets back.
        clean_padding: what lies in padded positions, NaN and infinity too, and gradients that come in there, change no
            real output and no real gradient. It costs a copy of query, key and value, and in the backward one of the
            incoming gradient; without gradients, on some backends, of value alone. The mask must say where padding is; key_padding says it of keys and values alone. Of a
            BlockMask its mask_mod says so, and a hand-made one must hide the same.
        deterministic: gradients are the same, bit for bit, at every run; so they are with
            ``torch.use_deterministic_algorithms(True)``.
        allow_slow: where the fused kernel would not have run, run the reference, with one warning for each cause.
        kernel_options: for torch's flex_attention. With "auto" they choose flash or triton on a GPU, and are not used on the
            CPU; a backend named beside them must be one of these two.

    Returns:
        (B, H, Q, E). A query that sees nothing has output 0 and gradients 0. With ``return_aux`` a pair of that and
        torch's AuxOutput, whose ``lse`` is (B, H, Q), the natural logarithm, -inf for a query that sees nothing; the head's
        sink is in it, where there is one. Of half types it is float32.

    Raises:
        TypeError, ValueError: tensors, mask or score_mod that do not fit each other, or a backend that cannot do what is asked,
            before anything is launched.
        FallbackError: the fused kernel would not have run.
    """
    if type(deterministic) is not bool or type(clean_padding) is not bool:
        check_flags(deterministic=deterministic, clean_padding=clean_padding)
    drops_nothing = type(dropout) in (float, int) and dropout == 0
    decided_anew = allow_slow or (clean_padding and sinks is not None)
    if h_offset is None and drops_nothing and not decided_anew:

        def checked() -> tuple[Request, Backend]:
            request = _request(
                query, key, value, mask, score_mod, scale, q_offset, None, return_aux, sinks, 0.0, None, deterministic,
                kernel_options,
            )  # fmt: skip
            return request, choose(request, backend).backend

        def plan(request: Request, chosen: Backend) -> CallPlan | None:
            return _plan(request, chosen, known_hidden(request) if clean_padding else None)

        if sinks is not None and type(query) is Tensor and not query.is_nested and query.ndim == 4:
            check_options(query, None, sinks, None)
        planned_out = planned(
            query, key, value, mask, score_mod, q_offset, return_aux,
            scale, backend, sinks is not None, deterministic, kernel_options, clean_padding, checked, plan,
        )  # fmt: skip
        if planned_out is not None:
            return (
                planned_out.out
                if return_aux is None and sinks is None
                else _finished(planned_out, None, sinks, return_aux)
            )
    request = _request(
        query, key, value, mask, score_mod, scale, q_offset, h_offset, return_aux, sinks, dropout, dropout_seed, deterministic,
        kernel_options,
    )  # fmt: skip
    chosen = choose(request, backend)
    hidden = known_hidden(request) if clean_padding else None
    if hidden is not None:
        alone = _cleans_values_alone(chosen.backend, request)
        query, key, value = cleaned(request.query, request.key, request.value, hidden, values_alone=alone)
        request = request._replace(query=query, key=key, value=value)
    attended = _run(chosen.backend, request, allow_slow)
    return _finished(attended, hidden, sinks, return_aux)


def _finished(
    attended: Attended, hidden: Hidden | None, sinks: Tensor | None, return_aux: AuxRequest | None
) -> Tensor | tuple[Tensor, AuxOutput]:
    """What `attend` returns."""
    if sinks is not None:
        assert attended.lse is not None
        attended = Attended(*with_sinks(attended.out, attended.lse, sinks))
    if hidden is not None:
        attended = zero_hidden_gradients(attended, hidden)
    if return_aux is None:
        return attended.out
    return attended.out, AuxOutput(lse=attended.lse if return_aux.lse else None)


def _request(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None,
    score_mod: ScoreMod | None,
    scale: float | None,
    q_offset: int | Tensor | None,
    h_offset: int | Tensor | None,
    return_aux: AuxRequest | None,
    sinks: Tensor | None,
    dropout: float,
    dropout_seed: int | Tensor | None,
    deterministic: bool,
    kernel_options: Mapping[str, object] | None,
) -> Request:
    """Everything checked, and offsets put into mask and score_mod."""
    query, key, value = checked_tensors(query, key, value)
    check_options(query, return_aux, sinks, kernel_options)
    batch, heads, q_len, _ = query.shape
    is_table = isinstance(mask, Tensor)
    if isinstance(mask, Tensor):
        mask = as_mask_of(mask, Sizes(batch, heads, q_len, key.shape[2]))
    rate = checked_rate(dropout)
    seed = checked_seed(rate, dropout_seed, query.device)
    if q_offset is None:
        check_rows_fit(mask, query, key)
    q_offset = 0 if q_offset is None else checked_q_offset(q_offset, batch)
    if h_offset is not None:
        h_offset = head_offset(h_offset)
    if score_mod is not None:
        score_mod = _placed(score_mod, mask, q_offset, h_offset)
    drops = (
        None if seed is None else _dropout(rate, seed, (batch, heads, q_len, key.shape[2]), mask, q_offset, h_offset)
    )
    unshifted = mask
    moves = not (is_table or (is_zero(q_offset) and h_offset is None))
    if moves and not (mask is None or isinstance(mask, BlockMask)):
        mask = shifted(mask, q_offset=q_offset, h_offset=h_offset)
    check_mask_fits(mask, batch, heads, q_len, key.shape[2], query.device)
    check_score_mod_fits(score_mod, heads, query.device)
    if unshifted is not mask and unshifted is not None and not isinstance(unshifted, BlockMask):
        check_offsets_fit(unshifted, q_offset, h_offset, q_len, heads, query.device)
    wants_lse = sinks is not None or (return_aux is not None and return_aux.lse)
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    return Request(
        query, key, value, mask, score_mod, checked_scale(scale), wants_lse, deterministic, kernel_options,
        _reading(score_mod, query), drops,
    )  # fmt: skip


def _dropout(
    rate: float,
    seed: Tensor,
    sizes: tuple[int, int, int, int],
    mask: BlockMask | MaskMod | None,
    q_offset: int | Tensor,
    h_offset: int | Tensor | None,
) -> Dropout:
    by_slots = isinstance(mask.mask_mod if isinstance(mask, BlockMask) else mask, Placing)
    dropping = dropping_of(rate, seed, sizes, lambda one: _placed(one, mask, q_offset, h_offset), by_slots=by_slots)
    return Dropout(factor_of(rate), dropping)


def _placed(
    score_mod: ScoreMod, mask: BlockMask | MaskMod | None, q_offset: int | Tensor, h_offset: int | Tensor | None
) -> ScoreMod:
    """The score mod at the positions that a cache's mask knows, and with offsets."""
    score_mod = placed_beside(mask, score_mod)
    if is_zero(q_offset) and h_offset is None:
        return score_mod
    return shifted_score(score_mod, q_offset=q_offset, h_offset=h_offset)


def _reading(score_mod: ScoreMod | None, query: Tensor) -> ScoreReading | None:
    if score_mod is None or query.device.type != "cpu":
        return None
    from maskloom.scores.reading import read_score  # not at import: it lifts score mods, which few calls have

    return read_score(score_mod, query.device, torch.promote_types(query.dtype, torch.float32))


_warned: set[str] = set()  # causes, each of which is told once in a process


def _run(backend: Backend, request: Request, allow_slow: bool) -> Attended:
    if not allow_slow:
        return run_backend(backend, request)
    try:
        return run_backend(backend, request)
    except FallbackError as error:
        if str(error) not in _warned:
            _warned.add(str(error))
            warnings.warn(f"attention runs on the reference, which is slow: {error}", RuntimeWarning, stacklevel=3)
        return run_backend(BACKENDS["reference"], request)


def _with_the_signature_of(other: Callable[..., object]) -> Callable[[F], F]:
    """Shows the parameters of another function, which are written there alone, and then those that it has not."""

    def like(function: F) -> F:
        own, theirs = inspect.signature(function), inspect.signature(other).parameters
        named = [one for one in own.parameters.values() if one.kind is one.KEYWORD_ONLY and one.name not in theirs]
        function.__signature__ = own.replace(parameters=[*theirs.values(), *named])  # type: ignore[attr-defined]
        return function

    return like


@dataclass(frozen=True)
class Explanation:
    """What `attend` does with its arguments, and why; ``print`` it.

    Attributes:
        backend: what runs; see `maskloom.attention.backends.choose`.
        reason: why that one.
        ruled_out: the others that "auto" did not take: why each cannot, or that another is faster. Empty for a backend that
            was asked for.
        skips: what that one does not compute, in words.
        dropout: how that one drops probabilities, in words; None without dropout.
        mask: the mask that a kernel runs: the one that the BlockMask holds, or a cheaper, equal one that it holds in place of
            the mask given. None where it is that itself or a function, and on backends without tiles.
        skipped, partial, full: tiles of the BlockMask that was given, or that flash and triton get for the mask; over the
            batch rows and heads of its tables. None where there is no BlockMask.
    """

    backend: BackendName
    reason: str
    ruled_out: dict[BackendName, str] = field(default_factory=dict)
    skips: str = "nothing"
    dropout: str | None = None
    mask: str | None = None
    skipped: int | None = None
    partial: int | None = None
    full: int | None = None

    def _repr_html_(self) -> str:
        return repr_html(self)

    def __str__(self) -> str:
        lines = [f"backend: {self.backend} ({self.reason})"]
        if self.mask is not None:
            lines.append(f"mask: run as {self.mask}")
        lines.append(f"skips: {self.skips}")
        if self.dropout is not None:
            lines.append(f"dropout: {self.dropout}")
        if self.skipped is not None:
            whose = "tiles" if BACKENDS[self.backend].by_tiles else "tiles of the block mask"
            lines.append(f"{whose}: {self.skipped} skipped, {self.partial} partial, {self.full} full")
        lines += [f"not {backend}: {reason}" for backend, reason in self.ruled_out.items()]
        return "\n".join(lines)


@_with_the_signature_of(attend)
def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask | MaskMod | Tensor | None = None,
    *,
    return_aux: AuxRequest | None = None,
    compiled: bool = False,
    **options: Unpack[Options],
) -> Explanation:
    """What `attend` would run with these arguments, and why. No attention is run; the arguments are checked as there.

    Where tiles are skipped, the BlockMask is built as `attend` builds it, and kept with the mask for it.

    Args:
        compiled: say what runs where `attend` is called inside your torch.compile, in a graph whose numbers have not
            changed yet. There nothing is simplified.
    """
    try:
        call = inspect.signature(attend).bind(query, key, value, mask, return_aux=return_aux, **options)
    except TypeError as error:
        raise TypeError(f"explain() {error}") from None
    call.apply_defaults()
    given = call.arguments
    if given["dropout_seed"] is None:
        given["dropout_seed"] = 0  # so that none is drawn
    request = _request(*(given[name] for name in inspect.signature(_request).parameters))
    chosen = choose(request, given["backend"], in_graph=compiled)
    if given["clean_padding"]:
        known_hidden(request)  # raises if padding is not known
    batch, heads, q_len, kv_len = request.sizes
    blocks: BlockMask | None = None
    if isinstance(request.mask, BlockMask):
        blocks = request.mask
        refuse_shared_tables(blocks, batch, heads)
    elif request.mask is not None:
        table_sizes(request.mask, q_len, kv_len, batch=batch, heads=heads, device=request.query.device)
    by_tiles = chosen.backend.by_tiles
    if by_tiles:
        blocks = blocks_of(_resolved(chosen.backend, request, in_graph=compiled))
    return Explanation(
        chosen.backend.name,
        chosen.reason,
        {} if chosen.named else ruled_out(request, chosen.backend, in_graph=compiled),
        _skips(chosen.backend, request, compiled),
        None if request.dropout is None else chosen.backend.drops,
        _run_as(blocks, request.mask) if by_tiles and blocks is not None and not compiled else None,
        *(() if blocks is None else tile_counts(blocks)),
    )


def _skips(backend: Backend, request: Request, compiled: bool) -> str:
    if backend.by_tiles and not compiled and visits_all(request, backend.block_size(request)):
        return "nothing: there are few tiles, and to find the hidden ones takes longer"
    return backend.skips(request)


def _run_as(blocks: BlockMask, given: BlockMask | MaskMod | None) -> str | None:
    """The mask that a BlockMask holds, as a reader wants to see it; None for a function, and for the mask that was given."""
    held = blocks.mask_mod
    return describe(held) if isinstance(held, Mask) and given is not None and held != given else None


def run_backend(backend: Backend, request: Request) -> Attended:
    """Attention on one backend, which does not refuse it. Of an empty batch none need run."""
    if request.query.shape[0] == 0:
        return of_no_rows(request)
    if isinstance(request.mask, BlockMask):
        refuse_shared_tables(request.mask, request.query.shape[0], request.query.shape[1])
    return backend.run(_resolved(backend, request) if backend.by_tiles else request)


def _plan(request: Request, backend: Backend, hidden: Hidden | None) -> CallPlan | None:
    """What this backend does for every request like this one, with padding cleaned where it is hidden."""
    if request.query.shape[0] == 0:
        return None
    if isinstance(request.mask, BlockMask):
        refuse_shared_tables(request.mask, request.query.shape[0], request.query.shape[1])
    prepared = backend.prepare(_resolved(backend, request) if backend.by_tiles else request)
    if prepared is None:
        return None
    return CallPlan(prepared, autocast_to(request.device), hidden, _cleans_values_alone(backend, request))


def _cleans_values_alone(backend: Backend, request: Request) -> bool:
    return backend.hides_scores and not request.needs_gradients


def _resolved(backend: Backend, request: Request, *, in_graph: bool = False) -> Request:
    """The request, with the BlockMask that this backend gets for its mask; inside somebody's graph, if ``in_graph``."""
    mended, size = backend.name == "triton", backend.block_size(request)
    found = as_block_mask(
        request.query,
        request.key,
        request.mask,
        mended=mended,
        block_size=size,
        visits_all=not in_graph and visits_all(request, size),
    )
    return request._replace(mask=found)
