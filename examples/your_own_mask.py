"""A mask of your own: a query sees what its own speaker said before, and the token before it, whoever said that.

    python examples/your_own_mask.py

First as a plain function, then as a class, which compares, prints, pickles and moves. `check_mask` puts it through every law.
"""

import torch
from torch import Tensor

import maskloom as loom
from maskloom.show.text import picture
from maskloom.testing import check_mask


@loom.masks.mask_dataclass
class SameSpeaker(loom.Mask):
    """See `same_speaker`."""

    speaker: Tensor
    name = "same_speaker"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.speaker[b, q_idx] == self.speaker[b, kv_idx]


def same_speaker(speaker: Tensor) -> SameSpeaker:
    """A query sees what its own speaker said.

    Args:
        speaker: integers (B, L), who says each token.
    """
    if speaker.ndim != 2 or speaker.is_floating_point():
        raise ValueError(f"speaker is integers (B, L); got {speaker.dtype} {tuple(speaker.shape)}")
    return SameSpeaker(speaker)


def main() -> Tensor:
    speaker = torch.tensor([[0, 0, 1, 1, 0, 2, 2, 0, 1], [1, 1, 1, 0, 0, 0, 0, 1, 1]])

    def plain(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return speaker[b, q_idx] == speaker[b, kv_idx]

    mask = loom.causal & (same_speaker(speaker) | loom.window(back=1))
    assert torch.equal(same_speaker(speaker).dense(9, 9), loom.as_mask(plain).dense(9, 9, batch=2))
    check_mask(mask, q_len=9, kv_len=8)
    print(mask)
    print(picture(mask, 9, 9, batch=1))
    print(loom.blocks.summary(loom.block_mask(mask, 9, 9)))

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 16)
    out = loom.attend(query, key, value, mask)
    print(loom.explain(query, key, value, mask))
    return out


if __name__ == "__main__":
    main()
