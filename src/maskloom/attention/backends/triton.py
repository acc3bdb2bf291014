"""FlexAttention with Triton."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.backends.base import HALF, Backend, Prepared, blocks_of
from maskloom.attention.backends.flex import fused, prepared
from maskloom.attention.backends.triton_scores import no_backward, no_forward
from maskloom.attention.dropout.passes import IN_TWO_PASSES, in_two_passes
from maskloom.attention.request import Attended, Request
from maskloom.core import captures
from maskloom.masks.algebra import Mask
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod

_DTYPES = (torch.float32, *HALF)
_TILE = 128  # where it divides both lengths, torch takes it that tiles fit them


def _tiles_fit(request: Request, blocks: BlockMask) -> bool | None:
    """Whether tiles fit both lengths, so that the kernel need not look where they end; None where torch finds it out rightly.

    torch finds it out for lengths that are constants of the graph, not for dynamic ones, and by multiples of 128 alone:
    a larger block may end behind them, where the kernel would read keys that are not there.
    """
    larger = any(_TILE % size for size in blocks.BLOCK_SIZE)
    if torch.compiler.is_dynamo_compiling() or isinstance(
        request.key.shape[2], torch.SymInt
    ):  # they are not known then
        return False if larger else None
    lengths = request.sizes[2:]
    fit = all(length % _TILE == 0 == length % size for length, size in zip(lengths, blocks.BLOCK_SIZE, strict=True))
    return True if fit else False if larger else None


def _reads_tables(score_mod: ScoreMod | None) -> bool:
    """Whether it reads a tensor of two dimensions or more. While torch compiles, it is known of those in fields alone."""
    if score_mod is None:
        return False
    of_fields = torch.compiler.is_compiling()
    found = captures.tensors_of_fields(score_mod) if of_fields else captures.tensors(score_mod)
    return any(tensor.ndim > 1 for tensor in found)


_CROWDED = 64
"""The head dim, in half types, of which torch's own tile is 128 × 128: all registers of its four warps."""

_NARROW = 64
"""Keys in a tile that leave room for what is read at them."""

_OF_TILES = ("BLOCK_M", "BLOCK_N", "fwd_BLOCK_M", "fwd_BLOCK_N")


def _is_crowded(request: Request, blocks: BlockMask, options: dict[str, Any]) -> bool:
    """Whether the forward's tile, as torch chooses it, has no room for the tables that are read at its keys.

    Compiled for sm_90 by Triton 3.6, such a kernel spills its registers; with half as many keys in a tile it spills few or none.
    """
    is_own = any(name in options for name in _OF_TILES)
    if (
        is_own
        or request.query.shape[3] != _CROWDED
        or request.query.dtype not in HALF
        or blocks.BLOCK_SIZE[1] % _NARROW
    ):
        return False
    return _reads_tables(request.score_mod) or _reads_at_keys(request)


def _reads_at_keys(request: Request) -> bool:
    """Whether the mask reads a table at keys. While torch compiles, a Mask is taken to do so with any that is not one of rows."""
    mask_mod = request.mask_mod
    if mask_mod is None:
        return False
    if torch.compiler.is_dynamo_compiling():
        return isinstance(mask_mod, Mask) and _holds_tables(mask_mod, request.query.shape[0])
    return "kv_idx" in dependence_on(mask_mod, request.query.device).read_at


def _holds_tables(mask_mod: MaskMod, batch: int) -> bool:
    """Whether a mask's fields hold a tensor that is not of one number, or one for each of the batch rows."""
    held = captures.tensors_of_fields(mask_mod)
    return any(table.ndim > 1 or (table.ndim == 1 and table.shape[0] != batch) for table in held)


class Triton(Backend):
    """FlexAttention with Triton."""

    name = "triton"
    what = "FlexAttention with Triton; skips hidden tiles"
    where = "GPUs otherwise"
    why = "FlexAttention, compiled: it can skip hidden tiles"
    skipped = "hidden tiles"
    by_tiles = True
    takes_options = True
    hides_scores = True
    drops = IN_TWO_PASSES

    def refuse(self, request: Request) -> str | None:
        if request.device.type == "cpu":
            return "it needs a GPU; the tensors are on the CPU (sdpa and reference run there)"
        mask_mod = request.mask.mask_mod if isinstance(request.mask, BlockMask) else request.mask
        if mask_mod is not None and not torch.compiler.is_dynamo_compiling() and captures.facts_of(mask_mod).searches:
            return "it has no room on the chip for the search of from_edges; from_dense(mask.dense(...)) says the same in a table"
        if (request.kernel_options or {}).get("BACKEND") == "FLASH":
            return "kernel_options ask for FLASH, which is backend 'flash'"
        if request.query.dtype not in _DTYPES:
            return f"it runs in float32, bfloat16 and float16; the tensors are {request.query.dtype}"
        if request.deterministic and request.may_train_score_mod:
            return "the gradient of a tensor that score_mod reads is summed in no fixed order"
        if request.score_mod is None or torch.compiler.is_dynamo_compiling():
            return None
        wrong = no_forward(request.score_mod, request.query.device)
        if wrong is None and request.needs_gradients:
            return no_backward(request.score_mod, request.query.device)
        return wrong

    def run(self, request: Request) -> Attended:
        """Attention by the Triton kernel."""
        return in_two_passes(self._run, request)

    def _run(self, request: Request) -> Attended:
        return fused(request, blocks_of(request), self._options(request))

    def prepare(self, request: Request) -> Prepared:
        return prepared(request, blocks_of(request), self._options(request))

    def _options(self, request: Request) -> dict[str, Any]:
        """torch's kernel_options for this."""
        options = dict(request.kernel_options or {})
        if _reads_tables(request.score_mod):
            # the kernel buffers a tile of what score_mod reads for each stage: three, its default, are more than there is
            options.setdefault("num_stages", 2)
        blocks = blocks_of(request)
        if _is_crowded(request, blocks, options):
            options["fwd_BLOCK_N"] = _NARROW
        fit = _tiles_fit(request, blocks)
        if fit is not None:
            options.setdefault("IS_DIVISIBLE", fit)
        return options
