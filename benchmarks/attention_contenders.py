"""Ways to attend on a padded batch: `maskloom.attend`, and what people do today. Each with the layout it takes."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from attention_cases import Batch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import maskloom as loom
from maskloom.masks.algebra import Mask

BACKENDS = ("triton", "flash", "auto") if importlib.util.find_spec("flash_attn") else ("triton", "auto")


@dataclass(frozen=True)
class Layout:
    """Where the positions of a batch lie.

    Attributes:
        arrange: from (B, H, N, D) to the layout.
        real: from the layout to the real positions, (T, H, D).
    """

    arrange: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]


def padded(batch: Batch) -> Layout:
    """As they are: (B, H, N, D)."""
    return Layout(lambda tensor: tensor, batch.real)


def packed(batch: Batch) -> Layout:
    """The real ones in one row: (1, H, T, D)."""
    return Layout(
        lambda tensor: batch.real(tensor).transpose(0, 1)[None].contiguous(), lambda tensor: tensor[0].transpose(0, 1)
    )


def unpadded(batch: Batch) -> Layout:
    """The real ones, heads inside: (T, H, D), as kernels for variable lengths take them."""
    return Layout(batch.real, lambda tensor: tensor)


@dataclass(frozen=True)
class Contender:
    """A way to attend.

    Attributes:
        run: output from query, key and value.
        chosen: which backend `maskloom.attend` takes for them, where it has the choice.
    """

    name: str
    run: Callable[..., Tensor]
    layout: Layout
    chosen: Callable[..., str] = lambda *inputs: ""


def attend(name: str, mask: Mask | BlockMask, layout: Layout, **options: Any) -> Contender:
    """Ours, with options of `maskloom.attend`."""
    run = partial(loom.attend, mask=mask, **options)
    return Contender(name, run, layout, lambda *inputs: loom.explain(*inputs, mask).backend)


def each_backend(mask: Mask, layout: Layout, *others: str) -> list[Contender]:
    """Ours, on each backend that runs every mask, on ``others``, and left to choose."""
    backends = [backend for backend in (*BACKENDS, *others) if backend != "auto"]
    ways = {backend: partial(loom.attend, mask=mask, backend=backend) for backend in backends}
    forced = [Contender(f"attend, {backend}", run, layout) for backend, run in ways.items()]
    return [*forced, attend("attend, auto", mask, layout)]


def plain(mask: Mask, batch: Batch) -> list[Contender]:
    """torch's own FlexAttention, compiled, with the block mask that `maskloom.attend` makes: what does `attend` add?"""
    length, contenders = batch.query.shape[2], []
    blocks = loom.block_mask(mask, length, length, device=batch.query.device)
    for name in BACKENDS[:-1]:
        run = partial(_compiled_flex(name), block_mask=blocks)
        contenders.append(Contender(f"flex_attention, {name}", run, padded(batch)))
    return contenders


@functools.cache  # one for all shapes
def _compiled_flex(name: str) -> Callable[..., Tensor]:
    def flex_on_triton(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask) -> Any:
        return flex_attention(query, key, value, block_mask=block_mask)

    def flex_on_flash(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask) -> Any:
        return flex_attention(query, key, value, block_mask=block_mask, kernel_options={"BACKEND": "FLASH"})

    # two functions: the graphs of one are tried one after the other at every call
    return torch.compile(flex_on_flash if name == "flash" else flex_on_triton, dynamic=True, fullgraph=True)


def dense_sdpa(batch: Batch, mask: Mask) -> Contender:
    """What people do: a table that hides padded keys. Each query sees itself, so that padded ones see something."""
    length = batch.query.shape[2]
    pads = loom.batches.pads_from_lengths(batch.lens, length)
    table = (mask & loom.key_padding(pads) | loom.window(back=0)).dense(length, length)
    return Contender("sdpa, dense mask", partial(F.scaled_dot_product_attention, attn_mask=table), padded(batch))


def varlen(batch: Batch, back: int = -1) -> Contender:
    """torch's FlashAttention 2 for packed sequences: causal, ``back`` keys before the query, or all of them."""
    offsets, longest = loom.batches.offsets_from_lengths(batch.lens), int(batch.lens.max())

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # not in every torch

        return varlen_attn(query, key, value, offsets, offsets, longest, longest, window_size=(back, 0))

    return Contender("torch varlen, packed", run, unpadded(batch))


def cudnn(batch: Batch) -> Contender:
    """cuDNN's causal kernel, which knows no padding."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    return Contender("sdpa, cuDNN", run, padded(batch))
