"""Digests of masks: equal for masks that do the same, different for others."""

import torch

import maskloom as loom
from maskloom.distributed.digest import digest_of


def of(mask):
    return digest_of(loom.as_mask(mask))


def table_of(values):
    table = torch.tensor(values)
    return lambda b, h, q_idx, kv_idx: table[q_idx] >= table[kv_idx]


def test_equal_masks_have_one_digest():
    assert of(loom.causal & loom.lengths([3, 5])) == of(loom.causal & loom.lengths([3, 5]))
    assert of(table_of([1, 2, 3])) == of(table_of([1, 2, 3]))
    assert of(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx) == of(loom.causal)


def test_other_values_are_another_digest_of_tensors():
    first, second = of(loom.causal & loom.lengths([3, 5])), of(loom.causal & loom.lengths([3, 6]))
    assert first.program == second.program
    assert first.tensors != second.tensors
    assert of(table_of([1, 2, 3])).tensors != of(table_of([1, 2, 4])).tensors


def test_other_operations_numbers_shapes_and_dtypes_are_another_digest():
    masks = [
        loom.causal, loom.window(back=3), loom.window(back=4), loom.documents([0, 1, 1]), loom.documents([0, 1, 1, 2]),
        loom.documents(torch.tensor([0, 1, 1], dtype=torch.int32)), loom.everything, loom.nothing, ~loom.causal,
    ]  # fmt: skip
    assert len({of(mask) for mask in masks}) == len(masks)
