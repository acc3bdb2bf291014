"""The operands of a mask, and their programs as instructions of the page."""

from dataclasses import dataclass
from typing import Any

import torch

from maskloom.core import captures
from maskloom.masks.algebra import And, Mask, Not, Or, Xor, joined_parts
from maskloom.program.batched import SHAPES, ambiguous
from maskloom.program.mask_program import program_of
from maskloom.program.program import Op
from maskloom.show.explorer.instructions import Instructions, NotInThePageError
from maskloom.show.explorer.lowering import Lowering, of_tables, shaped
from maskloom.show.explorer.rules import RULES

_JOINS: dict[type[Mask], str] = {And: "and", Or: "or", Xor: "xor"}


@dataclass(frozen=True)
class Operand:
    """One operand of a mask.

    Attributes:
        mask: the operand.
        slot: the slot of its answer; None if the page cannot run it.
        reason: why it cannot.
    """

    mask: Mask
    slot: int | None
    reason: str | None = None


def operands_of(mask: Mask) -> tuple[dict[str, Any], list[Mask]]:
    """The mask as an expression, and its operands in the order of their numbers there."""
    found: list[Mask] = []

    def walk(part: Mask) -> dict[str, Any]:
        if isinstance(part, Not):
            return {"join": "not", "of": [walk(part.part)]}
        if type(part) in _JOINS:
            return {"join": _JOINS[type(part)], "of": [walk(inner) for inner in joined_parts(part)]}
        found.append(part)
        return {"leaf": len(found) - 1}

    return walk(mask), found


def lowered(out: Instructions, mask: Mask, rows: set[int], heads: set[int]) -> Operand:
    """Add an operand's program to the instructions, for these batch rows and heads."""
    mark = out.mark()
    try:
        source = program_of(mask, captures.device_of(mask) or torch.device("cpu"))
        if source.is_mapped:
            raise NotInThePageError("torch.vmap maps over one of its tensors")
        return Operand(mask, _answer(Lowering(out, source.program.without_unused(), rows, heads)))
    except NotInThePageError as error:
        out.back(mark)
        return Operand(mask, None, str(error))


def _answer(lowering: Lowering) -> int:
    program = lowering.program
    if program.unsupported_reason is not None:
        raise NotInThePageError(f"it has {program.unsupported_reason}")
    for step in program.steps:
        if ambiguous(step, program):
            raise NotInThePageError(f"torch.vmap promotes the types in {_name(step)} in a way of its own")
        results = of_tables(lowering, step) or _by_rule(lowering, step)
        lowering.values.update(zip(step.results, results, strict=True))
    return int(lowering.slots(program.answer).slots)


def _by_rule(lowering: Lowering, step: Op) -> Any:
    packet = step.op.overloadpacket
    if packet in SHAPES:
        return shaped(lowering, step)
    if packet not in RULES:
        raise NotInThePageError(f"{_name(step)} is not known to give the same numbers in a browser")
    return RULES[packet](lowering, step)


def _name(step: Op) -> str:
    return step.op.overloadpacket.__name__
