"""One run on scalars serves every mask of a structure, and no mask of another."""

import gc
import weakref
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.blocks import construct
from maskloom.core.cache import LRU
from maskloom.program import mask_program, record

Q, K = 200, 300


@pytest.fixture
def runs(monkeypatch):
    """The masks that were run."""
    ran = []
    monkeypatch.setattr(mask_program, "record", lambda mask, *rest: ran.append(mask) or record.record(mask, *rest))
    monkeypatch.setattr(mask_program, "_programs", LRU(256))
    monkeypatch.setattr(construct, "_constants", LRU(0))  # finished block masks are not kept
    return ran


def check(mask):
    ours = loom.create_block_mask(mask, 3, 2, Q, K, "cpu", 32)
    theirs = torch_create_block_mask(mask, 3, 2, Q, K, "cpu", 32)
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_tensors_change_without_a_run(runs):
    for lens in ([3, 70, 150], [200, 1, 0], [5, 5, 5]):
        check(loom.causal & loom.lengths(lens))
    assert len(runs) == 1
    check(loom.lengths([3, 70, 150]) & loom.causal)
    check(loom.causal & loom.lengths([3, 70, 150], [7, 8, 9]))  # another tensor for the keys
    assert len(runs) == 3


def test_numbers_shapes_and_dtypes_are_runs_of_their_own(runs):
    for back in (3, 50, 3):
        check(loom.window(back=back))
    assert len(runs) == 2
    for length in (300, 400):
        check(loom.documents(torch.arange(length) // 70))
        check(loom.documents((torch.arange(length) // 70).int()))
    assert len(runs) == 6
    with pytest.raises(ValueError, match="150 positions"):
        loom.block_mask(loom.documents(torch.arange(150) // 70), Q, K)


def test_functions_are_run_each_time(runs):
    reach = [3]
    mask = loom.causal & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < reach[0])
    check(mask)
    reach[0] = 50
    check(mask)
    assert len(runs) == 2


@loom.masks.mask_dataclass
class Weird(loom.Mask):
    """A mask of something that structure does not look into, or that decides on what its tensor holds."""

    held: Any
    asks: bool = False  # its tensor for numbers, without an operation of torch

    def __call__(self, b, h, q_idx, kv_idx):
        if self.asks:
            return q_idx < self.held.tolist()[0]
        if isinstance(self.held, torch.Tensor):
            return q_idx >= kv_idx if self.held.max() > 3 else q_idx <= kv_idx
        return q_idx < int(self.held[0])


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda numbers: frozenset_like(numbers)])
def test_what_structure_does_not_tell_is_run_each_time(runs, make):
    check(Weird(make([100])))
    check(Weird(make([2])))
    assert len(runs) == 2


def test_numbers_of_a_tensor_are_read_each_time(runs):
    check(Weird(torch.tensor([100]), asks=True))
    check(Weird(torch.tensor([2]), asks=True))
    assert len(runs) == 2


def frozenset_like(numbers):
    return memoryview(bytes(numbers))


TABLE = torch.zeros(K, dtype=torch.bool)


@loom.masks.mask_dataclass
class Outside(loom.Mask):
    """A mask that reads a tensor that it does not hold, in a step, alone, or as its answer."""

    kind: str
    shown: ClassVar[torch.Tensor] = torch.zeros((), dtype=torch.bool)

    def __call__(self, b, h, q_idx, kv_idx):
        if self.kind == "global":
            return TABLE[kv_idx] & (q_idx >= kv_idx)
        return ~self.shown & (q_idx >= kv_idx) if self.kind == "class" else self.shown


@pytest.mark.parametrize("kind", ["global", "class", "answer"])
def test_what_is_not_held_is_read_each_time(runs, kind):
    for n in range(5):
        TABLE.copy_(torch.arange(K) // 40 % 2 == n % 2)
        Outside.shown = torch.tensor(n % 2 == 0)
        check(Outside(kind))
    assert len(runs) == 5 and not mask_program._programs


@loom.masks.mask_dataclass
class Remembering(loom.Mask):
    """A mask that computes with its tensor once."""

    lens: torch.Tensor
    number: bool

    @cached_property
    def half(self):
        return self.lens // 2

    @cached_property
    def most(self):
        return int(self.lens.max())

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < (self.most if self.number else self.half[b])


@pytest.mark.parametrize("number", [False, True])
def test_what_a_mask_remembers_is_its_own(number):
    for lens in ([3, 70, 150], [200, 1, 0], [5, 5, 5]):
        mask = Remembering(torch.tensor(lens), number)
        for _ in range(3):  # before the first, it remembers nothing
            check(mask)


@loom.masks.mask_dataclass
class Scaled(loom.Mask):
    """A mask of floats."""

    table: torch.Tensor
    scale: float

    def __call__(self, b, h, q_idx, kv_idx):
        return (self.table[q_idx] * self.scale).reciprocal() > 0


def test_zeros_of_both_signs_are_told_apart(runs):
    for scale in (0.0, -0.0, 0.0):
        check(Scaled(torch.rand(K) + 0.5, scale))
    assert len(runs) == 2


@loom.masks.mask_dataclass
class Product(loom.Mask):
    """A mask whose product torch.autocast computes with more digits."""

    table: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.table[q_idx].prod() > 0


def test_autocast_is_part_of_the_key(runs):
    for _ in range(3):
        for enabled in (True, False):
            table = torch.where(torch.rand(K, 8) < 0.01, 0.0, 0.05).half()  # 0.05 ** 8 is 0 in half precision
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):  # and half is none that it works with
                check(Product(table))
    assert len(runs) == 2


def test_no_tensor_is_kept_alive(runs):
    lens = torch.tensor([3, 70, 150])
    loom.block_mask(loom.causal & loom.lengths(lens), Q, K)
    gone = weakref.ref(lens)
    del lens
    runs.clear()
    gc.collect()
    assert gone() is None and len(mask_program._programs) == 1


def test_few_are_kept(runs, monkeypatch):
    monkeypatch.setattr(mask_program, "_programs", LRU(2))
    for back in (1, 2, 3, 2, 1):
        loom.block_mask(loom.window(back=back), Q, K)
    assert len(mask_program._programs) == 2 and len(runs) == 4


def test_what_is_run_in_inference_mode_is_kept(runs):
    with torch.inference_mode():
        check(loom.everything & loom.window(back=3))
        loom.block_mask(loom.window(back=3), Q, K)
    loom.block_mask(loom.window(back=3), Q, K)
    assert len(mask_program._programs) == len(runs) == 1


def test_nothing_is_kept_that_does_not_last(runs):
    torch.func.grad(lambda x: (x * loom.block_mask(loom.window(back=5), Q, K).kv_num_blocks.sum()).sum())(torch.ones(3))
    assert not len(mask_program._programs)
