"""The scores of a band, by score_mod and mask, and the way back from their gradient."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.attention.sliced.bands import Band
from maskloom.attention.sliced.work import Work
from maskloom.scores.lifted import added, modified_part
from maskloom.scores.reading import StandingIn

Back = Callable[[Tensor], Tensor]
"""The gradient of the scores before score_mod, from that of the scores after it, which it may write over."""


class Learning:
    """Stand-ins for the tensors that score_mod learns, at which its graph begins, and their gradients so far.

    Without any band these are 0: a process of several that sees nothing must all the same have a gradient for each parameter.
    """

    def __init__(self, work: Work, tensors: tuple[Tensor, ...]) -> None:
        self._originals = work.reading.learned
        self.stand_ins = [tensor.detach().requires_grad_() for tensor in tensors]
        self.gradients: list[Tensor | None] = [None if work.bands else torch.zeros_like(tensor) for tensor in tensors]

    def mode(self) -> StandingIn:
        return StandingIn(self._originals, self.stand_ins)

    def back(self, result: Tensor, leaves: list[Tensor], gradient: Tensor) -> list[Tensor | None]:
        """The gradients of leaves; those of the stand-ins are added up here."""
        if not result.requires_grad:
            return [None] * len(leaves)
        found = torch.autograd.grad(result, [*leaves, *self.stand_ins], gradient, allow_unused=True)
        for place, more in enumerate(found[len(leaves) :]):
            so_far = self.gradients[place]
            self.gradients[place] = more if so_far is None or more is None else so_far + more
        return list(found[: len(leaves)])


class BandScores(NamedTuple):
    """How scores of a band are made.

    Attributes:
        context: in which score_mod runs: that of autocast, as the caller had it.
        learning: None in the forward, where no graph is made.
    """

    work: Work
    context: Callable[[], AbstractContextManager[object]]
    learning: Learning | None = None

    def forward(self, scores: Tensor, band: Band, hidden: Tensor | None) -> Tensor:
        """The scores for the softmax, -inf where the mask hides.

        Args:
            scores: (B, H, Q, K) of the band, scaled; they are written over.
            hidden: what is hidden among ``band.hidden``.
        """
        made, _ = self._modified(scores, band, hidden)
        if made is not scores:  # it may be a table of the caller's
            scores.copy_(made)
        if hidden is not None:
            scores[..., band.hidden].masked_fill_(hidden, -math.inf)
        return scores

    def weights(self, scores: Tensor, band: Band, hidden: Tensor | None, most: Tensor) -> tuple[Tensor, Back]:
        """exp(score - most), 0 where the mask hides, and the way back. most: (B, H, Q, 1)."""
        made, back = self._modified(scores, band, hidden)
        weights = scores.sub_(most) if made is scores else made.detach() - most
        weights.exp_()
        if hidden is None:
            return weights, back
        weights[..., band.hidden].masked_fill_(hidden, 0)

        def from_seen(gradient: Tensor) -> Tensor:
            gradient[..., band.hidden].masked_fill_(hidden, 0)  # 0 times what is there may be no number
            return back(gradient)

        return weights, from_seen

    def _modified(self, scores: Tensor, band: Band, hidden: Tensor | None) -> tuple[Tensor, Back]:
        if self.work.score_mod is None:
            return scores, _same
        if self.work.reading.adds:
            return self._added(scores, band)
        if hidden is None:
            return self._changed(scores, band)
        scores[..., band.hidden].masked_fill_(hidden, 1.0)  # fewer score mods have a pole at 1 than at 0
        made, back = self._changed(scores, band)

        def from_seen(gradient: Tensor) -> Tensor:
            found = back(gradient).contiguous()
            found[..., band.hidden].masked_fill_(hidden, 0)  # 0 times a derivative, which may be infinite
            return found

        return made, from_seen

    def _added(self, scores: Tensor, band: Band) -> tuple[Tensor, Back]:
        assert self.work.score_mod is not None
        learning = self.learning if self.work.reading.learned else None
        with self.context(), torch.set_grad_enabled(learning is not None):
            zero = scores.new_zeros(())
            bias = added(self.work.score_mod, scores.shape, self.work.starts(band), zero, self._mode())
        if learning is None:
            return scores.add_(bias), _same

        def back(gradient: Tensor) -> Tensor:
            learning.back(bias, [], gradient.sum_to_size(bias.shape))
            return gradient

        return scores.add_(bias.detach()), back

    def _changed(self, scores: Tensor, band: Band) -> tuple[Tensor, Back]:
        assert self.work.score_mod is not None
        learning = self.learning
        with self.context(), torch.set_grad_enabled(learning is not None):
            leaf = scores.detach().requires_grad_(learning is not None)
            made = modified_part(leaf, self.work.score_mod, self.work.starts(band), self._mode())
        if learning is None:
            return made, _same

        def back(gradient: Tensor) -> Tensor:
            (found,) = learning.back(made, [leaf], gradient)
            return torch.zeros_like(gradient) if found is None else found

        return made, back

    def _mode(self) -> StandingIn | None:
        return self.learning.mode() if self.learning is not None and self.work.reading.learned else None


def _same(gradient: Tensor) -> Tensor:
    return gradient


def ambient(device: torch.device, autocast: torch.dtype | None) -> Callable[[], AbstractContextManager[object]]:
    """What makes autocast as it was for the caller, where it is off for what is around."""
    if autocast is None:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=autocast, cache_enabled=False)
