"""Torch's current state: whether results may be cached, and how to keep the compiler out of code."""

import functools
import sys
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., Any])


def can_cache() -> bool:
    """Whether operations give plain tensors whose values stay.

    They do not while torch traces, nor while a CUDA graph is captured, whose memory is rewritten at each replay.
    """
    return not (is_tracing() or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()))


def is_tracing() -> bool:
    """Whether operations may give other than plain tensors: under dynamo, export, a fake mode, vmap or grad."""
    if torch.compiler.is_dynamo_compiling():
        return True
    # a non-strict export has dispatch modes; the second check is `inside_transform`, inlined to save a call
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None


def inside_transform() -> bool:
    """Whether code runs inside a torch.func transform (grad, vmap, jvp ...); also in a compiled function inside one."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def inside_vmap() -> bool:
    """Whether one of these transforms is torch.vmap."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def is_exporting() -> bool:
    """Whether torch.export runs. (torch 2.11 says so of itself in every function that torch.compile traces.)"""
    return bool(torch.compiler._is_exporting_flag)


# dynamo calls them itself, under the transforms that it is tracing, and uses the results as constants. It cannot trace
# their bodies: for `peek_interpreter_stack` it makes an object, which is never None
for _asked in (inside_transform, inside_vmap, is_exporting):
    _asked._dynamo_marked_constant = True  # type: ignore[attr-defined] # `torch._dynamo.assume_constant_result` without loading it


def is_transformed() -> bool:
    """Whether code runs inside such a transform or forward-mode differentiation: both need plain operations."""
    return inside_transform() or forward_ad._current_level >= 0


NOT_LIFTED = (
    "inside torch.utils.checkpoint, while torch.compile traces, torch cannot lift a plain mask_mod to a table (nor can its "
    "own create_mask): give a Mask whose class defines __call__, or a table made outside, from_dense(mask.dense(...))"
)


def is_in_operator() -> bool:
    """Whether torch.compile or a strict torch.export traces the body of an operator; see `in_nested_trace`."""
    return torch.compiler.is_dynamo_compiling() and in_nested_trace()


def in_nested_trace() -> bool:
    """Whether dynamo traces the body of an operator (`torch.utils.checkpoint`), where no function mode can be entered."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output.current_tracer.parent is not None


in_nested_trace._dynamo_marked_constant = True  # type: ignore[attr-defined] # as above


def autocast_to(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast casts to on a device; None if it is off. With it a mask may run other operations."""
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = device.type
    # torch 2.11 cannot trace is_autocast_available
    there = torch.compiler.is_dynamo_compiling() or torch.amp.is_autocast_available(kind)
    on = there and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def raw_stream(device: torch.device) -> int | None:
    """A number for the current stream of a CUDA device; None for others. (``current_stream`` makes an object, in 15 us.)"""
    if device.type != "cuda":
        return None
    at = torch.cuda.current_device() if device.index is None else device.index
    return torch._C._cuda_getCurrentRawStream(at)


_AUTOCAST = tuple(map(torch.device, ("cpu", "cuda", "mps", "xpu")))


def float_state() -> Hashable:
    """The torch settings that can change floating-point results, and so the answer of a mask.

    They are the default dtype, autocast's dtypes, the matmul precision and whether algorithms are deterministic.
    """
    return (
        torch.get_default_dtype(),
        tuple(map(autocast_to, _AUTOCAST)) if torch._C._is_any_autocast_enabled() else None,
        _matmul_precision(),
        torch._C._get_deterministic_algorithms(),
    )


def _matmul_precision() -> Hashable:
    """torch's settings for products of float32 matrices.

    Those of one backend (``torch.backends.cuda.matmul.fp32_precision``) may differ from the setting for all
    (``torch.set_float32_matmul_precision``), which torch then refuses to tell.
    """
    of_each = [torch._C._get_fp32_precision_getter(backend, "matmul") for backend in ("cuda", "mkldnn")]
    try:
        return torch._C._get_float32_matmul_precision(), *of_each
    except RuntimeError:
        return None, *of_each


def max_autotune() -> bool:
    """Whether torch's compiler, where it is loaded, tries many kernels (``torch._inductor.config.max_autotune``)."""
    config = sys.modules.get("torch._inductor.config")
    return config is not None and bool(config.max_autotune)


def counting_writes(function: F) -> F:
    """Wrap a function so that it makes ordinary tensors in inference mode too: writes into those are counted."""

    @functools.wraps(function)
    def made(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return cast(F, made)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context to run a recorded program in. Autocast is off: the program has recorded its casts already."""
    return nullcontext() if autocast_to(device) is None else torch.autocast(device.type, enabled=False)


def uncompiled(function: F) -> F:
    """The function, excluded from torch's compiler if the compiler is loaded."""
    return _disabled(function) if "torch._dynamo" in sys.modules else function


_made: dict[Any, Any] = {}  # not functools.cache, of which dynamo warns


def _disabled(function: F) -> F:
    if function not in _made:
        _made[function] = torch.compiler.disable(function)
    return cast(F, _made[function])
