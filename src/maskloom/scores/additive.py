"""Whether a recorded score_mod only adds to the score something that does not depend on it.

``score + bias[h, q_idx - kv_idx]``, ``torch.where(is_even, score, score - 1)`` and ``torch.where(is_near, score, -inf)``
do. An operation that is not listed here makes the answer no.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskloom.program.program import INDICES, Op, Program, Value, leaves

_aten = torch.ops.aten
_SCORE = Value(len(INDICES))


def is_sum(program: Program) -> bool:
    """Whether the answer of a program of `record_score` is the score plus what does not depend on the score."""
    if program.unsupported_reason is not None:
        return False
    walk = _Walk()
    for step in program.steps:
        walk.follow(step)
    return program.answer in walk.sums and program.meta(program.answer).dtype in (torch.float32, torch.float64)


class _Walk:
    """Which values depend on the score, and which of these are sums of the score and what does not depend on it."""

    def __init__(self) -> None:
        self.sums: set[Any] = {_SCORE}
        self._dependent: set[Value] = {_SCORE}

    def follow(self, step: Op) -> None:
        if self._dependent.isdisjoint(step.refs):
            return
        self._dependent.update(step.results)
        rule = _RULES.get(step.op.overloadpacket)
        if rule is not None and rule(self, *step.args, **step.kwargs):
            self.sums.update(step.results)

    def _is_free(self, argument: Any) -> bool:
        return self._dependent.isdisjoint(leaves((argument,), Value))

    def _is_sum(self, argument: Any) -> bool:
        return isinstance(argument, Value) and argument in self.sums

    def add(self, one: Any, other: Any, *, alpha: float = 1) -> bool:
        if self._is_sum(one):
            return self._is_free(other)
        return alpha == 1 and self._is_free(one) and self._is_sum(other)

    def sub(self, one: Any, other: Any, *, alpha: float = 1) -> bool:
        return self._is_sum(one) and self._is_free(other)

    def where(self, condition: Any, one: Any, other: Any) -> bool:
        both = [one, other]
        if not self._is_free(condition) or not any(map(self._is_sum, both)):
            return False
        return all(self._is_sum(branch) or _is_hidden(branch) for branch in both)

    def masked_fill(self, one: Any, mask: Any, value: Any) -> bool:
        return self._is_sum(one) and self._is_free(mask) and _is_hidden(value)

    def clone(self, one: Any, **options: Any) -> bool:
        return self._is_sum(one)


_RULES: dict[Any, Callable[..., bool]] = {
    _aten.add: _Walk.add,
    _aten.sub: _Walk.sub,
    _aten.where: _Walk.where,
    _aten.masked_fill: _Walk.masked_fill,
    _aten.clone: _Walk.clone,
}


def _is_hidden(branch: Any) -> bool:
    """Whether it is the number -inf: the score plus -inf, unless that is infinite."""
    if isinstance(branch, Tensor):
        return not branch.ndim and branch.item() == -math.inf
    return isinstance(branch, float) and branch == -math.inf
