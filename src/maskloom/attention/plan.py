"""One plan for each mask and kind of call: what `attend` decides at the first such call, kept with the mask.

A plan holds what a backend needs to run: a table or a BlockMask, options, the compiled function. A later call with the same
mask, shapes, dtypes and flags looks one thing up, and runs. Whatever may change unseen has no plan, and is decided at
every call: functions, score mods, offsets in tensors, `clean_padding`, anything while torch traces.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from maskloom.attention.backends.base import Prepared
from maskloom.attention.request import Attended
from maskloom.core import captures
from maskloom.core.cache import cached_with
from maskloom.core.torch_state import max_autotune
from maskloom.masks.algebra import everything
from maskloom.program.program import MaskMod


@dataclass(frozen=True)
class CallPlan:
    """What runs, and the dtype that autocast wants of query, key and value; None where it is off."""

    prepared: Prepared
    cast_to: torch.dtype | None

    @property
    def nbytes(self) -> int:
        return self.prepared.nbytes

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, q_offset: Any) -> Attended:
        if self.cast_to is not None:
            query, key, value = (_cast(tensor, self.cast_to) for tensor in (query, key, value))
        prepared = self.prepared
        return prepared.run(query, key, value, q_offset) if prepared.moves else prepared.run(query, key, value)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as autocast gives it to torch's own attention: float64 stays."""
    return tensor if tensor.dtype in (dtype, torch.float64) else tensor.to(dtype)


def planned(
    query: Any,
    key: Any,
    value: Any,
    mask: BlockMask | MaskMod | Tensor | None,
    q_offset: Any,
    return_aux: AuxRequest | None,
    scale: Any,
    backend: str,
    has_sinks: bool,
    deterministic: bool,
    kernel_options: dict[str, Any] | None,
    make: Callable[[], CallPlan | None],
) -> CallPlan | None:
    """The plan of such a call, made once; None where there can be none.

    Args:
        query, key, value, mask, q_offset, return_aux, scale, backend, deterministic, kernel_options: as `attend` was given them.
        make: the plan, all arguments checked; what it raises comes through.
    """
    if not (type(query) is type(key) is type(value) is Tensor) or isinstance(mask, Tensor):
        return None
    if torch.compiler.is_dynamo_compiling() or forward_ad._current_level >= 0:
        return None
    if not (q_offset is None or (type(q_offset) is int and q_offset >= 0)):
        return None
    if not (return_aux is None or (type(return_aux) is AuxRequest and not return_aux.max_scores)):
        return None
    if type(scale) not in _SCALES or type(backend) is not str or type(kernel_options) not in _OPTIONS:
        return None
    if kernel_options and not all(
        type(name) is str and type(kernel_options[name]) in _PLAIN for name in kernel_options
    ):
        return None
    options = tuple(sorted(kernel_options.items())) if kernel_options else None
    owner: Any = everything if mask is None else mask
    if captures.facts_of(owner.mask_mod if isinstance(owner, BlockMask) else owner).may_change:
        return None
    kind = query.device.type
    autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(kind)
    call: Hashable = (
        "plan",
        query.shape, key.shape, value.shape, query.dtype, key.dtype, value.dtype, query.device, key.device, value.device,
        query.requires_grad, key.requires_grad, value.requires_grad, query is key, key is value,
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_autocast_dtype(kind) if autocast else None,
        None if kind == "cpu" else max_autotune(),
        None if q_offset is None else q_offset > 0, return_aux is not None and return_aux.lse,
        scale, backend, has_sinks, deterministic or torch._C._get_deterministic_algorithms(), options,
    )  # fmt: skip
    plan = cached_with(owner, call, make)
    if plan is None or (q_offset and not (plan.prepared.moves and q_offset <= plan.prepared.most_offset)):
        return None
    return plan


_SCALES = (float, int, type(None))
_OPTIONS = (dict, type(None))
_PLAIN = (bool, int, float, str)
