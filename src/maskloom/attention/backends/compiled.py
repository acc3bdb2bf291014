"""The one place that calls ``torch.compile``: a pool of compiled attention functions, and the guard against fallback.

torch.compile keeps its graphs with the *code object* of a function and gives up after `recompile_limit` (8) of them;
FlexAttention then runs unfused, with one warning for the whole process. So every kind of attention gets a code object of
its own: one for each structure of mask and score_mod, dtype, head size, gradient mode and set of options (`_Kind`).
Lengths, batch sizes and the values of tensors are dynamic within it. docs/notes/compile.md says what was measured.
"""

import functools
import itertools
import re
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from maskloom.attention.backends.triton_division import dividing_mask, dividing_score
from maskloom.attention.kernels.direct import DirectCalls, noted
from maskloom.attention.kernels.guards import that_may_fail
from maskloom.attention.kernels.layout import UNTOLD, USUAL, Told, is_told, layout_of, learn
from maskloom.attention.kernels.scaled import ScaledScore, is_first_scale, scale_tensor
from maskloom.core import captures
from maskloom.core.block_masks import TABLES, rebuilt
from maskloom.core.cache import LRU
from maskloom.core.forks import fork_safe_lock, loading
from maskloom.core.torch_state import is_exporting
from maskloom.core.values import holds_function, numbers_as_tensors, with_tensors_in_memory
from maskloom.errors import FallbackError
from maskloom.program.answers import NO_BOOL
from maskloom.scores.base import NO_SCORE, ScoreMod, answering

_COMPILER: Any = "inductor"  # tests put in one that only traces

_MOST_FUNCTIONS = 8
"""Maximum number of functions, of `recompile_limit` graphs each, for tensors that lie in many ways. Where a user's code is in the mask
or score mod there is one: what that reads may be another number each time, with a graph for each."""

_MOST_DECODED = 64  # queries in a step of decoding

_pool: LRU[Hashable, Callable[..., tuple[Tensor, Tensor | None]]] = LRU(256)
"""The compiled functions. One that goes takes its graphs with it."""

