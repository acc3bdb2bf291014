"""Masks and score mods that divide, in a kernel of Triton.

Triton (3.6; triton#7749) concludes from how the indices of a tile follow one another which of their quotients are equal. Its
rule holds from 0 on. Below, a kernel computes one quotient and gives it to elements that have another: on an H100
``(kv_idx - 132) // 4 == (q_idx - 132) // 4`` was wrong for 384 pairs of 384 queries and keys, in torch's own compiled
FlexAttention (2.11; pytorch#158212), and so are ``%``, `torch.fmod` and ``torch.div(rounding_mode=...)``. torch mends ``//``
and ``%`` in later releases. Indices of which Triton knows nothing come out right in all.
"""

import torch
from torch import Tensor

from maskloom.program.answers import check_answer
from maskloom.program.program import MaskMod
from maskloom.program.under_compile import divides
from maskloom.scores.base import ScoreMod


def dividing_mask(mask_mod: MaskMod, device: torch.device) -> MaskMod:
    """The mask_mod in a form that divides rightly; itself where it does not divide. Called while torch.compile traces.

    Raises:
        TypeError: it answers with something else than a bool, which a kernel would take for one.
    """
    index = _index(device)
    if not divides(mask_mod, index, index, index, index, check=check_answer):
        return mask_mod

    def asked(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return mask_mod(b, h, _unforeseen(q_idx), _unforeseen(kv_idx))

    return asked


def dividing_score(score_mod: ScoreMod, device: torch.device) -> ScoreMod:
    """A score_mod likewise."""
    index = _index(device)
    if not divides(score_mod, torch.zeros((), device=device), index, index, index, index):
        return score_mod

    def bent(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score_mod(score, b, h, _unforeseen(q_idx), _unforeseen(kv_idx))

    return bent


def _unforeseen(index: Tensor) -> Tensor:
    """The index itself, from 0 up to 2^31, by operations that Triton's analysis does not follow."""
    return index ^ (index >> 31)


def _index(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=device)
