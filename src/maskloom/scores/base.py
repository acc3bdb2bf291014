"""The base of score mods: like a mask, a score mod is a scalar function, and in maskloom a value.

``score_mod(score, b, h, q_idx, kv_idx)`` takes one scaled score and its four indices, and returns the score for the
softmax. The mask is applied after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeVar, dataclass_transform

import torch
from torch import Tensor

from maskloom.core.checks import required_arguments
from maskloom.core.values import FrozenValue, undecorated, value
from maskloom.core.words import brief, brief_name

C = TypeVar("C", bound=type)

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(score, b, h, q_idx, kv_idx) -> score``: torch's score_mod signature, a scalar function."""


class ScoreReading(NamedTuple):
    """What is known of a score_mod; see `maskloom.scores.reading`.

    Attributes:
        adds: whether the result is the score plus something that does not depend on the score; False if not known.
        learned: the tensors of it that get a gradient; empty where gradients are off.
    """

    adds: bool
    learned: tuple[Tensor, ...]


@dataclass_transform(frozen_default=True, eq_default=False)
def score_dataclass(cls: C) -> C:
    """Make a subclass of ScoreValue a frozen dataclass that keeps its equality, hash and repr; torch can trace those."""
    return value(cls)


class ScoreValue(FrozenValue, ABC):
    """A score_mod that can be compared, printed, moved and pickled. A call with tensors that broadcast gives the same as
    ``torch.vmap`` over scalars.

    It computes in the dtype that torch promotes score and tables to: kernels have scores in float32, whatever the
        query's dtype.
    """

    decorator = "maskloom.scores.base.score_dataclass"

    @abstractmethod
    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The changed score: floating point, from a score and integer tensors on one device."""

    @property
    def heads(self) -> int | None:
        """The number of query heads that it has entries for; None if it is the same for any number."""
        return None

    @property
    def adds(self) -> bool:
        """Whether the result is the score plus something that does not depend on the score."""
        return False

    @property
    def is_by_distance(self) -> bool:
        """Whether positions count by their distance ``kv_idx - q_idx`` alone, and may lie beyond the last."""
        return False

    def check_heads(self, heads: int, *, or_more: bool = False) -> None:
        """Raise a ValueError if its entries are not for ``heads`` query heads, or with ``or_more`` for fewer."""
        held = self.heads
        if held is not None and (held < heads if or_more else held != heads):
            asked = f"heads up to number {heads - 1} are asked for" if or_more else f"the attention has {heads}"
            raise ValueError(f"{brief(self)} is for {held} query heads; {asked}")


def checked_score_mod(function: ScoreMod, *, mask_argument: str = "mask") -> ScoreMod:
    """``function`` itself, or a TypeError if it cannot be called with five positional arguments, or its class is not decorated.

    A function of four is told that it goes to ``mask_argument``.
    """
    if isinstance(function, ScoreValue) and not function.is_decorated:
        raise undecorated(function)
    if isinstance(function, ScoreValue) or torch.compiler.is_dynamo_compiling():
        return function
    if not callable(function):
        raise TypeError(
            "a score_mod is a function (score, b, h, q_idx, kv_idx) -> score; "
            f"got {type(function).__name__}: {brief(function)}"
        )
    required = required_arguments(function)
    if required not in (None, 5):
        hint = f"; with four it looks like a mask_mod, which goes to {mask_argument}=" if required == 4 else ""
        raise TypeError(
            f"a score_mod takes five arguments (score, b, h, q_idx, kv_idx); {brief_name(function)} takes {required}{hint}"
        )
    return function


def answering(score_mod: ScoreMod) -> ScoreMod:
    """The score_mod, with a TypeError if it returns no score. Type, dtype and shape are constants in a trace.

    Without this check, a compiled function without a return value, or with many elements, runs without an error (torch
    2.13).
    """

    def answered(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        answer = score_mod(score, b, h, q_idx, kv_idx)
        wrong = _no_score(answer)
        if wrong is not None:
            raise TypeError(f"{NO_SCORE} for one (score, b, h, q_idx, kv_idx); {name_of(score_mod)} gave {wrong}")
        return answer

    return answered


NO_SCORE = "a score_mod answers with the score, a tensor without dimensions,"


def _no_score(answer: object) -> str | None:
    """What a score_mod returned instead of a score; None for a score. An integer tensor is a score, as in torch."""
    if not isinstance(answer, Tensor):
        return "None" if answer is None else type(answer).__name__
    if answer.dtype == torch.bool or answer.is_complex() or answer.ndim:
        hint = "; a mask_mod goes to mask=" if answer.dtype == torch.bool else ""
        return f"a {answer.dtype} tensor with ndim {answer.ndim}{hint}"  # sizes may be symbols in a trace
    return None


def only_adds(score_mod: ScoreMod) -> bool:
    """Whether it is maskloom's own and says that it adds; a plain function says nothing."""
    return isinstance(score_mod, ScoreValue) and score_mod.adds


def is_by_distance(score_mod: ScoreMod) -> bool:
    """Whether it is maskloom's own and says that positions count by their distance."""
    return isinstance(score_mod, ScoreValue) and score_mod.is_by_distance


def name_of(function: ScoreMod) -> str:
    """A score_mod as repr writes it: a value as the code that makes it, a plain function by its name."""
    return getattr(function, "__name__", type(function).__name__)