_pool_lock = fork_safe_lock()
_numbers = itertools.count()  # of the functions that were compiled


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    wants_lse: bool,
    kernel_options: Mapping[str, object] | None,
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention, compiled, never the unfused path.

    Returns:
        The output, and the log-sum-exp if it is wanted.

    Raises:
        FallbackError: torch.compile did not compile it.
        TypeError: score_mod gives no score. What score_mod raises itself comes through.
    """
    options = kernel_options or {}
    if torch.compiler.is_compiling():  # somebody compiles or exports the code around us: be part of their graph
        mask_mod, score_mod = numbers_as_tensors((block_mask.mask_mod, score_mod), query.device)
        learning = (query, key, value, *captures.tensors_of_fields(score_mod))
        has_backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learning)
        if not (has_backward or is_exporting() or options.get("BACKEND") == "FLASH"):
            mask_mod, score_mod = with_tensors_in_memory((mask_mod, score_mod))
        block_mask = rebuilt(block_mask, mask_mod=mask_mod)
        shares = shares_heads(query, key)
        return _attend_or_fail(query, key, value, score_mod, block_mask, scale, shares, wants_lse, options, UNTOLD.told)
    return prepared_attention(
        query, key, value, block_mask, score_mod=score_mod, scale=scale, wants_lse=wants_lse, options=options
    ).run(query, key, value, score_mod)


def prepared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    *,
    score_mod: ScoreMod | None,
    scale: float | None,
    wants_lse: bool,
    options: Mapping[str, object],
) -> "PreparedAttention":
    """`fused_attention` of such queries, keys and values, its compiled function found. Nobody compiles around it."""
    if scale is None:
        scale = query.shape[-1] ** -0.5
    mods = (block_mask.mask_mod,) if score_mod is None else (block_mask.mask_mod, score_mod)
    kind, dynamic = _kind(query, key, value, block_mask, mods, wants_lse, options)
    scaled = None
    if options.get("BACKEND") != "FLASH" and not is_first_scale(kind, scale):
        scaled, scale = ScaledScore(scale_tensor(scale, query.device), None), 1.0
        mods = (block_mask.mask_mod, scaled.before(score_mod))
        kind, dynamic = _kind(query, key, value, block_mask, mods, wants_lse, options)
    elif options.get("BACKEND") == "FLASH":  # which knows no score_mod of tensors
        kind = (kind, scale)
    rest = (scale, shares_heads(query, key), wants_lse, options)
    floats = captures.has_floats(*mods)
    direct = None if holds_function(mods) else DirectCalls()
    # FLASH asks tensors themselves how they lie, and of static sizes the compiler knows all
    told = is_told(query) and dynamic is True and options.get("BACKEND") != "FLASH"
    compiled = _ByLayout(kind, 1 if direct is None else _MOST_FUNCTIONS) if told else _compiled_for(kind, dynamic)
    return PreparedAttention(compiled, scaled, block_mask, (*rest, UNTOLD.told), floats, direct)


@dataclass(frozen=True, slots=True)
class _ByLayout:
    """The compiled functions of one kind of attention: one for each layout of query, key and value, and more where torch's limit of
    graphs for one of them is met.

    Attributes:
        functions: maximum number of functions for one layout.
    """

    kind: Hashable
    functions: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *given: Any) -> tuple[Tensor, Tensor | None]:
        """``given`` is as of `_attend_or_fail`, whose last argument is replaced by what is told of this layout."""
        layout = layout_of(self.kind, query, key, value)
        kind = self.kind if layout == USUAL else (self.kind, layout)
        for number in range(1, self.functions):
            try:
                return _compiled_for(kind, True)(query, key, value, *given[:-1], layout.told)
            except _compiler().FailOnRecompileLimitHit:
                kind = self.kind, layout, number
        return _compiled_for(kind, True)(query, key, value, *given[:-1], layout.told)


class PreparedAttention(NamedTuple):
    """A compiled function, and all that it gets beside query, key, value and the score mod.

    Attributes:
        scaled: what comes before the score mod; None for nothing.
        direct: None where a user's code is in it: torch.compile asks whether what that reads in its module is as it was.
        held: all tensors that it reads beside those that are given at each call.
    """

    compiled: Callable[..., tuple[Tensor, Tensor | None]]
    scaled: "ScaledScore | None"
    blocks: BlockMask
    rest: tuple[Any, ...]
    has_floats: bool
    direct: DirectCalls | None
    held: tuple[Tensor, ...] = ()

    def with_blocks(self, blocks: BlockMask) -> "PreparedAttention":
        """The same for other blocks of the same kind: masks of one structure, tables of the same shapes."""
        held = self._tensors_beside(blocks)
        return PreparedAttention(self.compiled, self.scaled, blocks, self.rest, self.has_floats, self.direct, held)

    def _tensors_beside(self, blocks: BlockMask) -> tuple[Tensor, ...]:
        tables = [table for table in map(vars(blocks).get, TABLES) if table is not None]
        scale = () if self.scaled is None else (self.scaled.scale,)
        return *tables, *captures.facts_of(blocks.mask_mod).tensors, *scale

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None
    ) -> tuple[Tensor, Tensor | None]:
        """`run` for a plan: what goes in is what went in before but for the values of tensors, and how query, key, value and
        the tensors of the score mod lie in memory."""
        if self.direct is None:
            return self.run(query, key, value, score_mod)
        given = [query, key, value]
        if score_mod is not None:
            given += captures.facts_of(score_mod).tensors
        return self.direct(given, self.held, lambda: self.run(query, key, value, score_mod))

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `fused_attention`."""
        if self.scaled is not None:
            score_mod = self.scaled.before(score_mod)
        try:
            if not self.has_floats:
                return self.compiled(query, key, value, score_mod, self.blocks, *self.rest)
            # Python floats are constants of the graph: as dynamic ones, FlexAttention cannot capture them (2.11, 2.13)
            with torch._dynamo.config.patch(specialize_float=True):
                return self.compiled(query, key, value, score_mod, self.blocks, *self.rest)
        except _compiler().FailOnRecompileLimitHit as error:
            raise FallbackError(_not_compiled()) from error
        except _compiler().TorchDynamoException as error:
            _raise_if_no_answer(error)
            if score_mod is not None:
                _let_it_raise(score_mod, query.device)
            raise FallbackError(_broken(error)) from error


class _Compiler(NamedTuple):
    """The parts of torch's compiler that are named here."""

    config: Any
    FailOnRecompileLimitHit: type[Exception]
    TorchDynamoException: type[Exception]


@functools.cache
def _compiler() -> _Compiler:
    """They are loaded at the first call, since `import maskloom` shall not."""
    with loading:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._inductor import config

    return _Compiler(config, FailOnRecompileLimitHit, TorchDynamoException)


def shares_heads(query: Tensor, key: Tensor) -> bool:
    """Whether there are fewer key heads than query heads (grouped-query attention)."""
    # a branch, because a comparison of sizes is a symbol while torch compiles, and torch's functions take none
    if query.shape[1] != key.shape[1]:  # noqa: SIM103
        return True
    return False


def compiled_kinds() -> int:
    """How many kinds of attention this process has compiled functions for."""
    return len(_pool)


