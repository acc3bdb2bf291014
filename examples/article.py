"""Causal attention with padded inputs, as the article on FlexAttention and BlockMask does it; its imports are ours.

    python examples/article.py

Sequences of random vectors with up to five zero vectors behind them, a padding mask from the zeros, the causal mask, both
as one BlockMask, multi-head attention, and a picture of the scores in which padding and future are masked.
"""

import argparse
from pathlib import Path

import torch

from maskloom import (
    MultiheadFlexAttention,
    and_masks,
    causal,
    create_block_mask,
    create_padding_mask,
    visualize_attention_scores,
)


def main(batch_size: int, path: Path) -> torch.Tensor:
    max_length, d_in, d_out, n_heads = 10, 64, 64, 8
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    input_data = torch.randn(batch_size, max_length, d_in, device=device)
    for sequence in input_data:
        n_pads = int(torch.randint(0, 6, (1,)))
        sequence[max_length - n_pads :] = 0
    pads = torch.eq(input_data[:, :, 0], 0)

    causal_padding_mask = and_masks(causal, create_padding_mask(pads))
    block_mask = create_block_mask(
        causal_padding_mask, B=batch_size, H=None, Q_LEN=max_length, KV_LEN=max_length, _compile=True
    )

    attention = MultiheadFlexAttention(d_in, d_out, n_heads).to(device)
    out, queries, keys = attention(input_data, block_mask)

    visualize_attention_scores(
        queries, keys, mask_mod=causal_padding_mask, device=device, name="causal_padding_mask", path=path
    )
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--path", type=Path, default=Path("causal_padding_mask.png"))
    arguments = parser.parse_args()
    main(arguments.batch_size, arguments.path)
