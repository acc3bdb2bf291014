"""Tensors seen as wider words."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from maskloom.batches.wide import EIGHT, SIXTEEN, fits

BATCH = torch.randn(3, 8, 32)


@pytest.mark.parametrize("word", [EIGHT, SIXTEEN])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.bool, torch.int64])
def test_what_fits_can_be_viewed(word, dtype):
    for tensor in (BATCH, BATCH[:, ::2], BATCH[1:, 2:, 16:], BATCH.transpose(0, 1), torch.ones(16)):
        tensor = tensor.to(dtype)
        assert fits(tensor, word)
        assert torch.equal(tensor.view(word).view(dtype), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        BATCH[..., ::2],
        BATCH[..., 1:],
        BATCH[..., :31],
        BATCH.transpose(1, 2),
        torch.randn(4, 5)[:, :4],
        torch.tensor(1.0),
        torch._neg_view(BATCH),
        torch.ones(8, dtype=torch.complex64).conj(),
    ],
)
def test_what_does_not_fit(tensor):
    assert not fits(tensor, SIXTEEN)


def test_memory_that_begins_between_words():
    memory = bytearray(16 * 9)
    aligned, between = (torch.frombuffer(memory, dtype=torch.float32, offset=at, count=32) for at in (0, 4))
    assert between.storage_offset() == 0 and not fits(between, SIXTEEN)
    assert fits(aligned, EIGHT) == (aligned.data_ptr() % 8 == 0)


def test_only_plain_tensors_have_words():
    with FakeTensorMode():
        assert not fits(torch.ones(16), SIXTEEN)
    assert not torch.func.vmap(lambda row: torch.tensor(fits(row, SIXTEEN)))(BATCH).any()
    assert fits(torch.nn.Parameter(torch.ones(16)), SIXTEEN)
