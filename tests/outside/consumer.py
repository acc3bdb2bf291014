"""A user's program: type checkers read it beside the installed wheel, and say what the public functions return."""

from typing import assert_type

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask

import maskloom as loom


def masks() -> loom.Mask:
    mask = loom.causal & loom.lengths([5, 2]) | ~loom.window(back=2, ahead=1) ^ loom.sinks(1)
    assert_type(mask.dense(5, 5, batch=2), Tensor)
    assert_type(loom.parse("causal & window(back=2)"), loom.Mask)
    assert_type(loom.masks.simplify(loom.as_mask(only_even)), loom.Mask)
    return loom.and_masks(mask, loom.documents(offsets=[0, 2, 5]), loom.masks.chunked(3))


def only_even(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return kv_idx % 2 == 0


def blocks(mask: loom.Mask) -> BlockMask:
    found = loom.block_mask(mask, 5, 5)
    assert_type(loom.blocks.density(found), float)
    assert_type(loom.blocks.to_device(found, "cpu"), BlockMask)
    return assert_type(loom.create_block_mask(only_even, None, None, 5, 5, device="cpu"), BlockMask)


def attention(query: Tensor, mask: loom.Mask) -> Tensor:
    out = loom.attend(query, query, query, mask, scale=0.5, kernel_options={"BLOCK_M": 64})
    both = loom.attend(query, query, query, mask, return_aux=AuxRequest(lse=True))
    assert_type(both, tuple[Tensor, AuxOutput])
    assert_type(loom.explain(query, query, query, mask, compiled=True).reason, str)
    assert_type(loom.attention_weights(query, query, mask), Tensor)
    reference, lse = loom.reference(query, query, query, mask, score_mod=loom.scores.softcap(50.0))
    assert_type(loom.merge(reference, lse, out, lse), tuple[Tensor, Tensor])
    return assert_type(out, Tensor)


def modules(x: Tensor, mask: loom.Mask) -> Tensor:
    attention = loom.MultiheadFlexAttention(7, 6, 3, rotary=loom.nn.Rotary(2))
    out, queries, _ = attention(x, mask)
    assert_type(attention(x, mask, need_weights="mean").weights, Tensor)
    assert_type(loom.nn.Rotary(2)(queries), Tensor)
    held = loom.nn.Holder(mask)()
    assert_type(held.dense(5, 5, batch=2), Tensor)
    return assert_type(out, Tensor)


def batches() -> list[list[int]]:
    assert_type(loom.batches.offsets_from_lengths([3, 2]), Tensor)
    packed = loom.batches.pack(torch.randn(2, 3, 5), [3, 2])
    assert_type(loom.batches.unpack(packed), Tensor)
    sampler = loom.batches.TokenBudgetSampler([3, 2, 5], budget=5)
    assert_type(sampler.state_dict(), dict[str, int])
    return list(sampler)


if __name__ == "__main__":
    mask = masks()
    blocks(mask)
    attention(torch.randn(2, 3, 5, 7), mask)
    modules(torch.randn(2, 5, 7), mask)
    batches()
