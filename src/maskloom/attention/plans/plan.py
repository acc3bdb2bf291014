"""One plan for each mask and kind of call: what `attend` decides at the first such call, kept with the mask.

A plan holds what a backend needs to run: a table or a BlockMask, options, the compiled function. A later call with the same
mask, shapes, dtypes and flags looks one thing up, and runs. A score mod goes in at each call: the plan is for all of one
structure, and holds no tensor of any. Whatever may change unseen has no plan, and is decided at every call: functions,
offsets beside a score mod, anything while torch traces.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from maskloom.attention.backends.base import Backend, Prepared
from maskloom.attention.backends.decode import is_few
from maskloom.attention.clean_padding import Hidden, cleaned, zero_hidden_gradients
from maskloom.attention.plans.kinds import plan_like
from maskloom.attention.plans.steps import run_step, run_table
from maskloom.attention.request import Attended, Request
from maskloom.core import captures
from maskloom.core.cache import cached_with
from maskloom.core.torch_state import max_autotune
from maskloom.masks.algebra import Mask, Placing, everything
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod, ScoreValue


@dataclass(frozen=True)
class CallPlan:
    """What runs.

    Attributes:
        cast_to: the dtype that autocast wants of query, key and value; None where it is off.
        hidden: where padding is cleaned; None where it is not.
        values_alone: whether it is cleaned of values alone.
    """

    prepared: Prepared
    cast_to: torch.dtype | None
    hidden: Hidden | None = None
    values_alone: bool = False

    @property
    def blocks(self) -> BlockMask | None:
        """The BlockMask that its kernel gets, of a backend by tiles."""
        return self.prepared.blocks

    def with_others(self, blocks: BlockMask, hidden: Hidden | None) -> "CallPlan":
        """The same for another mask of the same kind: its BlockMask, and where it hides if that is cleaned."""
        assert self.prepared.with_blocks is not None
        return CallPlan(self.prepared.with_blocks(blocks), self.cast_to, hidden, self.values_alone)

    @property
    def nbytes(self) -> int:
        return self.prepared.nbytes

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None) -> Attended:
        if self.cast_to is not None:
            query, key, value = (_cast(tensor, self.cast_to) for tensor in (query, key, value))
        if self.hidden is None:
            return self.prepared.run(query, key, value, score_mod)
        query, key, value = cleaned(query, key, value, self.hidden, values_alone=self.values_alone)
        return zero_hidden_gradients(self.prepared.run(query, key, value, score_mod), self.hidden)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as autocast gives it to torch's own attention: float64 stays."""
    return tensor if tensor.dtype in (dtype, torch.float64) else tensor.to(dtype)


