"""Batches that workers build, pinned and moved to a GPU without waiting."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import maskloom as loom
from maskloom.batches import Collator, TokenBudgetSampler

LENGTHS = [300, 41, 977, 5, 512, 128, 700, 64]


class Rows(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return [7 * index + place for place in range(LENGTHS[index])]


def batches(packed, start, mask=loom.causal):
    sampler = TokenBudgetSampler(LENGTHS, 1100, packed=packed)
    return sampler.consume(
        DataLoader(
            Rows(), batch_sampler=sampler, collate_fn=Collator(mask, packed=packed), num_workers=2,
            multiprocessing_context=start, pin_memory=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_batches_come_pinned_and_move_without_a_wait(packed, start):
    torch.zeros(1, device="cuda")  # a worker that is forked after this cannot use CUDA
    for batch in batches(packed, start):
        held = [one for one in vars(batch).values() if isinstance(one, torch.Tensor)]
        assert all(one.is_pinned() for one in [*held, batch.blocks.kv_indices])
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            moved = batch.to("cuda", non_blocking=True)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        assert moved.inputs.is_cuda and moved.blocks.kv_indices.is_cuda
        assert torch.equal(moved.targets.cpu(), batch.targets)
        expected = loom.block_mask(batch.mask, *batch.inputs.shape[1:] * 2, device="cpu")
        assert torch.equal(moved.blocks.kv_num_blocks.cpu(), expected.kv_num_blocks)


@pytest.mark.parametrize("mask", [loom.causal, loom.causal | loom.prefix(9)], ids=repr)
def test_packed_loss_is_padded_loss(mask):
    torch.manual_seed(0)
    found, tiny = [], Model().cuda()
    for packed in (False, True):
        loss, tokens = torch.zeros((), device="cuda", dtype=torch.float64), 0
        tiny.zero_grad()
        for batch in batches(packed, "fork", mask):
            batch = batch.to("cuda", non_blocking=True)
            scores = tiny(batch.inputs % 101, batch.blocks, batch.positions)
            one = cross_entropy(scores.flatten(0, 1), batch.targets.flatten() % 101, reduction="none")
            one = (one * (batch.targets.flatten() != -100)).double().sum()
            one.backward()
            loss, tokens = loss + one.detach(), tokens + int((batch.targets != -100).sum())
        found.append((tokens, loss / tokens, tiny.embed.weight.grad / tokens))
    assert found[0][0] == found[1][0] == sum(LENGTHS) - len(LENGTHS)
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-3, atol=1e-5)


class Model(torch.nn.Module):
    """A language model of one layer with learned positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(101, 64), torch.nn.Embedding(1024, 64)
        self.attention = loom.MultiheadFlexAttention(64, 128, 4)
        self.head = torch.nn.Linear(128, 101)

    def forward(self, ids, mask, positions):
        return self.head(self.attention(self.embed(ids) + self.place(positions), mask).out)
