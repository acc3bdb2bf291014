"""A training step on packed sequences, and the same step on padded ones: the loss and the gradients are equal.

    python examples/packed_training.py

The collator makes both batches of the same sequences. Packed, every position is a token; padded, the mask hides the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import maskloom as loom
from maskloom.batches import Batch, Collator

WORDS, WIDTH, HEADS = 50, 64, 4


class Model(nn.Module):
    """One layer of attention, and a prediction of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.attention = loom.MultiheadFlexAttention(WIDTH, WIDTH, HEADS, rotary=loom.nn.Rotary(WIDTH // HEADS))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, L, WORDS). Positions begin anew in each document, and the mask keeps documents apart."""
        x = self.embedding(batch.inputs)
        return self.head(x + self.attention(x, batch.blocks, positions=batch.positions).out)


def step(model: Model, optimiser: torch.optim.Optimizer, batch: Batch) -> tuple[float, list[Tensor]]:
    """One step of the optimiser: the loss of a target, and the gradients."""
    assert batch.targets is not None  # token ids have them, vectors do not
    targets = batch.targets.flatten()  # -100 at padding, and behind the last token of each document
    loss = F.cross_entropy(model(batch).flatten(0, 1), targets, reduction="sum") / (targets != -100).sum()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def main() -> dict[str, tuple[float, list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(WORDS, (length,), generator=generator) for length in (11, 40, 3, 23)]
    found = {}
    for name, collate in (("padded", Collator()), ("packed", Collator(packed=True))):
        torch.manual_seed(1)
        model = Model()
        batch = collate(sequences)
        found[name] = step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), batch)
        real = sum(map(len, sequences)) / batch.inputs.numel()
        print(f"{name}: {tuple(batch.inputs.shape)}, {real:.0%} of positions are tokens, loss {found[name][0]:.5f}")
    return found


if __name__ == "__main__":
    main()
