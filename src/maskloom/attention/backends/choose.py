"""The backends of attention, and the rule that chooses one.

"auto" takes the first in the order of `BACKENDS` that can do what is asked (on the CPU: sdpa, sliced, reference). The order is
that of the times in benchmarks/results/attention_gpu.csv: in rows of 128 Triton's kernel is faster than FLASH; without FLASH,
cuDNN is the fastest where the mask is `causal` or hides nothing (half types, Q > 128); varlen is as fast as Triton and
compiles nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.autograd import forward_ad

from maskloom.attention.backends.base import HALF, LITTLE, LONG, SHORT, Backend, BackendName, check_name
from maskloom.attention.backends.decode import Decode, is_few
from maskloom.attention.backends.flash import Flash
from maskloom.attention.backends.reference import Reference
from maskloom.attention.backends.sdpa import Sdpa
from maskloom.attention.backends.triton import Triton
from maskloom.attention.backends.varlen import Varlen
from maskloom.attention.derivatives import beyond_backward
from maskloom.attention.request import Request
from maskloom.attention.sliced.backend import Sliced
from maskloom.core.symbols import known
from maskloom.core.torch_state import inside_transform
from maskloom.masks.algebra import And, Everything
from maskloom.masks.patterns.packed.segments import FromDocumentStart, FromRunStart, Segmented
from maskloom.masks.patterns.relative import Causal

BACKENDS: dict[BackendName, Backend] = {
    backend.name: backend for backend in (Decode(), Flash(), Sdpa(), Varlen(), Triton(), Sliced(), Reference())
}
"""Every backend by its name. A new one is a class in a file of its own, and one entry here."""


@dataclass(frozen=True)
class Choice:
    """A backend, why it was chosen, and whether the caller named it, by kernel_options too."""

    backend: Backend
    reason: str
    named: bool


def choose(request: Request, name: BackendName | Literal["auto"], *, in_graph: bool | None = None) -> Choice:
    """Which backend runs.

    Args:
        in_graph: whether somebody's torch.compile is around the call; by default whether torch compiles now.

    Raises:
        ValueError: ``name`` is not known, or that backend cannot do this.
    """
    check_name(name)
    asked = _by_options(request) if name == "auto" else name
    plain = forward_ad._current_level < 0 and not inside_transform()  # almost every call, and one question
    if asked is not None:
        backend = BACKENDS[asked]
        refused = None if plain else _refused_transform(backend, request)
        refused = refused or _refused_now(backend, request) or _refused_options(backend, request)
        if refused is not None:
            raise ValueError(f"backend {asked!r} cannot do this: {refused}")
        return Choice(backend, "kernel_options are for it" if name == "auto" else "asked for", named=True)
    in_graph = torch.compiler.is_compiling() if in_graph is None else in_graph
    for candidate in map(BACKENDS.__getitem__, _order(request)):
        refused = None if plain else _refused_transform(candidate, request)
        if refused is None and _refused_by(candidate, request, in_graph) is None:
            return Choice(candidate, candidate.reason(request), named=False)
    raise AssertionError("the reference refuses nothing")


def ruled_out(request: Request, chosen: Backend, *, in_graph: bool = False) -> dict[BackendName, str]:
    """Why "auto" did not choose the others: those that cannot do it, and those that come first and are slower here."""
    found: dict[BackendName, str] = {}
    is_before = True
    for backend in BACKENDS.values():
        if backend is chosen:
            is_before = False
            continue
        reason = _refused_transform(backend, request) or _refused_by(backend, request, in_graph)
        if reason is None and is_before:
            reason = backend.passed_over()
        if reason is not None:
            found[backend.name] = reason
    return found


def _refused_by(backend: Backend, request: Request, in_graph: bool) -> str | None:
    return (backend.refuse_in_graph(request) if in_graph else None) or _refused_now(backend, request)


def _refused_now(backend: Backend, request: Request) -> str | None:
    return backend.refuse(request) or _refused_dropout(backend, request)


def _order(request: Request) -> tuple[BackendName, ...]:
    if request.device.type == "cpu" or inside_transform():
        return ("sdpa", "sliced", "reference")
    few: tuple[BackendName, ...] = ("decode",) if is_few(request.query, request.key) else ()
    if request.query.shape[2] <= SHORT:
        return (*few, "varlen", "triton", "reference")
    whole = request.dropout is None and (request.mask is None or isinstance(request.mask, (Everything, Causal)))
    sdpa_too: tuple[BackendName, ...] = ("sdpa",) if whole and request.query.dtype in HALF else ()
    flash: tuple[BackendName, ...] = () if _is_little(request) else ("flash",)
    return (*flash, *sdpa_too, "varlen", "triton", "reference")


def _is_little(request: Request) -> bool:
    batch, heads, q_len, kv_len = request.sizes
    work = batch * heads * q_len * kv_len * request.query.shape[3]
    return known(work < LITTLE // 2) or (known(work < LITTLE) and (known(q_len < LONG) or _has_documents(request)))


def _has_documents(request: Request) -> bool:
    """Whether queries see keys of their own document alone, which are few."""
    mask = request.mask_mod
    parts = mask.parts if isinstance(mask, And) else (mask,)
    return any(isinstance(part, (Segmented, FromDocumentStart, FromRunStart)) for part in parts)


def _by_options(request: Request) -> BackendName | None:
    """The backend that torch's own kernel options are for."""
    if not request.kernel_options or request.device.type == "cpu":
        return None
    return "flash" if request.kernel_options.get("BACKEND") == "FLASH" else "triton"


def _refused_transform(backend: Backend, request: Request) -> str | None:
    """Why a transform of torch.func, or forward-mode differentiation, cannot be applied to a backend; None where it can."""
    if backend.name == "reference":
        return None
    beyond = beyond_backward(request)
    if beyond is None and backend.name != "sdpa" and inside_transform():
        return "torch.func (vmap, grad, jvp) cannot transform its kernel; sdpa and reference are made of what it can"
    return beyond


def _refused_dropout(backend: Backend, request: Request) -> str | None:
    if request.dropout is None or backend.drops is not None:
        return None
    others = ", ".join(name for name, other in BACKENDS.items() if other.drops is not None)
    return f"it drops no probabilities, which takes a score mod, and a log-sum-exp with a gradient; {others} do"


def _refused_options(backend: Backend, request: Request) -> str | None:
    if request.kernel_options and not backend.takes_options:
        return "it takes no kernel_options; flash and triton do"
    return None
