"""Apply a score_mod to a whole table of scores: the scalar function, batched by `torch.vmap`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from maskloom.core.torch_state import is_exporting, is_in_operator
from maskloom.program.getitem import IndexByScalars
from maskloom.scores.base import ScoreMod, ScoreValue, answering, name_of
from maskloom.scores.compose import Composed
from maskloom.scores.shift import ShiftedScore


def modified(scores: Tensor, score_mod: ScoreMod, first: int = 0) -> Tensor:
    """The result of score_mod for each score, in the dtype of scores, with the gradients of the scalar function.

    Args:
        scores: (B, H, Q, K).
        first: the position of the first query.

    Raises:
        TypeError: it returns no score, or does something that cannot be batched.
        An exception of the score_mod itself passes through, with a note.
    """
    indices = [torch.arange(size, device=scores.device) for size in scores.shape]
    indices[2] = indices[2] + first
    if torch.compiler.is_compiling():  # in an export, maskloom's own need no vmap
        by_shape = is_in_operator() or (is_exporting() and _broadcasts(score_mod))
        made = (_broadcast if by_shape else _batched)(score_mod, scores, indices)
    else:
        with _naming_errors(score_mod):
            made = _batched(score_mod, scores, indices)
    return made.to(scores.dtype)  # with a float64 table, float32 scores become float64


def _batched(score_mod: ScoreMod, scores: Tensor, indices: list[Tensor]) -> Tensor:
    batched = answering(score_mod)
    for index in (3, 2, 1, 0):
        dims = [0] + [0 if index == at else None for at in range(4)]
        batched = torch.vmap(batched, in_dims=tuple(dims))
    with IndexByScalars():
        return batched(scores, *indices)


def _broadcast(score_mod: ScoreMod, scores: Tensor, indices: list[Tensor]) -> Tensor:
    """For maskloom's own, which broadcast: torch's vmap cannot index tables where no function mode can be entered."""
    if not _broadcasts(score_mod):
        raise TypeError(
            "inside torch.utils.checkpoint, while torch.compile traces, torch cannot lift a plain score_mod to a table of "
            "scores: give one of maskloom's, alibi and relative_bias say, or leave the checkpoint out of what is compiled"
        )
    axes = [index.view(*(-1 if dim == axis else 1 for dim in range(4))) for axis, index in enumerate(indices)]
    return score_mod(scores, *axes).expand(scores.shape)


def _broadcasts(score_mod: ScoreMod) -> bool:
    """Whether it and all its parts are maskloom's own: a plain function as a part is still a scalar function."""
    if isinstance(score_mod, ShiftedScore):
        return _broadcasts(score_mod.score_mod)
    if isinstance(score_mod, Composed):
        return all(map(_broadcasts, score_mod.parts))
    return isinstance(score_mod, ScoreValue)


_WORDS_OF_VMAP = ("vmap", "functorch", "Batching rule", "doesn't have storage")


@contextmanager
def _naming_errors(score_mod: ScoreMod) -> Iterator[None]:
    """Add the name of the score_mod to errors; for errors of torch.vmap, also say what to write instead."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _WORDS_OF_VMAP):
            error.add_note(f"raised by the score_mod {name_of(score_mod)}")
            raise
        raise TypeError(
            f"the score_mod {name_of(score_mod)} is run for all scores at once (torch.vmap), and does what cannot be done "
            "so: .item(), int(), if, and, or, not on a score or an index, a slice from one to another, a selection by bools, "
            "random numbers, a write into a tensor that is the same for all. Write torch.where, table[b, kv_idx]. "
            f"torch says: {_first_sentence(error)}"
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0].strip()
