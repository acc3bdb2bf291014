"""A score_mod on a whole table of scores: the scalar function, lifted by `torch.vmap`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from maskloom.core.torch_state import is_in_operator
from maskloom.program.getitem import IndexByScalars
from maskloom.scores.base import ScoreMod, ScoreValue, answering, name_of
from maskloom.scores.compose import Composed
from maskloom.scores.shift import ShiftedScore


def modified(scores: Tensor, score_mod: ScoreMod, first: int = 0) -> Tensor:
    """What score_mod makes of each score, in the dtype of scores, with the gradients of the scalar function.

    Args:
        scores: (B, H, Q, K).
        first: the position of the first query.

    Raises:
        TypeError: it gives no score, or does what a function for all scores at once cannot do.
        What it raises itself comes through, with a note.
    """
    indices = [torch.arange(size, device=scores.device) for size in scores.shape]
    indices[2] = indices[2] + first
    if torch.compiler.is_compiling():  # exported, ours need no vmap
        by_shape = is_in_operator() or (torch.compiler.is_exporting() and _broadcasts(score_mod))
        made = (_broadcast if by_shape else _lifted)(score_mod, scores, indices)
    else:
        with _told(score_mod):
            made = _lifted(score_mod, scores, indices)
    return made.to(scores.dtype)  # a float64 table makes float64 scores of float32 ones


def _lifted(score_mod: ScoreMod, scores: Tensor, indices: list[Tensor]) -> Tensor:
    lifted = answering(score_mod)
    for index in (3, 2, 1, 0):
        dims = [0] + [0 if index == at else None for at in range(4)]
        lifted = torch.vmap(lifted, in_dims=tuple(dims))
    with IndexByScalars():
        return lifted(scores, *indices)


def _broadcast(score_mod: ScoreMod, scores: Tensor, indices: list[Tensor]) -> Tensor:
    """One of ours, which broadcasts: torch's vmap reads no table where no function mode can be entered."""
    if not _broadcasts(score_mod):
        raise TypeError(
            "inside torch.utils.checkpoint, while torch.compile traces, torch cannot lift a plain score_mod to a table of "
            "scores: give one of maskloom's, alibi and relative_bias say, or leave the checkpoint out of what is compiled"
        )
    axes = [index.view(*(-1 if dim == axis else 1 for dim in range(4))) for axis, index in enumerate(indices)]
    return score_mod(scores, *axes).expand(scores.shape)


def _broadcasts(score_mod: ScoreMod) -> bool:
    """Whether it is one of ours all through: a plain function inside of one is a scalar function still."""
    if isinstance(score_mod, ShiftedScore):
        return _broadcasts(score_mod.score_mod)
    if isinstance(score_mod, Composed):
        return all(map(_broadcasts, score_mod.parts))
    return isinstance(score_mod, ScoreValue)


_WORDS_OF_VMAP = ("vmap", "functorch", "Batching rule", "doesn't have storage")


@contextmanager
def _told(score_mod: ScoreMod) -> Iterator[None]:
    """Errors that say which score_mod raised them, and of torch.vmap's also what to write instead."""
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
