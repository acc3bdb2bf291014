"""A scale of scores that is no constant of a compiled graph: the first one of a kind of attention is, all others are a tensor."""

import functools
from collections.abc import Hashable

import torch
from torch import Tensor

from maskloom.core.cache import LRU
from maskloom.scores.base import ScoreMod, ScoreValue, score_dataclass


@score_dataclass
class ScaledScore(ScoreValue):
    """Scores times a number in a tensor, before another score_mod: a scale that changes is no constant of a graph."""

    scale: Tensor
    score_mod: ScoreMod | None

    def before(self, score_mod: ScoreMod | None) -> "ScaledScore":
        """The same before another score_mod."""
        return self if score_mod is None else ScaledScore(self.scale, score_mod)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        scaled = score * self.scale
        return scaled if self.score_mod is None else self.score_mod(scaled, b, h, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"scaled({self.scale!r}, {self.score_mod!r})"


_first_scales: LRU[Hashable, float] = LRU(256)
"""The scale that is a constant in the graph of each kind. All other scales are a tensor, in one more graph."""


def is_first_scale(kind: Hashable, scale: float) -> bool:
    """Whether a kind of attention had no other scale before."""
    first = _first_scales.get(kind)
    if first is None:
        _first_scales.put(kind, scale)
    return first is None or first == scale


@functools.lru_cache(64)
def scale_tensor(scale: float, device: torch.device) -> Tensor:
    """A scale as a float32 tensor without dimensions, made once."""
    with torch.inference_mode(False):
        return torch.tensor(scale, dtype=torch.float32, device=device)
