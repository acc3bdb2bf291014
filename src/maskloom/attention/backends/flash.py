"""FlexAttention with FlashAttention 4, which torch calls FLASH."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends import flash_mask
from maskloom.attention.backends.base import HALF, LITTLE, LONG, SHORT, Backend, Prepared, blocks_of, nondeterministic
from maskloom.attention.backends.flash_limits import block_size, refused_by
from maskloom.attention.backends.flash_mask import for_flash
from maskloom.attention.backends.flex import fused, prepared
from maskloom.attention.kernels.kept_alive import until_backward, until_forward
from maskloom.attention.request import Attended, Request
from maskloom.core import captures
from maskloom.core.block_masks import rebuilt
from maskloom.core.torch_state import is_exporting
from maskloom.scores.softcap import SoftCap

_FLASH_HEAD_DIMS = (64, 128)  # with 96 its backward does not compile (flash-attn-4 4.0.0b4); others are not tried


def has_flash() -> bool:
    """Whether FlashAttention 4 is installed. It is not imported for that: it takes seconds."""
    return _HAS_FLASH


def _find_flash() -> bool:
    found = importlib.util.find_spec("flash_attn")
    places = (found.submodule_search_locations or ()) if found is not None else ()
    return any((Path(place) / "cute" / "interface.py").exists() for place in places)


_HAS_FLASH = _find_flash()


def _major_of(device: torch.device) -> int:
    """The first number of a GPU's compute capability: 9 is Hopper. (Not cached: dynamo warns users of a cache that it traces.)"""
    return torch.cuda.get_device_properties(device).major


def _refused_mask(request: Request) -> str | None:
    if torch.compiler.is_dynamo_compiling():  # masks cannot be read then: what it lacks, torch says
        return None
    return flash_mask.refused(request.mask, request.query.device)


def _unexpanded(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own for every element: flash-attn (4.0.0b4) would take the kernel that it compiles for a
    stride of 0 for all later tensors, too."""
    return tensor.clone(memory_format=torch.contiguous_format) if 0 in tensor.stride() else tensor


class Flash(Backend):
    """FlexAttention with FlashAttention 4, which torch calls FLASH."""

    name = "flash"
    what = "FlexAttention with FlashAttention 4; skips the tiles that the mask hides"
    where = "from Hopper on, half types, Q > 128, B·H·Q·K·D ≥ 2³⁷ (2³⁶ from 4,096 queries on, without documents)"
    why = "FlashAttention 4: the fastest that skips hidden tiles"
    skipped = "hidden tiles"
    by_tiles = True
    takes_options = True

    def refuse(self, request: Request) -> str | None:
        asked = (request.kernel_options or {}).get("BACKEND", "FLASH")
        if asked != "FLASH":
            return f"kernel_options ask for {asked}, which is not FLASH"
        if request.device.type != "cuda":
            return f"it needs a GPU; the tensors are on {request.device}"
        if not has_flash():
            return "it needs FlashAttention 4: pip install flash-attn-4"
        if _major_of(request.device) < 9:
            return f"it needs a Hopper GPU or a newer one; this is a {torch.cuda.get_device_name(request.device)}"
        if request.query.dtype not in HALF:
            return f"it runs in bfloat16 and float16; the tensors are {request.query.dtype}"
        head_dim, value_dim = request.query.shape[-1], request.value.shape[-1]
        if head_dim != value_dim or head_dim not in _FLASH_HEAD_DIMS:
            listed = ", ".join(map(str, _FLASH_HEAD_DIMS))
            return f"it has head dims {listed}, the same for keys and values; got {head_dim} and {value_dim}"
        limited = refused_by(request, _major_of(request.device))
        if limited is not None:
            return limited
        if request.score_mod is not None and not isinstance(request.score_mod, SoftCap):
            return "of score mods it has softcap: with others its gradients are wrong"
        return _refused_mask(request) or nondeterministic(request)

    def refuse_in_graph(self, request: Request) -> str | None:
        if is_exporting():
            return "an exported program may run where there is no flash-attn-4"
        return flash_mask.refused_in_graph(request.mask)

    def block_size(self, request: Request) -> tuple[int, int]:
        return block_size(_major_of(request.device))

    def passed_over(self) -> str:
        return (
            f"triton is faster with up to {SHORT} queries, and where batch x heads x queries x keys x head dim is less than "
            f"{LITTLE // 10**9} thousand million; from {LONG} queries on, without documents, half of that"
        )

    def run(self, request: Request) -> Attended:
        """Attention by FlashAttention 4, with the sparse tables always in use."""
        query, key, value = map(_unexpanded, (request.query, request.key, request.value))
        request = request._replace(query=query, key=key, value=value)
        if torch.compiler.is_dynamo_compiling():
            return self._run_in_graph(request)
        return fused(request, self._blocks(request), self._options(request))

    def _run_in_graph(self, request: Request) -> Attended:
        held = [tensor for tensor in captures.tensors(request.mask_mod) if tensor.numel()]
        if held and request.needs_gradients:
            query, key, value = (
                until_backward(tensor, held) if tensor.requires_grad else tensor
                for tensor in (request.query, request.key, request.value)
            )
            request = request._replace(query=query, key=key, value=value)
        out, lse = fused(request, self._blocks(request), self._options(request))
        return Attended(until_forward(out, held) if held else out, lse)

    def prepare(self, request: Request) -> Prepared:
        return prepared(request, self._blocks(request), self._options(request), _unexpanded)

    def _blocks(self, request: Request) -> BlockMask:
        blocks = blocks_of(request)
        mask_mod = for_flash(blocks.mask_mod, request.query.shape[0], request.query.device)
        return blocks if mask_mod is blocks.mask_mod else rebuilt(blocks, mask_mod=mask_mod)

    def _options(self, request: Request) -> dict[str, Any]:
        return {**(request.kernel_options or {}), "BACKEND": "FLASH"}
