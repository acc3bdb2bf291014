"""Whether a mask_mod answered with one bool: the same error wherever it is run, while torch compiles too.

Types, dtypes and ranks are constants of a trace, so nothing of this check is left in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from maskloom.core.words import brief, brief_name


def check_answer(mask_mod: Any, answer: object) -> None:
    """Raise a TypeError if a mask_mod, run on scalars, gave something else than one bool."""
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.ndim:
        raise _no_bool(mask_mod, answer)


def ask(part: Any, *indices: Tensor) -> Tensor:
    """The answer of a part of a mask, or a TypeError if that is no bool: numbers join bit by bit, or not at all.

    On tensors that broadcast it has dims. A bool of Python's own joins, as in torch's ``and_masks``.
    """
    answer = part(*indices)
    if not (answer.dtype == torch.bool if isinstance(answer, Tensor) else isinstance(answer, bool)):
        raise _no_bool(part, answer)
    return answer


def _no_bool(mask_mod: Any, answer: object) -> TypeError:
    return TypeError(f"{NO_BOOL} {brief_name(mask_mod)} gave {_described(answer)}")


NO_BOOL = "a mask_mod answers with one bool for one (b, h, q_idx, kv_idx);"


def _described(answer: object) -> str:
    if isinstance(answer, Tensor):
        return f"{str(answer.dtype)[len('torch.') :]} of shape {tuple(answer.shape)}"
    return "None" if answer is None else f"{type(answer).__name__} {brief(answer)}"
