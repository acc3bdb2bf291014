"""The slots of a key-value cache as masks and score mods see them: which position lies in which slot."""

from torch import Tensor

from maskloom.masks.algebra import Everything, Mask, Placing, and_masks, everything, mask_dataclass, shown
from maskloom.masks.signed import from_zero
from maskloom.program.answers import ask
from maskloom.scores.base import ScoreMod, ScoreValue, name_of, score_dataclass
from maskloom.scores.softcap import SoftCap


@mask_dataclass
class Slots(Placing):
    """What the queries of one `append` may see of a cache: what is written; and other masks, at the true positions.

    ::

        causal & Slots, 2 tokens after 3       s0 s1 s2 s3 s4 s5        a rolling cache of 4 slots, window 3, 1 token after 6
                               q0, position 3   x  x  x  x                                            s0 s1 s2 s3
                               q1, position 4   x  x  x  x  x                          q0, position 6   x  x  x
                                                                       (slots 0 to 3 hold positions 4, 5, 6, 3)

    Attributes:
        mask: the masks that were joined to it by ``&``, of true positions.
        q_positions: integers (B, Q), the position of each query, -1 for padding, which sees nothing.
        written: integers (B,), the tokens that were written to each row.
        kv_positions: integers (B, K), the position in each slot, -1 for none; None where a rule says it: slot s holds
            position s, or in a ring the last position that is s modulo ``ring``.
        ring: the slots of a rolling cache; None for one that is not.
        window: the keys that a query may see, itself and those before it; None for any number.
    """

    mask: Mask
    q_positions: Tensor
    written: Tensor
    kv_positions: Tensor | None
    ring: int | None
    window: int | None

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        query, key = self.q_positions[b, q_idx], self.key_at(b, kv_idx)
        seen = (query >= 0) & self.is_written(b, key)
        if self.window is not None:
            seen = seen & (key > query - self.window)
        if isinstance(self.mask, Everything):
            return seen
        return seen & ask(self.mask, b, h, from_zero(query), self._from_zero(b, key))

    def places(self, b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> tuple[Tensor, Tensor]:
        """The true positions of a query and a slot; 0 where there is none, so that no table is read out of bounds."""
        return from_zero(self.q_positions[b, q_idx]), self._from_zero(b, self.key_at(b, kv_idx))

    def is_written(self, b: Tensor, key: Tensor) -> Tensor:
        """Whether a token lies in a slot, from the position that would be its."""
        return key < self.written[b] if self._is_plain else key >= 0

    def _from_zero(self, b: Tensor, key: Tensor) -> Tensor:
        return key * self.is_written(b, key).to(key.dtype)

    @property
    def _is_plain(self) -> bool:
        """Whether slot s holds position s."""
        return self.ring is None and self.kv_positions is None

    def key_at(self, b: Tensor, kv_idx: Tensor) -> Tensor:
        """The position in a slot; negative in one that a ring has not come to."""
        if self.kv_positions is not None:
            return self.kv_positions[b, kv_idx]
        if self.ring is None:
            return kv_idx
        last = self.written[b] - 1
        return (
            last - (last + self.ring - kv_idx) % self.ring
        )  # never of a negative number, which kernels divide their way

    def around(self, mask: Mask) -> "Slots":
        return Slots(and_masks(self.mask, mask), *self._fields_of_slots)

    @property
    def _fields_of_slots(self) -> tuple[Tensor, Tensor, Tensor | None, int | None, int | None]:
        return self.q_positions, self.written, self.kv_positions, self.ring, self.window

    def placed(self, score_mod: ScoreMod) -> ScoreMod:
        if isinstance(score_mod, (PlacedScore, SoftCap)):  # the second does not depend on positions
            return score_mod
        return PlacedScore(score_mod, Slots(everything, *self._fields_of_slots))

    def __repr__(self) -> str:
        slots = f"slots({shown(self.q_positions)}, written={shown(self.written)})"
        return slots if isinstance(self.mask, Everything) else f"({self.mask!r}) & {slots}"


@score_dataclass
class PlacedScore(ScoreValue):
    """A score mod of true positions, for the queries and slots of a cache. Made by `Slots.placed`."""

    score_mod: ScoreMod
    slots: Slots

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.score_mod(score, b, h, *self.slots.places(b, q_idx, kv_idx))

    def __repr__(self) -> str:
        return f"placed({name_of(self.score_mod)})"

    def check_heads(self, heads: int, *, or_more: bool = False) -> None:
        if isinstance(self.score_mod, ScoreValue):
            self.score_mod.check_heads(heads, or_more=or_more)
