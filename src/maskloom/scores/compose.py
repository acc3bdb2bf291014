"""Several score mods in sequence."""

from torch import Tensor

from maskloom.scores.base import (
    ScoreMod,
    ScoreValue,
    checked_score_mod,
    is_by_distance,
    name_of,
    only_adds,
    score_dataclass,
)


@score_dataclass
class Composed(ScoreValue):
    """See `compose`."""

    parts: tuple[ScoreMod, ...]

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for part in self.parts:
            score = part(score, b, h, q_idx, kv_idx)
        return score

    def __repr__(self) -> str:
        return f"compose({', '.join(map(name_of, self.parts))})"

    @property
    def adds(self) -> bool:
        return all(map(only_adds, self.parts))

    @property
    def is_by_distance(self) -> bool:
        return all(map(is_by_distance, self.parts))

    def check_heads(self, heads: int, *, or_more: bool = False) -> None:
        for part in self.parts:
            if isinstance(part, ScoreValue):
                part.check_heads(heads, or_more=or_more)


def compose(*score_mods: ScoreMod) -> ScoreMod:
    """Score mods applied from left to right: ``compose(f, g)`` is ``g(f(score))``, each with the same four indices.

    ::

        compose(softcap(50.0), alibi(8))    50 * tanh(score / 50) + slope[h] * (kv_idx - q_idx)
        compose(alibi(8), softcap(50.0))    50 * tanh((score + slope[h] * (kv_idx - q_idx)) / 50)

    It is flat: ``compose(f, compose(g, h))`` equals ``compose(f, g, h)``, and ``compose(f)`` is f.

    Args:
        score_mods: one or more, maskloom's or plain functions. A composition with a plain function pickles if the
            function does.

    Raises:
        TypeError: an argument that cannot be called with five arguments. ValueError: no arguments.
    """
    if not score_mods:
        raise ValueError("compose takes one or more score_mods; got none")
    parts: list[ScoreMod] = []
    for score_mod in map(checked_score_mod, score_mods):
        parts.extend(score_mod.parts if isinstance(score_mod, Composed) else (score_mod,))
    return parts[0] if len(parts) == 1 else Composed(tuple(parts))
