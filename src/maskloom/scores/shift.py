"""Score mods at other positions and heads: a score mod with offsets."""

from collections.abc import Sequence

from torch import Tensor

from maskloom.core.checks import head_offset, is_zero, position_offsets
from maskloom.core.symbols import is_int
from maskloom.core.values import shown
from maskloom.masks.lookups import of_row
from maskloom.scores.base import (
    ScoreMod,
    ScoreValue,
    checked_score_mod,
    is_by_distance,
    name_of,
    only_adds,
    score_dataclass,
)
from maskloom.scores.softcap import SoftCap


@score_dataclass
class ShiftedScore(ScoreValue):
    """See `shifted_score`."""

    score_mod: ScoreMod
    q_offset: int | Tensor
    kv_offset: int | Tensor
    h_offset: int | Tensor | None

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_idx, kv_idx = q_idx + of_row(self.q_offset, b), kv_idx + of_row(self.kv_offset, b)
        return self.score_mod(score, b, h if self.h_offset is None else h + self.h_offset, q_idx, kv_idx)

    def __repr__(self) -> str:
        positions = {"q_offset": self.q_offset, "kv_offset": self.kv_offset}
        offsets = [f"{name}={shown(offset)}" for name, offset in positions.items() if not is_zero(offset)]
        if self.h_offset is not None:
            offsets.append(f"h_offset={shown(self.h_offset)}")
        return f"shifted_score({', '.join([name_of(self.score_mod), *offsets])})"

    @property
    def adds(self) -> bool:
        return only_adds(self.score_mod)

    @property
    def is_by_distance(self) -> bool:
        return is_by_distance(self.score_mod)

    def check_heads(self, heads: int, *, or_more: bool = False) -> None:
        if isinstance(self.score_mod, ScoreValue):
            first = self.h_offset if is_int(self.h_offset) else 0  # a tensor is not read
            self.score_mod.check_heads(first + heads, or_more=or_more or self.h_offset is not None)


def shifted_score(
    score_mod: ScoreMod,
    *,
    q_offset: int | Tensor | Sequence[int] = 0,
    kv_offset: int | Tensor | Sequence[int] = 0,
    h_offset: int | Tensor | None = None,
) -> ScoreMod:
    """The score mod for queries, keys and heads that do not start at 0, as `shifted` is for masks.

    ::

        shifted_score(alibi(8), q_offset=2), head 0   k0    k1    k2    k3
                                                  q0  -1   -1/2    0   1/2
                                                  q1 -3/2   -1   -1/2   0

    For decoding and prefill in chunks, where query 0 is not the first position, and for a tensor-parallel rank that
    holds heads 4 to 7 of 8: ``shifted_score(alibi(8), h_offset=4)``. The mask must be shifted separately.

    Args:
        score_mod: maskloom's or a plain function.
        q_offset: the position of the first query: an int, an int32 or int64 tensor without dimensions, or integers
            (B,), one for each batch row. A tensor may change between steps without recompilation.
        kv_offset: the position of the first key, in the same forms.
        h_offset: the first head, an int from 0 on, or an int32 or int64 tensor without dimensions. None: these are all
            heads. (0 says that there may be more heads than these.)

    Raises:
        TypeError, ValueError: an offset of another type or shape, or an object that is not a score_mod.
    """
    checked_score_mod(score_mod)
    offsets = position_offsets(q_offset, kv_offset)
    heads = None if h_offset is None else head_offset(h_offset)
    if isinstance(score_mod, SoftCap):  # it does not depend on indices
        return score_mod
    return score_mod if heads is None and all(map(is_zero, offsets)) else ShiftedScore(score_mod, *offsets, heads)
