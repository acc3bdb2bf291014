"""Apply a score_mod to a whole table of scores: the scalar function, batched by `torch.vmap`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from maskloom.core.torch_state import is_exporting, is_in_operator
from maskloom.program.getitem import IndexByScalars
from maskloom.scores.base import ScoreMod, ScoreValue, answering, is_by_distance, name_of
from maskloom.scores.compose import Composed


def modified(scores: Tensor, score_mod: ScoreMod, first: int = 0) -> Tensor:
    """The result of score_mod for each score, in the dtype of scores, with the gradients of the scalar function.

    Args:
        scores: (B, H, Q, K).
        first: the position of the first query.

    Raises:
        TypeError: it returns no score, or does something that cannot be batched.
        An exception of the score_mod itself passes through, with a note.
    """
    indices = _positions(scores.shape, (0, 0, first, 0), scores.device)
    if torch.compiler.is_compiling():  # in an export, maskloom's own need no vmap
        by_shape = is_in_operator() or (is_exporting() and broadcasts(score_mod))
        made = (_broadcast if by_shape else _batched)(score_mod, scores, indices)
    else:
        with _naming_errors(score_mod):
            made = _batched(score_mod, scores, indices)
    return made.to(scores.dtype)  # with a float64 table, float32 scores become float64


Starts = tuple[int, int, int, int]
"""The first batch row, query head, query and key of a part of all scores."""


def modified_part(
    scores: Tensor, score_mod: ScoreMod, starts: Starts, mode: AbstractContextManager[object] | None = None
) -> Tensor:
    """`modified` of a part of all scores; outside of torch's tracing only. maskloom's own are called once, without vmap.

    Args:
        mode: what score_mod runs in, an `IndexByScalars`.
    """
    indices = _positions(scores.shape, starts, scores.device)
    with _naming_errors(score_mod):
        if not broadcasts(score_mod):
            return _batched(score_mod, scores, indices, mode).to(scores.dtype)
        with mode or nullcontext():
            return _broadcast(score_mod, scores, indices).to(scores.dtype)


def added(
    score_mod: ScoreMod,
    sizes: Sequence[int],
    starts: Starts,
    score: Tensor,
    mode: AbstractContextManager[object] | None = None,
) -> Tensor:
    """What a score_mod that only adds adds to a part of all scores: broadcastable to ``sizes``, in the dtype of ``score``.

    Args:
        sizes: (B, H, Q, K) of the part.
        score: 0, without dimensions.
        mode: as in `modified_part`.
    """
    with _naming_errors(score_mod):
        if not broadcasts(score_mod):
            made = _smallest(_batched(score_mod, score, _positions(sizes, starts, score.device), mode))
        else:
            four = score.expand(1, 1, 1, 1)  # dtypes with dimensions decide
            with mode or nullcontext():
                make = _added_by_distance if is_by_distance(score_mod) else by_shape
                made = make(score_mod, four, sizes, starts)
    return made.to(score.dtype)


def by_shape(score_mod: ScoreMod, score: Tensor, sizes: Sequence[int], starts: Starts) -> Tensor:
    """The result of one of maskloom's own for one score, (1, 1, 1, 1), at all indices: broadcastable to ``sizes``."""
    return score_mod(score, *_axes(_positions(sizes, starts, score.device)))


def _added_by_distance(score_mod: ScoreMod, score: Tensor, sizes: Sequence[int], starts: Starts) -> Tensor:
    """Of each distance once: row i of the result begins at distance ``first key - query i``."""
    (batch, heads, queries, keys), (row, head, query, key) = sizes, starts
    last_query = row, head, query + queries - 1, key
    of_distances = by_shape(score_mod, score, (batch, heads, 1, queries + keys - 1), last_query)
    return _OfDistances.apply(of_distances.squeeze(2), keys)


class _OfDistances(torch.autograd.Function):
    """Values of distances (..., Q + K - 1) as a table (..., Q, K), whose last row begins with the first value."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, keys: int) -> Tensor:
        return values.unfold(-1, keys, 1).flip(-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sums of diagonals: rows that are padded and cut anew stand one further to the right each, and are added up."""
        *batch, queries, keys = gradient.shape
        flat = torch.nn.functional.pad(gradient.flip(-2), (0, queries)).flatten(-2)
        return flat[..., : queries * (keys + queries - 1)].view(*batch, queries, -1).sum(-2), None


def _smallest(made: Tensor) -> Tensor:
    """A view of a tensor that holds each of its values once, along the dimensions where vmap has expanded it."""
    return made[tuple(slice(None) if stride else slice(1) for stride in made.stride())]


def _positions(sizes: Sequence[int], starts: Starts, device: torch.device) -> list[Tensor]:
    indices = [torch.arange(size, device=device) for size in sizes]
    return [
        index + start if type(start) is not int or start else index
        for index, start in zip(indices, starts, strict=True)
    ]


def _batched(
    score_mod: ScoreMod, scores: Tensor, indices: list[Tensor], mode: AbstractContextManager[object] | None = None
) -> Tensor:
    """By torch.vmap. scores: (B, H, Q, K), or one for all, without dimensions."""
    batched = answering(score_mod)
    of_scores = 0 if scores.ndim else None
    for index in (3, 2, 1, 0):
        batched = torch.vmap(batched, in_dims=(of_scores, *(0 if index == at else None for at in range(4))))
    with mode or IndexByScalars():
        return batched(scores, *indices)


def _broadcast(score_mod: ScoreMod, scores: Tensor, indices: list[Tensor]) -> Tensor:
    """For maskloom's own, which broadcast: torch's vmap cannot index tables where no function mode can be entered."""
    if not broadcasts(score_mod):
        raise TypeError(
            "inside torch.utils.checkpoint, while torch.compile traces, torch cannot lift a plain score_mod to a table of "
            "scores: give one of maskloom's, alibi and relative_bias say, or leave the checkpoint out of what is compiled"
        )
    return score_mod(scores, *_axes(indices)).expand(scores.shape)


def _axes(indices: list[Tensor]) -> list[Tensor]:
    return [index.view(*(-1 if dim == axis else 1 for dim in range(4))) for axis, index in enumerate(indices)]


def broadcasts(score_mod: ScoreMod) -> bool:
    """Whether it and all its parts are maskloom's own: a plain function as a part is still a scalar function."""
    if isinstance(score_mod, Composed):
        return all(map(broadcasts, score_mod.parts))
    if not isinstance(score_mod, ScoreValue):
        return False
    inner = getattr(score_mod, "score_mod", None)  # all that place, shift or scale another hold it by this name
    return inner is None or broadcasts(inner)


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
