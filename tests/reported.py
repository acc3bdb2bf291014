"""Wrong or NaN gradients of FlexAttention that are reported upstream and open, as cases for every backend."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

import maskloom as loom
from maskloom.masks.algebra import Mask
from tests.evidence import gather


class Reported(NamedTuple):
    """One report.

    Attributes:
        sizes: pairs of a number of queries and of keys.
        mask: of these and of a device.
        refused: what a backend that does not take it says.
    """

    sizes: list[tuple[int, int]]
    mask: Callable[[int, int, str], Mask]
    refused: dict[str, str]
    score_mod: Callable[..., Tensor] | None = None
    dtype: torch.dtype = torch.bfloat16


def strided(b, h, q_idx, kv_idx):
    """The mask of pytorch#158212: a window, then blocks of four an offset further; the last queries see nothing. 128 was 1024."""
    size, width, offset = 128, 4, 4
    first, second = q_idx < size, (q_idx >= size) & (q_idx < 2 * size) & ((q_idx - size) % width != offset)
    block = (q_idx - offset - size) // width
    own = (kv_idx >= size) & (kv_idx < 2 * size) & ((kv_idx - offset - size) // width == block)
    behind = (kv_idx >= 2 * size) & ((kv_idx - offset - 2 * size) // width == block)
    return (
        (first & (kv_idx < size) & (q_idx > kv_idx - width))
        | (second & (kv_idx < size) & (kv_idx <= block * width + offset))
        | (second & own & ((kv_idx - size) % width != offset))
        | (second & behind)
    )


def distance(score, b, h, q_idx, kv_idx):
    """The score_mod of pytorch#153799."""
    return score + (q_idx - kv_idx)


def offset(q_len: int, kv_len: int, device: str) -> Mask:
    at = torch.tensor(kv_len - q_len - 6, device=device)
    return loom.masks.shifted(loom.causal & loom.window(back=100), q_offset=at)


def padded(q_len: int, kv_len: int, device: str) -> Mask:
    return loom.causal & loom.lengths(torch.tensor([q_len, 7, q_len - 1], device=device))


def cross(q_len: int, kv_len: int, device: str) -> Mask:
    queries, keys = torch.tensor([q_len, 17, 3]), torch.tensor([kv_len, 5000, kv_len - 1])
    return loom.lengths(queries, keys).to(device)


REPORTED = {
    "158212": Reported(
        [(384, 384)], lambda q_len, kv_len, device: loom.as_mask(strided), {"flash": "this has .*remainder"}
    ),
    "158212, an offset": Reported([(300, 517)], offset, {}),
    "153799": Reported(  # in bfloat16, as reported, the plain reference itself is wrong by half at such scores
        [(641, 641), (129, 129)],
        lambda q_len, kv_len, device: loom.causal,
        {"sdpa": "it has no score_mod", "flash": "it runs in bfloat16 and float16"},
        distance,
        torch.float32,
    ),
    "153799, padding": Reported([(639, 639), (255, 255), (129, 129)], padded, {}),
    "174923": Reported([(40, 8192)], cross, {}),
}
"""By issue of pytorch: block masks with offsets, lengths that 128 does not divide, few queries and many keys."""


def check_report(number: str, backend: str, device: str) -> None:
    """Output and gradients are right from a Mask and from its BlockMask, or the backend says why it does not take it."""
    report = REPORTED[number]
    for q_len, kv_len in report.sizes:
        mask = report.mask(q_len, kv_len, device)
        generator = torch.Generator().manual_seed(q_len)
        shapes = [(3, 4, q_len, 64), (3, 2, kv_len, 64), (3, 2, kv_len, 64)]
        tensors = [torch.randn(shape, generator=generator).to(device, report.dtype) for shape in shapes]
        how: dict[str, Any] = {"score_mod": report.score_mod, "backend": backend}
        if (backend in report.refused and (backend, device) != ("sdpa", "cpu")) or backend == "varlen":
            words = report.refused.get(backend, r"documents\(offsets=")
            with pytest.raises(ValueError, match=f"backend '{backend}' cannot do this: .*{words}"):
                loom.attend(*tensors, mask, **how)
            continue
        table = mask.dense(q_len, kv_len, batch=3, device=device)
        blocks: BlockMask = loom.block_mask(mask, q_len, kv_len, device=device)
        gather(
            lambda *qkv, blocks=blocks: loom.attend(*qkv, blocks, **how),
            *tensors, table=table, score_mod=report.score_mod,
        ).check()  # fmt: skip
