"""The ways to run attention, what each cannot do, and the rule that chooses one.

| backend   | what it is                                                                 | where "auto" chooses it               |
|-----------|----------------------------------------------------------------------------|---------------------------------------|
| flash     | FlexAttention with FlashAttention 4; skips the tiles that the mask hides   | from Hopper on, half types, Q > 128   |
| sdpa      | torch's scaled_dot_product_attention: is_causal, or the mask as a table    | the CPU; GPUs where it needs no table |
| varlen    | torch's FlashAttention 2 for packed documents, with causal or a window     | GPUs, half types                      |
| triton    | FlexAttention with Triton; skips hidden tiles                              | GPUs otherwise                        |
| reference | the specification, in chunks of queries                                    | where nothing else can                |

"auto" takes the first in this order that can do what is asked (on the CPU: sdpa, then reference). The order is that of the
times in benchmarks/results/attention_gpu.csv: in rows of 128 Triton's kernel is faster than FLASH; without FLASH, cuDNN is
the fastest where the mask is `causal` or hides nothing (half types, Q > 128); varlen is as fast as Triton and compiles
nothing.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention import flash_mask
from maskloom.attention.derivatives import beyond_backward
from maskloom.attention.empty import of_no_rows
from maskloom.attention.fused import flash, triton
from maskloom.attention.given import refuse_shared_tables
from maskloom.attention.learned import no_backward, no_forward
from maskloom.attention.reference import attention_in_chunks
from maskloom.attention.request import Attended, Request
from maskloom.attention.sdpa import Sight, kept_table, sdpa, sight_of
from maskloom.attention.varlen import packed, varlen
from maskloom.masks import captured
from maskloom.masks.algebra import Everything
from maskloom.masks.modes import inside_transform, inside_vmap
from maskloom.masks.relative import Causal
from maskloom.masks.words import brief
from maskloom.scores.softcap import SoftCap

Backend = Literal["flash", "sdpa", "varlen", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_SHORT = 128  # queries up to which Triton's kernel was faster than FLASH on an H100
_HALF = (torch.bfloat16, torch.float16)
_FUSED = (torch.float32, *_HALF)


@dataclass(frozen=True)
class Choice:
    """A backend, why it was chosen, and whether the caller named it, by kernel_options too."""

    backend: Backend
    reason: str
    named: bool


def choose(request: Request, backend: Backend | Literal["auto"]) -> Choice:
    """Which backend runs.

    Raises:
        ValueError: ``backend`` is not known, or cannot do this.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend is one of {', '.join(('auto', *BACKENDS))}; got {brief(backend)}")
    named = _by_options(request) if backend == "auto" else backend
    plain = forward_ad._current_level < 0 and not inside_transform()  # all but few pass here: one call
    if named is not None:
        beyond = None if plain else _transformed(named, request)
        refused = beyond or _REFUSALS[named](request) or _no_options(named, request)
        if refused is not None:
            raise ValueError(f"backend {named!r} cannot do this: {refused}")
        return Choice(named, "kernel_options are for it" if backend == "auto" else "asked for", named=True)
    for candidate in _order(request):
        beyond = None if plain else _transformed(candidate, request)
        if beyond is None and _REFUSALS[candidate](request) is None:
            by_itself = candidate == "sdpa" and request.device.type != "cpu"
            return Choice(candidate, _NO_TABLE if by_itself else _REASONS[candidate], named=False)
    raise AssertionError("the reference refuses nothing")


def ruled_out(request: Request, chosen: Backend) -> dict[Backend, str]:
    """Why "auto" did not choose the others: those that cannot do it, and those that come first and are slower here."""
    found: dict[Backend, str] = {}
    for backend in BACKENDS:
        if backend == chosen:
            continue
        reason = _transformed(backend, request) or _REFUSALS[backend](request)
        if reason is None and BACKENDS.index(backend) < BACKENDS.index(chosen):
            reason = _passed_over(backend)
        if reason is not None:
            found[backend] = reason
    return found


def _passed_over(backend: Backend) -> str:
    """Why a backend that can do it is not in the order."""
    if backend == "flash":
        return f"with up to {_SHORT} queries triton is faster"
    return f'"auto" takes it on a GPU for half types and more than {_SHORT} queries, where the mask is `causal` or `everything`'


def skips(request: Request, backend: Backend) -> str:
    """What a backend does not compute."""
    if backend == "sdpa":
        return _SKIPPED_BY_SDPA[sight_of(request.mask)]
    return _SKIPPED[backend]


