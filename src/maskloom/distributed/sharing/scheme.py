"""One way to share a sequence among ranks, and what it costs."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from maskloom.distributed.sharing.assignment import Assignment, balance_of

StrategyName = Literal["heads", "gather", "needed"]
NAMES: tuple[StrategyName, ...] = get_args(StrategyName)

_FLOPS, _BYTES = 4e14, 2e11
"""What "auto" takes a GPU to compute, and to receive, in a second: an H200 with NVLink. Their ratio decides."""


class Sizes(NamedTuple):
    """What is to be planned for.

    Attributes:
        length: positions.
        heads, kv_heads: of queries, and of keys and values.
        head_dim: features of a head.
        itemsize: bytes of a number.
        batch: rows; 1 where they are not known.
    """

    length: int
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int
    batch: int


def computing(tiles: float, unit: int, sizes: Sizes) -> float:
    """Seconds for so many tiles times heads."""
    return 4 * tiles * unit**2 * sizes.head_dim / _FLOPS


@dataclass(frozen=True)
class Scheme:
    """One way to share a sequence.

    Attributes:
        names: a strategy for each dimension of the mesh.
        parts: ranks that share the heads of a group, 1 without "heads".
        groups: groups that share the rows, 1 with "heads" alone.
        rows: of each rank.
        assignment: query tiles of the groups; None of one group.
        loads: tiles times heads that each rank visits, by group and part.
        received: bytes that each rank receives in one forward pass, by group and part.
        foreign: with "needed" for each group bool (key tiles,), those that it needs of others.
    """

    names: tuple[StrategyName, ...]
    parts: int
    groups: int
    rows: int
    assignment: Assignment | None
    loads: tuple[int, ...]
    received: tuple[int, ...]
    foreign: tuple[Tensor, ...] | None = None

    @property
    def balance(self) -> float:
        """The tiles of the busiest rank over the mean."""
        return balance_of(self.loads)

    @property
    def bytes(self) -> int:
        """Bytes that the rank which receives most receives in one forward pass."""
        return max(self.received)

    def seconds(self, unit: int, sizes: Sizes) -> float:
        """The estimate that "auto" compares: computing and receiving, one after the other."""
        return computing(max(self.loads), unit, sizes) + self.bytes / _BYTES

    def least_seconds(self, unit: int, sizes: Sizes) -> float:
        """That of even work and of nothing that moves: no other runs are faster."""
        return computing(sum(self.loads) / len(self.loads), unit, sizes)

    @property
    def said(self) -> str:
        """The strategy in words."""
        return " × ".join(self.names)
