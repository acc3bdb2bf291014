"""Whether what is computed now may be kept for later, and how to keep torch's compiler out of it."""

import functools
import sys
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., Any])


def can_cache() -> bool:
    """Whether operations give plain tensors that hold their values from now on.

    They do not while torch traces, nor while a CUDA graph is captured, whose memory is written at each replay.
    """
    return not (is_tracing() or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()))


def is_tracing() -> bool:
    """Whether operations may give something else than plain tensors: under dynamo, export, a fake mode, vmap or grad."""
    if torch.compiler.is_dynamo_compiling():
        return True
    # an export that is not strict has dispatch modes; the second question is `inside_transform`, a call less
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None


def inside_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp and so on) is being applied, around a function that is compiled too."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def inside_vmap() -> bool:
    """Whether torch.vmap is among them."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


# dynamo asks them itself, with the transforms that it is tracing, and takes the answer for a constant. It cannot trace what
# they ask: of `peek_interpreter_stack` it makes an object, which is never None
for _asked in (inside_transform, inside_vmap):
    _asked._dynamo_marked_constant = True  # type: ignore[attr-defined] # `torch._dynamo.assume_constant_result`, not loading it


def is_transformed() -> bool:
    """Whether such a transform, or forward-mode differentiation, is at work: both want plain operations."""
    return inside_transform() or forward_ad._current_level >= 0


NOT_LIFTED = (
    "inside torch.utils.checkpoint, while torch.compile traces, torch cannot lift a plain mask_mod to a table (nor can its "
    "own create_mask): give a Mask whose class defines __call__, or a table made outside, from_dense(mask.dense(...))"
)


def is_in_operator() -> bool:
    """Whether torch.compile or a strict torch.export traces the body of an operator; see `in_nested_trace`."""
    return torch.compiler.is_dynamo_compiling() and in_nested_trace()


def in_nested_trace() -> bool:
    """Whether dynamo traces the body of an operator, `torch.utils.checkpoint` say, where no function mode can be entered."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output.current_tracer.parent is not None


in_nested_trace._dynamo_marked_constant = True  # type: ignore[attr-defined] # as above


def autocast_to(device: torch.device) -> torch.dtype | None:
    """What autocast casts to on a device, None where it is off: under it a mask may do other operations."""
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = device.type
    # torch 2.11 cannot trace the first question
    there = torch.compiler.is_dynamo_compiling() or torch.amp.is_autocast_available(kind)
    on = there and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


_AUTOCAST = tuple(map(torch.device, ("cpu", "cuda", "mps", "xpu")))


def float_state() -> Hashable:
    """What torch's settings make of floating-point numbers: with others a mask may answer otherwise.

    They are the dtype of Python's numbers, autocast's, and how exact and how repeatable products and sums are.
    """
    return (
        torch.get_default_dtype(),
        tuple(map(autocast_to, _AUTOCAST)) if torch._C._is_any_autocast_enabled() else None,
        torch._C._get_float32_matmul_precision(),
        torch._C._get_deterministic_algorithms(),
    )


def max_autotune() -> bool:
    """Whether torch's compiler, where it is loaded, tries many kernels (``torch._inductor.config.max_autotune``)."""
    config = sys.modules.get("torch._inductor.config")
    return config is not None and bool(config.max_autotune)


def counting_writes(function: F) -> F:
    """The function, which makes ordinary tensors in inference mode too: writes into those can be noticed."""

    @functools.wraps(function)
    def made(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return cast(F, made)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For what runs a recorded program: the casts of autocast are written down in it, and are no one else's business."""
    return nullcontext() if autocast_to(device) is None else torch.autocast(device.type, enabled=False)


def uncompiled(function: F) -> F:
    """The function, which torch's compiler, where it is loaded, does not compile."""
    return _disabled(function) if "torch._dynamo" in sys.modules else function


@functools.cache
def _disabled(function: F) -> F:
    return torch.compiler.disable(function)
