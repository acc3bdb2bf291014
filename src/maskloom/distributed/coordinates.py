"""Masks and score mods of a whole sequence, asked by the indices of one rank's tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.core.values import FrozenValue, value
from maskloom.masks.algebra import Mask, Placing, and_masks, mask_dataclass, shown
from maskloom.program.answers import ask
from maskloom.scores.base import ScoreMod, ScoreValue, name_of, only_adds, score_dataclass
from maskloom.scores.softcap import SoftCap


@value
class Run(FrozenValue):
    """Positions one behind the other: what a kernel adds is cheaper than what it reads.

    Attributes:
        first: int32 (B,), the first one in each batch row: FLASH reads no tensors without dimensions.
    """

    first: Tensor
    name = "run"
    runs_in_flash = True

    def at(self, b: Tensor, index: Tensor) -> Tensor:
        """The position of an index."""
        return index + self.first[b]


@value
class TwoRuns(FrozenValue):
    """Positions in two runs. Of the positions 0, 1, 6 and 7 the split is 2, what is added first 0, and then 4.

    Attributes:
        first: int32 (B,), what is added to indices below ``split``.
        split: int32 (B,), the first index of the second run.
        second: int32 (B,), what is added from there on. Neither is negative where positions are not, so that reads of tables at positions
            are known not to be.
    """

    first: Tensor
    split: Tensor
    second: Tensor
    name = "two_runs"
    runs_in_flash = True

    def at(self, b: Tensor, index: Tensor) -> Tensor:
        """The position of an index."""
        return index + torch.where(index >= self.split[b], self.second[b], self.first[b])


Positions = Tensor | Run | TwoRuns


class Coordinates(NamedTuple):
    """Where the rows of a rank's tensors lie in the whole.

    Attributes:
        q_positions: int32 (Q,), the position of each query, or runs; None where that is its index.
        kv_positions: int32 (K,), the same of keys.
        b_offset, h_offset: the first batch row, and the first query head; None: these are all. (0 says that there may be more.)
    """

    q_positions: Positions | None = None
    kv_positions: Positions | None = None
    b_offset: int | None = None
    h_offset: int | None = None

    @property
    def are_whole(self) -> bool:
        """Whether indices are coordinates already."""
        return all(one is None for one in self)

    def of(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The global indices of local ones."""
        return (
            b if self.b_offset is None else b + self.b_offset,
            h if self.h_offset is None else h + self.h_offset,
            _position(self.q_positions, b, q_idx),
            _position(self.kv_positions, b, kv_idx),
        )


def _position(positions: Positions | None, b: Tensor, index: Tensor) -> Tensor:
    if positions is None:
        return index
    return positions[index] if isinstance(positions, Tensor) else positions.at(b, index)


@mask_dataclass
class AtRank(Placing):
    """A mask of the whole sequence, for the queries and keys that one rank holds.

    ::

        causal, positions 0, 1, 6, 7 of the queries   k0 k1 k2 k3 k4 k5 k6 k7
                                                 q0   x
                                                 q1   x  x
                                                 q2   x  x  x  x  x  x  x
                                                 q3   x  x  x  x  x  x  x  x

    Attributes: ``mask``, of the whole; the others are those of `Coordinates`.
    """

    mask: Mask
    q_positions: Positions | None
    kv_positions: Positions | None
    b_offset: int | None
    h_offset: int | None

    runs_in_flash = True

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ask(self.mask, *self.coordinates.of(b, h, q_idx, kv_idx))

    @property
    def coordinates(self) -> Coordinates:
        """Where the rows lie in the whole."""
        return Coordinates(self.q_positions, self.kv_positions, self.b_offset, self.h_offset)

    def around(self, mask: Mask) -> "AtRank":
        return AtRank(and_masks(self.mask, mask), *self.coordinates)

    def placed(self, score_mod: ScoreMod) -> ScoreMod:
        return placed_score(score_mod, self.coordinates)

    def __repr__(self) -> str:
        tables = {"q_positions": self.q_positions, "kv_positions": self.kv_positions}
        said = [f"{name}={shown(table)}" for name, table in tables.items() if table is not None]
        offsets = {"b_offset": self.b_offset, "h_offset": self.h_offset}
        said += [f"{name}={offset}" for name, offset in offsets.items() if offset is not None]
        return f"at_rank({', '.join([repr(self.mask), *said])})"


@score_dataclass
class ScoreAtRank(ScoreValue):
    """A score mod of the whole sequence, for the queries and keys that one rank holds. Made by `placed_score`."""

    score_mod: ScoreMod
    q_positions: Positions | None
    kv_positions: Positions | None
    b_offset: int | None
    h_offset: int | None

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        held = Coordinates(self.q_positions, self.kv_positions, self.b_offset, self.h_offset)
        return self.score_mod(score, *held.of(b, h, q_idx, kv_idx))

    def __repr__(self) -> str:
        return f"at_rank({name_of(self.score_mod)})"

    @property
    def adds(self) -> bool:
        return only_adds(self.score_mod)

    def check_heads(self, heads: int, *, or_more: bool = False) -> None:
        if isinstance(self.score_mod, ScoreValue):
            self.score_mod.check_heads((self.h_offset or 0) + heads, or_more=or_more or self.h_offset is not None)


def placed_mask(mask: Mask, at: Coordinates) -> Mask:
    """The mask for a rank's tensors; itself where indices are coordinates."""
    return mask if at.are_whole else AtRank(mask, *at)


def placed_score(score_mod: ScoreMod, at: Coordinates) -> ScoreMod:
    """The score mod for a rank's tensors; itself where indices are coordinates."""
    if at.are_whole or isinstance(score_mod, (ScoreAtRank, SoftCap)):  # the last does not depend on indices
        return score_mod
    return ScoreAtRank(score_mod, *at)
