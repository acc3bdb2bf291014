"""Masks whose table reads a kernel gets wrong: which are mended, and that nothing else changes."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends.table_reads import Replayed, with_mended_reads
from maskloom.core import captures
from tests.all_masks import ALL_MASKS, BATCH, HEADS, KV_LEN, Q_LEN

CPU = torch.device("cpu")
H, Q, K = 3, 11, 17


def flags(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.6


BY_HEAD, FLAT, ORDER = flags(H, K), flags(K), torch.randperm(K, generator=torch.Generator().manual_seed(2))
SHIFT = torch.tensor(-4)
ONES, HALVES = torch.ones(K, dtype=torch.int64), torch.full((K,), 0.5)

READS = {
    "a constant": lambda b, h, q, k: BY_HEAD[-1, k],
    "a difference": lambda b, h, q, k: BY_HEAD[h, q - k],
    "two": lambda b, h, q, k: BY_HEAD[-2, q - k] | BY_HEAD[h - H, k],
    "entries": lambda b, h, q, k: FLAT[ORDER[k] - 9],
    "a tensor's number": lambda b, h, q, k: FLAT[k // 2 + SHIFT],
    "clamped too low": lambda b, h, q, k: FLAT[(q - k).clamp(-3, 5)],
    "a choice": lambda b, h, q, k: FLAT[torch.where(k > q, k, q - 11)],
    "a shift": lambda b, h, q, k: FLAT[(ONES[k] >> 1) - 1],
    "a rounding": lambda b, h, q, k: FLAT[(HALVES[k] * 1.0).long() - 1],
    "unknown": lambda b, h, q, k: FLAT[torch.bitwise_not(k)],
}

FINE = {
    "a constant": lambda b, h, q, k: BY_HEAD[1, k],
    "a sum": lambda b, h, q, k: FLAT[(q + 2 * k) // 4],
    "clamped": lambda b, h, q, k: FLAT[(q - k).clamp(0, 5)] | FLAT[(k - q).clamp(min=0)],
    "a distance": lambda b, h, q, k: FLAT[(q - k).abs()],
    "a remainder": lambda b, h, q, k: FLAT[(q - k) % 7],
    "flags": lambda b, h, q, k: FLAT[FLAT[k].long() + (q > k).int()],
    "greater of two": lambda b, h, q, k: FLAT[torch.maximum(q - k, k - q)] | FLAT[torch.where(q > k, q, k)],
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_read_that_may_be_negative_is_mended(name, narrow):
    mask = loom.as_mask(READS[name])
    mended = with_mended_reads(mask, CPU, narrow=narrow)
    assert isinstance(mended, Replayed)
    sizes = {"batch": 2, "heads": H}
    torch.testing.assert_close(mended.dense(Q, K, **sizes), mask.dense(Q, K, **sizes))


@pytest.mark.parametrize("name", FINE)
def test_one_that_cannot_be_is_left_alone(name):
    mask = loom.as_mask(FINE[name])
    if name == "greater of two":  # of two differences nothing is known: more is mended than need be
        assert isinstance(with_mended_reads(mask, CPU), Replayed)
    else:
        assert with_mended_reads(mask, CPU) is mask


def test_indices_of_64_bits_are_made_narrow():
    mask = loom.as_mask(lambda b, h, q, k: FLAT[ORDER[k].clamp(min=0)])
    assert with_mended_reads(mask, CPU) is mask
    mended = with_mended_reads(mask, CPU, narrow=True)
    assert isinstance(mended, Replayed)
    torch.testing.assert_close(mended.dense(Q, K), mask.dense(Q, K))


def test_mended_masks_of_one_structure_are_one_kind():
    made = [
        with_mended_reads(loom.as_mask(lambda b, h, q, k, table=table: table[q - k]), CPU) for table in (FLAT, ~FLAT)
    ]
    assert captures.structure(made[0], numbers=True) == captures.structure(made[1], numbers=True)
    other = with_mended_reads(loom.as_mask(lambda b, h, q, k: FLAT[q - k - 1]), CPU)
    assert captures.structure(made[0], numbers=False) != captures.structure(other, numbers=False)
    assert not captures.may_change(other)


def test_a_mended_mask_is_made_once():
    mask = loom.masks.per_head(
        [loom.causal, loom.as_mask(loom.masks.shifted(loom.masks.from_dense(flags(Q, K)), kv_offset=SHIFT))]
    )
    first = with_mended_reads(mask, CPU, narrow=True)
    assert with_mended_reads(mask, CPU, narrow=True) is first


@pytest.mark.parametrize("name", ALL_MASKS)
def test_every_mask_means_the_same(name):
    mask = ALL_MASKS[name]()
    mended = loom.as_mask(with_mended_reads(mask, CPU, narrow=True))
    sizes = {"batch": BATCH, "heads": HEADS}
    torch.testing.assert_close(mended.dense(Q_LEN, KV_LEN, **sizes), mask.dense(Q_LEN, KV_LEN, **sizes))
