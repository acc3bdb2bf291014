"""One long row of packed documents, trained by several processes that share it.

    torchrun --nproc-per-node 2 examples/context_parallel.py
    torchrun --nproc-per-node 3 examples/context_parallel.py --strategy gather --length 1009

Each process holds some rows of the sequence. At the end the losses are compared with those of one process that holds them all:
they are the same to rounding.
"""

import argparse
import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import maskloom as loom

WORDS, WIDTH, HEADS, KV_HEADS = 50, 48, 6, 2


class Decoder(nn.Module):
    """Two layers of attention, and a prediction of the next token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        rotary = loom.nn.Rotary(WIDTH // HEADS)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            loom.MultiheadFlexAttention(WIDTH, WIDTH, HEADS, n_kv_heads=KV_HEADS, qk_norm=True, rotary=rotary)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor, mask: object, positions: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x, mask, positions=positions).out  # a mask, or a plan: nothing else changes
        return self.head(x)


def train(tokens: Tensor, labels: Tensor, mask: object, positions: Tensor, steps: int) -> list[float]:
    """The losses of some steps. Gradients of processes are summed, and divided by the number of all labels."""
    model = Decoder()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    count = torch.tensor(float((labels != -100).sum()))
    losses = []
    shares = isinstance(mask, loom.distributed.Plan)
    if shares:
        dist.all_reduce(count)
    for _ in range(steps):
        scores = model(tokens, mask, positions)
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / count
        optimiser.zero_grad()
        loss.backward()
        if shares:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            dist.all_reduce(loss.detach())
        optimiser.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train both ways, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--strategy", default="auto")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("cp",))

    length, offsets = arguments.length, [0, arguments.length // 3, arguments.length * 3 // 4, arguments.length]
    tokens = torch.randint(WORDS, (1, length), generator=torch.Generator().manual_seed(1))
    mask = loom.causal & loom.documents(offsets=offsets)
    positions = torch.cat([torch.arange(end - first) for first, end in itertools.pairwise(offsets)])
    labels = torch.cat([tokens[:, 1:], tokens.new_full((1, 1), -100)], 1)  # shifted before they are sharded
    labels[:, [end - 1 for end in offsets[1:]]] = -100  # the last token of a document predicts nothing

    plan = loom.distributed.plan(mask, length, mesh["cp"], heads=(HEADS, KV_HEADS), strategy=arguments.strategy)
    shared = train(
        plan.shard(tokens, 1), plan.shard(labels, 1, fill=-100), plan, plan.shard(positions, 0), arguments.steps
    )
    alone = train(tokens, labels, mask, positions, arguments.steps)
    if dist.get_rank() == 0:
        print(plan)
        print("losses, shared:", *(f"{loss:.5f}" for loss in shared))
        print("losses, alone: ", *(f"{loss:.5f}" for loss in alone))
    torch.testing.assert_close(torch.tensor(shared), torch.tensor(alone), rtol=1e-4, atol=1e-4)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
