"""Checks that a mask_mod returned one bool: the same error everywhere, also while torch compiles.

Types, dtypes and ranks are constants of a trace, so this check adds nothing to a graph.
"""

from typing import Any

import torch
from torch import Tensor

from maskloom.core.words import brief, brief_name


def check_answer(mask_mod: Any, answer: object) -> None:
    """Raise a TypeError if a mask_mod, run on scalars, returned anything else than one bool."""
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.ndim:
        raise _no_bool(mask_mod, answer)


def ask(part: Any, *indices: Tensor) -> Tensor:
    """The result of one part of a mask. A TypeError if it is not bool: ``&`` and ``|`` would join numbers bit by bit.

    For indices that broadcast, the result is a tensor with dims. A Python bool is allowed, as in torch's ``and_masks``.
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