def _attend_or_fail(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    block_mask: BlockMask,
    scale: float | None,
    enable_gqa: bool,
    wants_lse: bool,
    kernel_options: Any,  # torch's FlexKernelOptions
    told: Told,
) -> tuple[Tensor, Tensor | None]:
    if not torch.compiler.is_compiling():  # a constant in the graph; runs only where there is none
        raise FallbackError(_not_compiled())
    learn((query, key, value), told)
    # lengths from the tensors: as numbers of the block mask they are dynamic scalars, which FLASH takes for captured ones
    lengths = query.shape[-2], key.shape[-2]
    blocks = rebuilt(block_mask, seq_lengths=lengths, mask_mod=dividing_mask(block_mask.mask_mod, query.device))
    bend = None if score_mod is None else answering(dividing_score(score_mod, query.device))
    found: Any = flex_attention(
        query, key, value, bend, blocks, scale, enable_gqa,
        kernel_options=kernel_options, return_aux=AuxRequest(lse=True) if wants_lse else None,
    )  # fmt: skip
    return (found[0], found[1].lse) if wants_lse else (found, None)


def _not_compiled() -> str:
    return (
        "the fused attention kernel was not compiled, and torch would have run it unfused: either more than "
        f"{torch._dynamo.config.recompile_limit} graphs of one kind were needed (torch._dynamo.config.recompile_limit), "
        'or compiling is switched off (torch.compiler.set_stance("force_eager"), TORCHDYNAMO_DISABLE). '
        "Set TORCH_LOGS=recompiles to see why"
    )


def _raise_if_no_answer(error: Exception) -> None:
    """Raise what was raised of an answer that is no bool or no score, which torch passes on as part of its own words."""
    found = re.search(f"({re.escape(NO_BOOL)}|{re.escape(NO_SCORE)})" + r"[^'\"\n]*", str(error))
    if found is not None:
        raise TypeError(found[0]) from error


def _let_it_raise(score_mod: ScoreMod, device: torch.device) -> None:
    """Call it on scalars: what it raises itself says more than what torch makes of that."""
    index = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad():
        score_mod(torch.zeros((), device=device), index, index, index, index)


def _broken(error: Exception) -> str:
    """What to say of a failed compilation: its own words, but for the advice that torch puts behind them."""
    words = " ".join(str(error).strip().split("\n\n")[0].split())
    return (
        f"the fused attention kernel could not be compiled ({type(error).__name__}: {words}). If the mask or score_mod is "
        "your own, try it alone in torch.compile; backend='reference' runs whatever eager torch runs"
    )


def _kind(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    mods: tuple[object, ...],
    wants_lse: bool,
    options: Mapping[str, object],
) -> tuple[Hashable, bool | None]:
    """What may not vary within one compiled function, and whether its sizes are dynamic from the first call on.

    FLASH takes no Python number that is dynamic ("captures a dynamic scalar"): there numbers in the mask are part of
    the kind, and sizes become dynamic at the second call. So they do for a step of decoding, whose batch size and
    number of queries are part of the kind: torch's split kernel for few queries needs both to be constants.
    """
    flash_numbers = options.get("BACKEND") == "FLASH" and captures.has_numbers(*mods)
    decodes = _is_step(query, key, value)
    kind = (
        captures.structure(*mods, numbers=flash_numbers),
        tuple(_tensor_kind(tensor) for tensor in (query, key, value)),
        tuple(None if table is None else captures.sizes_of_one(table) for table in _tables(block_mask)),
        query.shape[-2] == key.shape[-2],  # equal lengths share one symbol in the graph
        (query is key, key is value),  # and one tensor given twice is one input
        block_mask.BLOCK_SIZE,
        wants_lse,
        query.shape[:3:2] if decodes else None,
        tuple(sorted(options.items())),
        bool(_compiler().config.max_autotune),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(query.device.type),
    )
    return kind, None if flash_numbers or decodes else True


def _is_step(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether this is a step of decoding: few queries, more keys, no gradient."""
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return query.shape[2] <= _MOST_DECODED and key.shape[2] > query.shape[2] and not trains


def _tensor_kind(tensor: Tensor) -> Hashable:
    batch, heads, length, head_dim = tensor.shape
    return tensor.dtype, tensor.device, heads, head_dim, batch == 1, length == 1, tensor.requires_grad


def _tables(block_mask: BlockMask) -> tuple[Tensor | None, ...]:
    return block_mask.kv_indices, block_mask.full_kv_indices, block_mask.q_indices


def _compiled_for(kind: Hashable, dynamic: bool | None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    with _pool_lock:
        found = _pool.get(kind)
        if found is None:
            body = _with_its_own_code(_attend_or_fail, f"attend_{next(_numbers)}")
            options: Any = {"guard_filter_fn": that_may_fail}
            found = torch.compile(body, backend=noted(_COMPILER), fullgraph=True, dynamic=dynamic, options=options)
            _pool.put(kind, found)
    return found


def _with_its_own_code(function: Any, name: str) -> types.FunctionType:
    # the name too: what torch learns about dynamic sizes it keeps by file, line and name of the code
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
