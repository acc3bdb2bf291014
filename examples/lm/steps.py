"""The steps of a run: what each takes, and its learning rate."""

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from maskloom.batches import Batch, TokenBudgetSampler


class Inputs(NamedTuple):
    """What the model takes of a batch on this process: all of each row, or its share."""

    tokens: Tensor
    targets: Tensor
    mask: Any
    options: dict[str, Any]
    places: list[str]


class Step(NamedTuple):
    """What one step takes, prepared while the device works on the one before.

    Attributes:
        batches: on the host.
        runs: of the model, the largest number of batches that a process has.
        counts: targets (all tokens but the first of each document), tokens and positions of all processes.
        first: the inputs of the first batch.
        sampler: its state once these batches are taken.
    """

    batches: list[Batch]
    runs: int
    counts: list[float]
    first: Inputs
    sampler: dict[str, int]


def sampler_of(lengths: Sequence[int], given: argparse.Namespace, place: tuple[int, int]) -> TokenBudgetSampler:
    """The sampler of packed rows, the same for every layout.

    Args:
        lengths: of the sequences to train on.
        place: see `Ranks.data`.
    """
    rank, size = place
    if given.rows % size:
        raise SystemExit(f"--rows is a multiple of {size}, the processes with rows of their own; got {given.rows}")
    if given.rows > len(lengths):
        raise SystemExit(f"--rows is at most {len(lengths)}, the sequences to train on; got {given.rows}")
    return TokenBudgetSampler(
        lengths, given.capacity, packed=True, seed=given.seed, rank=rank, world_size=size, accumulate=given.rows // size
    )


def lr_at(step: int, given: argparse.Namespace) -> float:
    """A rise over a twentieth of the steps, then half a cosine down to a tenth."""
    rise = min(1.0, (step + 1) / max(1, given.steps / 20))
    return given.lr * min(rise, 0.55 + 0.45 * math.cos(math.pi * step / given.steps))
