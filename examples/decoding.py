"""Three prompts of unequal length are continued in one batch, and each as if it were alone.

    python examples/decoding.py

A `KVCache` for each layer holds keys and values. The weights are random, so the text means nothing; what is compared is that a
prompt gets the same tokens in the batch and alone.
"""

import torch
from torch import Tensor, nn

import maskloom as loom

WORDS, WIDTH, HEADS, KV_HEADS = 50, 64, 4, 2
D_HEAD = WIDTH // HEADS


class Decoder(nn.Module):
    """Two layers of attention, and a prediction of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        rotary = loom.nn.Rotary(D_HEAD)
        self.layers = nn.ModuleList(
            loom.MultiheadFlexAttention(WIDTH, WIDTH, HEADS, n_kv_heads=KV_HEADS, rotary=rotary) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor, caches: list[loom.nn.KVCache]) -> Tensor:
        """Tokens (B, L) to logits (B, L, WORDS)."""
        x = self.embedding(tokens)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = x + layer(x, loom.causal, cache=cache).out  # positions and padding are the cache's affair
        return self.head(x)


@torch.no_grad()
def generate(model: Decoder, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """Greedy: the ``steps`` tokens that follow each prompt."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])  # padded at the right
    caches = [
        loom.nn.KVCache(len(prompts), KV_HEADS, size=longest + steps, d_head=D_HEAD, lengths=lengths)
        for _ in model.layers
    ]
    last = model(tokens, caches)[torch.arange(len(prompts)), lengths - 1]  # behind the last real token of each row
    written = []
    for _ in range(steps):
        written.append(last.argmax(-1, keepdim=True))
        last = model(written[-1], caches)[:, -1]
    return torch.cat(written, 1).tolist()


def main(steps: int = 8) -> list[list[int]]:
    torch.manual_seed(0)
    model = Decoder()
    prompts = [[7, 4, 9, 2, 5], [3, 8], [11, 6, 1]]
    together = generate(model, prompts, steps)
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = generate(model, [prompt], steps)
        print(prompt, "->", found, "as alone" if found == alone else f"but alone {alone}")
    return together


if __name__ == "__main__":
    main()