def run(backend: Backend, request: Request) -> Attended:
    """Attention on one backend, which does not refuse it. Of an empty batch none need run."""
    if request.query.shape[0] == 0:
        return of_no_rows(request)
    if isinstance(request.mask, BlockMask):
        refuse_shared_tables(request.mask, request.query.shape[0], request.query.shape[1])
    return _RUN[backend](request)


def _order(request: Request) -> tuple[Backend, ...]:
    if request.device.type == "cpu":
        return ("sdpa", "reference")
    if inside_transform():
        return ("sdpa", "reference")
    if torch.compiler.is_compiling():  # whether numbers in a mask are dynamic, which flash refuses, is not known
        return ("triton", "reference")
    if request.query.shape[2] <= _SHORT:
        return ("varlen", "triton", "reference")
    whole = request.mask is None or isinstance(request.mask, (Everything, Causal))
    sdpa_too: tuple[Backend, ...] = ("sdpa",) if whole and request.query.dtype in _HALF else ()
    return ("flash", *sdpa_too, "varlen", "triton", "reference")


def _by_options(request: Request) -> Backend | None:
    """The backend that torch's own kernel options are for."""
    if not request.kernel_options or request.device.type == "cpu":
        return None
    return "flash" if request.kernel_options.get("BACKEND") == "FLASH" else "triton"


def _transformed(backend: Backend, request: Request) -> str | None:
    """Why a transform of torch.func, or forward-mode differentiation, cannot be applied to it; None where it can."""
    if backend == "reference":
        return None
    beyond = beyond_backward(request)
    if beyond is None and backend != "sdpa" and inside_transform():
        return "torch.func (vmap, grad, jvp) cannot transform its kernel; sdpa and reference are made of what it can"
    return beyond


# -- what each cannot do: the reason, or None --------------------------------------------------------------------------


def _no_flash(request: Request) -> str | None:
    asked = (request.kernel_options or {}).get("BACKEND", "FLASH")
    if asked != "FLASH":
        return f"kernel_options ask for {asked}, which is not FLASH"
    if request.device.type != "cuda":
        return f"it needs a GPU; the tensors are on {request.device}"
    if not has_flash():
        return "it needs FlashAttention 4: pip install flash-attn-4"
    if _major_of(request.device) < 9:
        return f"it needs a Hopper GPU or a newer one; this is a {torch.cuda.get_device_name(request.device)}"
    if request.query.dtype not in _HALF:
        return f"it runs in bfloat16 and float16; the tensors are {request.query.dtype}"
    head_dim, value_dim = request.query.shape[-1], request.value.shape[-1]
    if head_dim != value_dim or head_dim not in _FLASH_HEAD_DIMS:
        listed = ", ".join(map(str, _FLASH_HEAD_DIMS))
        return f"it has head dims {listed}, the same for keys and values; got {head_dim} and {value_dim}"
    if isinstance(request.mask, BlockMask):
        if request.mask.full_kv_indices is None:
            return "it needs a block mask with full tables (separate_full_blocks=True)"
        if tuple(request.mask.BLOCK_SIZE) != _FLASH_BLOCK:
            return f"it needs block size {_FLASH_BLOCK}; the block mask has {tuple(request.mask.BLOCK_SIZE)}"
    if request.wants_lse:
        return "torch scales its log-sum-exp, which return_aux and sinks need, to another base, and it has no gradient"
    if request.score_mod is not None and not isinstance(request.score_mod, SoftCap):
        return "of score mods it has softcap: with others its gradients are wrong"
    return _no_flash_mask(request) or _nondeterministic(request)


def _no_flash_mask(request: Request) -> str | None:
    if torch.compiler.is_dynamo_compiling():  # masks cannot be read then: what it lacks, torch says
        return None
    return flash_mask.refused(request.mask, request.query.device)


def _no_varlen(request: Request) -> str | None:
    if request.device.type != "cuda":
        return f"it needs a GPU; the tensors are on {request.device}"
    found = packed(request.mask)
    if found is None:
        return "it needs a mask that is documents(offsets=...), alone or joined with causal or a window by &"
    if request.query.dtype not in _HALF:
        return f"it runs in bfloat16 and float16; the tensors are {request.query.dtype}"
    head_dim, value_dim = request.query.shape[-1], request.value.shape[-1]
    if head_dim != value_dim or head_dim % 8 or head_dim > 256:
        return f"it has head dims up to 256 that are multiples of 8, the same for keys and values; got {head_dim} and {value_dim}"
    if request.query.shape[2] != request.key.shape[2]:
        return "it has as many queries as keys"
    if found.documents.ids.shape[0] < request.query.shape[2]:
        return f"the mask reads a table with {found.documents.ids.shape[0]} positions, and there are {request.query.shape[2]} queries"
    if request.score_mod is not None:
        return "it has no score_mod"
    if request.wants_lse:
        return "it gives no log-sum-exp, and so no sinks"
    return _nondeterministic(request)


