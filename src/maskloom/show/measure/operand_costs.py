"""What each operand of a mask costs: the tiles that it makes attention visit, and the work inside a tile."""

from dataclasses import dataclass

import torch

from maskloom.blocks.build import block_mask
from maskloom.blocks.inspect import density
from maskloom.core import captures
from maskloom.masks.algebra import Mask, joined_parts
from maskloom.program.mask_program import program_of


@dataclass(frozen=True)
class OperandCost:
    """What one operand of a mask costs.

    Attributes:
        mask: the operand.
        operations: how many operations its answer for one pair takes, where a tile is partial.
        alone: the share of pairs in visited tiles if the mask was this operand alone, in percent.
        without: the same if the mask was all other operands.
    """

    mask: Mask
    operations: int
    alone: float
    without: float


def operand_costs(mask: Mask, q_len: int, kv_len: int, *, block_size: int | tuple[int, int] = 128) -> list[OperandCost]:
    """What each operand of ``a & b``, ``a | b`` or ``a ^ b`` costs, in the order of the mask; empty for other masks."""

    def visited(some: Mask) -> float:
        return density(block_mask(some, q_len, kv_len, block_size=block_size))

    parts = joined_parts(mask)
    found = []
    for place, part in enumerate(parts):
        others = type(mask)((*parts[:place], *parts[place + 1 :]))  # type: ignore[call-arg]
        found.append(OperandCost(part, _operations(part), visited(part), visited(others)))
    return found


def _operations(mask: Mask) -> int:
    return len(program_of(mask, captures.device_of(mask) or torch.device("cpu")).program.steps)


def in_words(costs: list[OperandCost]) -> str:
    """A table of costs, for ``print``."""
    names = [repr(cost.mask) if len(repr(cost.mask)) <= 48 else repr(cost.mask)[:47] + "…" for cost in costs]
    width = max(map(len, [*names, "operand"]))
    lines = [f"{'operand':<{width}}  operations  visited alone  visited without it"]
    for name, cost in zip(names, costs, strict=True):
        lines.append(f"{name:<{width}}{cost.operations:>12}{cost.alone:>13.1f} %{cost.without:>18.1f} %")
    return "\n".join(lines)
