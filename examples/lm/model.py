"""A small decoder: pre-norm, rotary, grouped queries, SwiGLU, attention by `MultiheadFlexAttention`; and its sampling."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

import maskloom as loom


@dataclass(frozen=True)
class ModelConfig:
    """What a model is made from; checkpoints carry it."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.n_heads) or self.n_heads % self.n_kv_heads:
            raise SystemExit(
                "--d-model is a multiple of 2 x --heads, and --heads of --kv-heads; "
                f"got {self.d_model}, {self.n_heads} and {self.n_kv_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise SystemExit(f"--dropout is from 0 to below 1; got {self.dropout:g}")


class Block(nn.Module):
    """Attention and SwiGLU (Shazeer 2020, arXiv 2002.05202), each after a norm and beside a residual."""

    def __init__(self, config: ModelConfig, rotary: loom.nn.Rotary) -> None:
        super().__init__()
        width = config.d_model
        hidden = -(-8 * width // 3 // 64) * 64
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = loom.MultiheadFlexAttention(
            width, width, config.n_heads, n_kv_heads=config.n_kv_heads, rotary=rotary, qk_norm=True, out_bias=False,
            dropout=config.dropout,
        )  # fmt: skip
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, **options).out
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Token ids (B, L) to logits (B, L, vocabulary)."""

    def __init__(self, config: ModelConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config, self.recompute = config, recompute
        rotary = loom.nn.Rotary(config.d_model // config.n_heads)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList([Block(config, rotary) for _ in range(config.n_layers)])
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:  # what is added to the residual is smaller (GPT-2)
                is_added = name.endswith(("down.weight", "out_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.n_layers) ** 0.5 if is_added else 0.02)

    def forward(self, tokens: Tensor, mask: Any, **options: Any) -> Tensor:
        """Logits for the token behind each.

        Args:
            tokens: int64 (B, L).
            mask: what `MultiheadFlexAttention` takes; with caches, of true positions.
            options: ``positions`` and other options of that module's call, and ``caches``, one for each block.
        """
        x = self.embedding(tokens)
        caches = options.pop("caches", None) or [None] * len(self.blocks)
        for block, cache in zip(self.blocks, caches, strict=True):
            given = options if cache is None else {**options, "cache": cache}
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, given, use_reentrant=False)
            else:
                x = block(x, mask, given)
        return self.head(self.norm(x))


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, scales of norms do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]


@torch.no_grad()
def generate(
    model: Decoder, prompts: list[Tensor], count: int, *, end: int, temperature: float = 0.0, seed: int = 0
) -> list[Tensor]:
    """Continue prompts of unequal length together, each as it would be alone.

    Args:
        prompts: int64 (length,) of each, at least 1.
        count: the most tokens that are written for each.
        end: the token that ends a text.
        temperature: 0 takes the likeliest token. Otherwise each prompt has a generator of its own, of the same seed.

    Returns:
        int64 (written,) for each prompt, without the prompt and the end.
    """
    config, device, rows = model.config, model.head.weight.device, range(len(prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    caches = [
        loom.nn.KVCache(
            len(prompts), config.n_kv_heads, int(lengths.max()) + count, config.d_model // config.n_heads,
            lengths=lengths, device=device, dtype=model.head.weight.dtype,
        )
        for _ in model.blocks
    ]  # fmt: skip
    generators = [torch.Generator().manual_seed(seed) for _ in rows]
    logits = model(pad_sequence(prompts, batch_first=True).to(device), loom.causal, caches=caches)
    logits = logits[torch.arange(len(prompts)), lengths - 1]  # of the last token of each prompt
    written: list[list[int]] = [[] for _ in rows]
    has_ended = torch.zeros(len(prompts), 1, dtype=torch.bool)
    for _ in range(count):
        chosen = [_chosen(row, temperature, generators[at]) for at, row in enumerate(logits.float().cpu())]
        has_ended |= torch.tensor(chosen)[:, None] == end
        for at in rows:
            written[at] += [] if has_ended[at] else [chosen[at]]
        if has_ended.all():
            break
        tokens = torch.tensor(chosen, device=device)[:, None]
        logits = model(tokens, loom.causal, caches=caches, pads=has_ended)[:, 0]
    return [torch.tensor(tokens, dtype=torch.int64) for tokens in written]


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
