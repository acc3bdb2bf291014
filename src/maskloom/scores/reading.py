"""What a score_mod does, as far as it says so, or one run on scalars shows: whether it only adds, and what it learns.

A plain function may read a learned tensor from anywhere, a global module say. `learned_by` sees such tensors as they come
into torch's functions. Then it runs the function again with stand-ins for them, and looks whether the result's graph
begins at these alone. Where it does not (in an autograd function of the user's, say), what is learned is not known.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.torch_state import is_tracing, is_transformed
from maskloom.program.getitem import IndexByScalars
from maskloom.program.program import leaves
from maskloom.program.record import record_score
from maskloom.scores.additive import is_sum
from maskloom.scores.base import ScoreMod, ScoreReading, answering, only_adds
from maskloom.scores.lifted import broadcasts


def read_score(score_mod: ScoreMod, device: torch.device, dtype: torch.dtype) -> ScoreReading | None:
    """What a score_mod does to scores of this dtype; None if it is not known what it learns, and while torch traces."""
    if is_tracing() or is_transformed():
        return None
    is_ours = broadcasts(score_mod)
    learned = learned_by_ours(score_mod) if is_ours else learned_by(score_mod, device, dtype)
    if learned is None:
        return None
    return ScoreReading(only_adds(score_mod) if is_ours else _is_seen_to_add(score_mod, device, dtype), learned)


def learned_by_ours(score_mod: ScoreMod) -> tuple[Tensor, ...]:
    """The tensors that get a gradient in one of maskloom's own, which reads no others."""
    if not torch.is_grad_enabled():
        return ()
    return tuple(tensor for tensor in captures.tensors(score_mod) if tensor.requires_grad)


def _is_seen_to_add(score_mod: ScoreMod, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        return is_sum(record_score(answering(score_mod), device, dtype))
    except Exception:  # what runs it will say more
        return False


def learned_by(score_mod: ScoreMod, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...] | None:
    """The tensors that a plain function reads and that get a gradient; None if that is not known."""
    if not torch.is_grad_enabled():
        return ()
    watch = _Watch()
    try:
        _on_scalars(score_mod, device, dtype, watch)
        learned = tuple(watch.learned.values())
        mode = StandingIn(learned, stand_ins(learned))
        score, result = _on_scalars(score_mod, device, dtype, mode)
    except Exception:  # what runs it will say more
        return None
    starts = _starts_of(result)
    if not starts <= {id(score), *map(id, mode.stand_ins.values())}:
        return None
    return tuple(tensor for tensor in learned if id(mode.stand_ins[id(tensor)]) in starts)


def stand_ins(learned: Iterable[Tensor]) -> list[Tensor]:
    """Tensors with the same values, at which a graph begins."""
    return [tensor.detach().requires_grad_() for tensor in learned]


class StandingIn(IndexByScalars):
    """Gives torch's functions other tensors in the place of some."""

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors = tensors  # alive, so that no id is used again
        self.stand_ins = {id(tensor): other for tensor, other in zip(tensors, others, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {name: self._replaced(item) for name, item in (kwargs or {}).items()}
        return super().__torch_function__(func, types, self._replaced(args), named)

    def _replaced(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.stand_ins.get(id(argument), argument)
        if type(argument) in (tuple, list):
            return type(argument)(map(self._replaced, argument))
        return argument


class _Watch(IndexByScalars):
    """Notes the tensors that get a gradient, and were not made while it watched."""

    def __init__(self) -> None:
        super().__init__()
        self.learned: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in leaves((args, *(kwargs or {}).values()), Tensor):
            if tensor.requires_grad and id(tensor) not in self.made:
                self.learned[id(tensor)] = tensor
        made = super().__torch_function__(func, types, args, kwargs)
        self.made |= {id(tensor): tensor for tensor in leaves(made, Tensor)}
        return made


def _on_scalars(
    score_mod: ScoreMod, device: torch.device, dtype: torch.dtype, mode: IndexByScalars
) -> tuple[Tensor, Tensor]:
    """A score that gets a gradient, and what score_mod makes of it."""
    index = torch.zeros((), dtype=torch.int64, device=device)
    score = torch.zeros((), dtype=dtype, device=device, requires_grad=True)
    if isinstance(mode, _Watch):
        mode.made[id(score)] = score
    with mode:
        return score, answering(score_mod)(score, index, index, index, index)


def _starts_of(result: Tensor) -> set[int]:
    """The ids of the tensors at which the graph of a result begins."""
    if result.requires_grad and result.grad_fn is None:
        return {id(result)}
    starts, seen, waiting = set(), set(), [result.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            starts.add(id(variable))
        waiting.extend(before for before, _ in node.next_functions)
    return starts