def planned(
    query: Any,
    key: Any,
    value: Any,
    mask: BlockMask | MaskMod | Tensor | None,
    score_mod: ScoreMod | None,
    q_offset: Any,
    return_aux: AuxRequest | None,
    scale: Any,
    backend: str,
    has_sinks: bool,
    deterministic: bool,
    kernel_options: Mapping[str, object] | None,
    clean_padding: bool,
    checked: Callable[[], tuple[Request, Backend]],
    make: Callable[[Request, Backend], CallPlan | None],
) -> Attended | None:
    """What such a call gives, by a plan that is made once; None where there can be none.

    Args:
        query, key, value, mask, score_mod, q_offset, return_aux, scale, backend, deterministic, kernel_options, clean_padding:
            as `attend` was given them.
        checked: the request, all arguments checked, and the backend for it; what it raises comes through.
        make: the plan of a request on a backend.
    """
    if torch.compiler.is_dynamo_compiling() or forward_ad._current_level >= 0:
        return None
    if not (type(query) is type(key) is type(value) is Tensor and _is_plain(q_offset, return_aux, scale, backend)):
        return None
    if not (query.layout is key.layout is value.layout is torch.strided):
        return None
    if query.is_nested or key.is_nested or value.is_nested:
        return None
    if isinstance(mask, Tensor):
        if type(mask) is not Tensor or score_mod is not None or kernel_options is not None or clean_padding:
            return None
        if type(q_offset) is Tensor or torch._C._is_any_autocast_enabled():
            return None
        flags = deterministic or torch._C._get_deterministic_algorithms(), torch.is_inference_mode_enabled()
        options = return_aux is not None and return_aux.lse, scale, backend, has_sinks, flags
        return run_table(query, key, value, mask, options, checked)
    if type(kernel_options) not in _OPTIONS or not (kernel_options is None or _are_plain(kernel_options)):
        return None
    owner: Any = everything if mask is None else mask
    facts = captures.facts_of(owner.mask_mod if isinstance(owner, BlockMask) else owner)
    bent = None if score_mod is None else _structure_beside(score_mod, owner, facts)
    if facts.may_change or bent == _UNKNOWN:
        return None
    kind = query.device.type
    autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(kind)
    call = (
        "plan",
        query.shape, key.shape, value.shape, query.dtype, key.dtype, value.dtype, query.device, key.device, value.device,
        query.requires_grad, key.requires_grad, value.requires_grad, query is key, key is value,
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_autocast_dtype(kind) if autocast else None,
        None if kind == "cpu" else max_autotune(),
        q_offset is None, return_aux is not None and return_aux.lse,
        scale, backend, has_sinks, deterministic or torch._C._get_deterministic_algorithms(),
        tuple(sorted(kernel_options.items())) if kernel_options else None, clean_padding, bent,
    )  # fmt: skip
    if not (q_offset is None or (type(q_offset) is int and q_offset == 0)):
        if autocast or kernel_options or clean_padding or score_mod is not None or not isinstance(mask, Mask):
            return None
        offset = _offset_of_step(query, key, q_offset)
        return None if offset is None else run_step(query, key, value, mask, offset, facts, call, checked)
    found = cached_with(owner, call, lambda: plan_like(owner, facts, call, checked, make), in_mode=True, facts=facts)
    return None if found is None else found(query, key, value, score_mod)


def _structure_beside(score_mod: ScoreMod, owner: Any, of_mask: captures.Facts) -> Hashable:
    """What a plan depends on of a score mod: nothing that depends on the values of tensors."""
    mask_mod = owner.mask_mod if isinstance(owner, BlockMask) else owner
    if not isinstance(score_mod, ScoreValue) or isinstance(mask_mod, Placing):
        return _UNKNOWN
    facts = captures.facts_of(score_mod)
    if facts.may_change or not facts.is_plain or any(type(tensor) not in _TENSORS for tensor in facts.tensors):
        return _UNKNOWN
    shapes = tuple([tensor.shape for tensor in facts.tensors])
    shared = tuple([any(tensor is held for held in of_mask.tensors) for tensor in facts.tensors])
    return captures.structure(score_mod, numbers=True), shapes, shared


def _is_plain(q_offset: Any, return_aux: Any, scale: Any, backend: Any) -> bool:
    """Whether these are what a plan can be looked up by; what is wrong in them is said where they are checked."""
    if not (q_offset is None or (type(q_offset) is int and q_offset >= 0) or type(q_offset) is Tensor):
        return False
    if not (return_aux is None or (type(return_aux) is AuxRequest and not return_aux.max_scores)):
        return False
    return type(scale) in _SCALES and type(backend) is str


def _are_plain(options: Mapping[str, object]) -> bool:
    return all(type(name) is str and type(options[name]) in _PLAIN for name in options)


def _offset_of_step(query: Tensor, key: Tensor, q_offset: int | Tensor) -> int | Tensor | None:
    """The offset of a step of decoding, or of a chunk of a prefill, as plans take it; None where there is no plan."""
    if query.device.type != "cpu" and not is_few(query, key):
        return None
    if not isinstance(q_offset, Tensor):
        return q_offset
    if q_offset.dtype not in (torch.int64, torch.int32) or q_offset.device != query.device:
        return None
    return q_offset.reshape(()) if q_offset.ndim and q_offset.numel() == 1 else q_offset


_UNKNOWN = "unknown"
_TENSORS = (Tensor, torch.nn.Parameter)
_SCALES = (float, int, type(None))
_OPTIONS = (dict, type(None))
_PLAIN = (bool, int, float, str)
