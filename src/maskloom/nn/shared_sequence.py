"""Attention of a module over rows of a sequence that several ranks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from maskloom.attention.zeros import zeros_backward, zeros_both_ways
from maskloom.nn.call import AttendOptions, MultiheadOutput
from maskloom.nn.projections import Positions, ProjectedHeads


class SharedSequence(ABC):
    """What a module needs of a plan that shares one sequence among ranks: `maskloom.distributed.Plan` is one.

    Attributes:
        length: positions of the whole sequence.
        rows: of each rank.
        positions: integers (rows,), the position of each row of this rank.
        q_offset: the position of the first query in the mask.
    """

    length: int
    rows: int
    positions: Tensor
    q_offset: int = 0
    attend: Callable[..., Any]
    """`maskloom.attend` of the whole sequence, from rows and to rows."""

    @property
    @abstractmethod
    def hidden_rows(self) -> Tensor:
        """bool (B or 1, rows), True for padding that the mask hides from queries and keys, and for rows that only fill up."""


def multihead_by_plan(
    module: ProjectedHeads, x: Tensor, plan: SharedSequence, positions: Positions | None, options: AttendOptions
) -> MultiheadOutput:
    """Multi-head attention from the rows x (B, rows, d_in) of one rank.

    Args:
        positions: of the rows, for rotary: (rows,) or (B, rows); None for those of the plan.
        options: with what the module has itself.

    Raises:
        TypeError, ValueError: a plan with a q_offset, x of another length, positions of another shape.
    """
    if plan.q_offset:
        raise ValueError(
            f"the plan's queries begin at position {plan.q_offset} (q_offset), and the module's rows are queries and keys: "
            "make the plan without q_offset, or call plan.attend"
        )
    if x.ndim != 3 or x.shape[1:] != (plan.rows, module.d_in):
        raise ValueError(
            f"x has the rows of one rank, (batch, {plan.rows}, {module.d_in}), as plan.shard makes them; got {tuple(x.shape)}"
        )
    if isinstance(positions, tuple):
        raise TypeError("with a plan positions are those of the rows, one tensor: there is no context")
    hidden = plan.hidden_rows[..., None]
    x = zeros_both_ways(x, hidden)
    queries, keys, values = module.projected(x, None)
    if module.rotary is not None:
        at = plan.positions if positions is None else positions
        angles = module.rotary.angles(at, (x.shape[0], plan.rows), x.device, length=plan.length)
        queries, keys = module.rotary.turned(queries, angles), module.rotary.turned(keys, angles)
    passed = {name: option for name, option in options.items() if name not in ("q_offset", "return_aux")}
    out = module.combined(plan.attend(queries, keys, values, **passed), x)
    out = zeros_backward(out, hidden) if options.get("clean_padding") else out
    return MultiheadOutput(out, queries, keys)


def check_goes_with_plan(options: AttendOptions, **given: Any) -> None:
    """Raise a ValueError for arguments of the module that do not go with a plan."""
    for name, value in {**given, "q_offset": options.get("q_offset")}.items():
        if value is not None and value is not False:
            raise ValueError(f"with a plan, which is of one sequence that attends to itself, give no {name}")