def _no_triton(request: Request) -> str | None:
    if request.device.type == "cpu":
        return "it needs a GPU; the tensors are on the CPU (sdpa and reference run there)"
    mask_mod = request.mask.mask_mod if isinstance(request.mask, BlockMask) else request.mask
    if mask_mod is not None and not torch.compiler.is_dynamo_compiling() and captured.known(mask_mod).searches:
        return "it has no room on the chip for the search of from_edges; from_dense(mask.dense(...)) says the same in a table"
    if (request.kernel_options or {}).get("BACKEND") == "FLASH":
        return "kernel_options ask for FLASH, which is backend 'flash'"
    if request.query.dtype not in _FUSED:
        return f"it runs in float32, bfloat16 and float16; the tensors are {request.query.dtype}"
    if request.deterministic and request.may_train_score_mod:
        return "the gradient of a tensor that score_mod reads is summed in no fixed order"
    if request.score_mod is None or torch.compiler.is_dynamo_compiling():
        return None
    wrong = no_forward(request.score_mod, request.query.device)
    if wrong is None and request.needs_gradients:
        return no_backward(request.score_mod, request.query.device)
    return wrong


def _no_sdpa(request: Request) -> str | None:
    if request.score_mod is not None:
        return "it has no score_mod"
    if request.wants_lse:
        return "it gives no log-sum-exp, and so no sinks"
    if request.device.type == "cpu":
        return None
    if inside_vmap():
        return (
            "torch.vmap cannot batch its kernels on a GPU (torch 2.11: an internal assertion); reference can be batched"
        )
    return _nondeterministic(request)


def _no_options(backend: Backend, request: Request) -> str | None:
    if request.kernel_options and backend not in ("flash", "triton"):
        return "it takes no kernel_options; flash and triton do"
    return None


def _nondeterministic(request: Request) -> str | None:
    if request.deterministic and request.needs_gradients:
        return "its gradients are not the same at every run"
    return None


_FLASH_HEAD_DIMS = (64, 128)  # with 96 its backward does not compile (flash-attn-4 4.0.0b4); others are not tried
_FLASH_BLOCK = (128, 128)

_REFUSALS: dict[Backend, Callable[[Request], str | None]] = {
    "flash": _no_flash,
    "varlen": _no_varlen,
    "triton": _no_triton,
    "sdpa": _no_sdpa,
    "reference": lambda request: None,
}

_REASONS: dict[Backend, str] = {
    "flash": "FlashAttention 4: the fastest that skips hidden tiles",
    "sdpa": "FlexAttention has no backward on the CPU; torch's own attention has",
    "varlen": "packed documents: FlashAttention 2 attends inside each",
    "triton": "FlexAttention, compiled: hidden tiles are skipped",
    "reference": "nothing else can do this",
}

_SKIPPED: dict[Backend, str] = {
    "flash": "hidden tiles",
    "varlen": "what documents, causal or a window hide",
    "triton": "hidden tiles",
    "reference": "nothing",
}
_SKIPPED_BY_SDPA: dict[Sight, str] = {
    "everything": "nothing, since the mask hides nothing",
    "causal": "what lies above the diagonal",
    "some": "nothing, since the mask goes in as a table",
}

_NO_TABLE = "the mask needs no table: torch's own attention is fastest"


def has_flash() -> bool:
    """Whether FlashAttention 4 is installed. It is not imported for that: it takes seconds."""
    return _HAS_FLASH


def _find_flash() -> bool:
    found = importlib.util.find_spec("flash_attn")
    places = (found.submodule_search_locations or ()) if found is not None else ()
    return any((Path(place) / "cute" / "interface.py").exists() for place in places)


_HAS_FLASH = _find_flash()


@functools.cache
def _major_of(device: torch.device) -> int:
    """The first number of a GPU's compute capability: 9 is Hopper."""
    return torch.cuda.get_device_properties(device).major


# -- running -----------------------------------------------------------------------------------------------------------


def _reference(request: Request) -> Attended:
    query, key, value = request.query, request.key, request.value
    table = kept_table(query, key, request.mask)
    mask = request.mask if table is None else table
    return Attended(*attention_in_chunks(query, key, value, mask, score_mod=request.score_mod, scale=request.scale))


def _sdpa(request: Request) -> Attended:
    return Attended(sdpa(request.query, request.key, request.value, request.mask, scale=request.scale), None)


_RUN: dict[Backend, Callable[[Request], Attended]] = {
    "flash": flash,
    "varlen": varlen,
    "triton": triton,
    "sdpa": _sdpa,
    "reference": _reference,
}
