"""Derivatives beside the first backward, which the reference has and kernels lack: forward-mode ones, and the second.

Those of torch.func, and dual tensors, are seen before anything runs. Whether a gradient is differentiated again is not known
then: `with_first_only` has whoever does it told.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from maskloom.attention.request import Request
from maskloom.core import captures
from maskloom.core.torch_state import is_transformed

_FORWARD = "it has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, forward_ad); backend 'reference' has it"
_SECOND = "it has no second derivative (a transform of torch.func inside another); backend 'reference' has it"


def beyond_backward(request: Request) -> str | None:
    """Why a kernel, which has a first backward alone, cannot do this; None where it can, and where that is not known."""
    if torch.compiler.is_dynamo_compiling() or not is_transformed():
        return None
    tensors = [request.query, request.key, request.value, *captures.tensors(request.score_mod)]
    wrapped = any(map(is_functorch_wrapped_tensor, tensors))
    levels = [level.key() for level in get_interpreter_stack() or ()] if wrapped else []
    if TransformType.Jvp in levels or any(map(_is_dual, tensors)):
        return _FORWARD
    return _SECOND if levels.count(TransformType.Grad) > 1 else None


def is_followed(tensor: Tensor) -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, follows what is done with a tensor."""
    return is_functorch_wrapped_tensor(tensor) or _is_dual(tensor)


def _is_dual(tensor: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def with_first_only(out: Tensor, backend: str) -> Tensor:
    """A kernel's result itself. Differentiating its gradients again is an error that names the backend, and one that can."""
    if torch.compiler.is_dynamo_compiling() or is_transformed():
        return out
    node: Any = out.grad_fn
    if node is not None and node.name() == _CUTS_PADDING:
        node = node.next_functions[0][0]
    if node is not None and _is_of_kernel(node.name()):
        if node.name() == _COMPILED and out.device.type != "cpu":
            node.register_prehook(functools.partial(_refuse_graph, backend))  # before there is anything to tell
        else:
            node.register_hook(functools.partial(_tell, backend))
    return out


@functools.cache
def _is_of_kernel(name: str) -> bool:
    return any(kernel in name for kernel in _KERNELS)


_KERNELS = ("ScaledDotProduct", "CompiledFunction", "varlen_attn")  # torch's own written out has a second derivative
_COMPILED = "CompiledFunctionBackward"  # on a GPU it writes into what the forward kept, and torch refuses create_graph
_CUTS_PADDING = "SliceBackward0"  # torch widens the head dim for some kernels, and cuts the result


def _refuse_graph(backend: str, gradients: tuple[Tensor | None, ...]) -> None:
    """Raise where a gradient is to be differentiated again, of a kernel that torch has compiled for one backward."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"attention by backend {backend!r} has no second derivative, and create_graph=True asks for one; "
            "attend(..., backend='reference') has every derivative"
        )


def _tell(backend: str, gradients: tuple[Tensor | None, ...], _: object) -> tuple[Tensor | None, ...] | None:
    """The gradients that a kernel gave; with ``create_graph=True``, ones that raise where they are differentiated."""
    if not torch.is_grad_enabled():
        return None
    return tuple(None if gradient is None else _First.apply(gradient, backend) for gradient in gradients)


class _First(torch.autograd.Function):
    """A gradient itself, that has no derivative."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, backend: str) -> Tensor:
        ctx.backend = backend
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            f"attention by backend {ctx.backend!r} has no second derivative, and a gradient of it is differentiated again; "
            "attend(..., backend='reference') has every derivative"
        )
