"""Which versions of torch and flash-attn-4, on which GPUs, refuse what, and that newer ones do what they can."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends import flash_limits
from maskloom.attention.backends.flash_limits import LIMITS, block_size, reads_scalars, refused_by, version
from maskloom.attention.backends.flash_mask import refused
from maskloom.attention.request import Request

HOPPER, BLACKWELL = 9, 10
Q, K = 150, 300


@pytest.fixture
def versions(monkeypatch):
    def set_to(of_torch, of_flash):
        monkeypatch.setattr(flash_limits, "_TORCH", version(of_torch))
        monkeypatch.setattr(flash_limits, "_FLASH", version(of_flash))

    return set_to


def request(*, learns=False, wants_lse=False, mask=None):
    query, key, value = (
        torch.zeros(2, 3, length, 64, dtype=torch.bfloat16, requires_grad=learns) for length in (Q, K, K)
    )
    return Request(query, key, value, mask, wants_lse=wants_lse)


RACE, BROKEN = "one backward in a hundred to a thousand is garbage", "gives wrong results on Hopper"
NO_GRADIENT, OTHER_BASE = "has no gradient before torch 2.14", "to another base"


@pytest.mark.parametrize(
    ("of_torch", "of_flash", "gpu", "asked", "words"),
    [
        ("2.11.0", "4.0.0b4", HOPPER, {"learns": True}, None),
        ("2.11.0", "4.0.0b5", HOPPER, {"learns": True}, RACE),
        ("2.14.1", "4.0.0b25", HOPPER, {"learns": True}, RACE),
        ("2.11.0", "4.0.0b25", HOPPER, {}, None),
        ("2.11.0", "4.0.0b25", BLACKWELL, {"learns": True}, None),
        ("2.11.0", "4.0.0b26", HOPPER, {"learns": True}, None),
        ("2.11.0", "4.0.0b36", HOPPER, {"learns": True}, None),
        ("2.11.0", "4.0.0", HOPPER, {"learns": True}, None),
        ("2.11.0", "4.0.0b13", HOPPER, {}, BROKEN),
        ("2.11.0", "4.0.0b14", HOPPER, {}, None),
        ("2.12.1", "4.0.0b36", HOPPER, {"wants_lse": True}, OTHER_BASE),
        ("2.13.0", "4.0.0b36", HOPPER, {"wants_lse": True}, None),
        ("2.13.0", "4.0.0b36", HOPPER, {"wants_lse": True, "learns": True}, NO_GRADIENT),
        ("2.14.0", "4.0.0b36", HOPPER, {"wants_lse": True, "learns": True}, None),
        ("2.14.0", "4.0.0b4", HOPPER, {"wants_lse": True, "learns": True}, NO_GRADIENT),
    ],
)  # fmt: skip
def test_what_versions_refuse(versions, of_torch, of_flash, gpu, asked, words):
    versions(of_torch, of_flash)
    found = refused_by(request(**asked), gpu)
    assert (found is None) if words is None else words in found


def test_a_row_that_was_read_says_so_with_its_source(versions):
    versions("2.11.0", "4.0.0b20")
    assert refused_by(request(learns=True), HOPPER).endswith("(flash-attention#2756; read, not run)")
    assert all(limit.source and limit.where and limit.words for limit in LIMITS)
    ran = [limit for limit in LIMITS if limit.ran]
    assert not any("not run" in limit.words for limit in ran)


def test_block_masks_by_gpu_and_version(versions):
    versions("2.13.0", "4.0.0b36")
    blocks = {size: loom.block_mask(loom.causal, Q, K, block_size=size) for size in ((128, 128), (256, 128))}
    whole = loom.create_block_mask(loom.causal, None, None, Q, K, device="cpu", separate_full_blocks=False)
    assert refused_by(request(mask=blocks[128, 128]), HOPPER) is None
    assert refused_by(request(mask=blocks[256, 128]), HOPPER) == "it needs block size (128, 128)"
    assert refused_by(request(mask=blocks[256, 128]), BLACKWELL) is None
    assert "(256, 128) (pytorch#195563; read, not run)" in refused_by(request(mask=blocks[128, 128]), BLACKWELL)
    assert (
        refused_by(request(mask=whole), HOPPER) == "it needs a block mask with full tables (separate_full_blocks=True)"
    )
    versions("2.14.0", "4.0.0b36")
    assert refused_by(request(mask=whole), HOPPER) is None
    assert (block_size(HOPPER), block_size(BLACKWELL)) == ((128, 128), (256, 128))


def test_numbers_in_tensors_are_read_by_newer_versions(versions):
    number = torch.tensor(3)
    mask = loom.as_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx + number)
    versions("2.13.0", "4.0.0b36")
    assert not reads_scalars() and "a tensor without dimensions" in refused(mask, torch.device("cpu"))
    versions("2.14.0", "4.0.0b16")
    assert not reads_scalars()
    versions("2.14.0", "4.0.0b17")
    assert reads_scalars() and refused(mask, torch.device("cpu")) is None
    assert "a tensor without dimensions" in refused(
        mask, torch.device("meta")
    )  # it lies on another device than the attention


def test_versions_are_ordered():
    order = ["2.11.0+cu130", "2.13.0", "2.14.1", "4.0.0b4", "4.0.0b13", "4.0.0b36", "4.0.0", "4.0.1", "nobody knows"]
    assert sorted(order, key=version) == order
    assert version("2.13.0a0+git1234") == version("2.13")
