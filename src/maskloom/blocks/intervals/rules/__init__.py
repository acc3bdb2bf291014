"""Interval rules: one rule per aten operation, in `RULES`.

A rule gets the operation and its arguments, with Intervals for tensors. It returns an Interval, or None if it does not
know (the result is then unknown). It must hold for all values inside the intervals.

Integers are computed in int64 and checked against the range of the result's dtype, since narrow types wrap around.
Float ends are computed by the same operation in the same dtype: rounding to nearest is monotone (IEEE 754-2019, section
4.3), so a rounded end bounds every rounded element.
"""

from typing import Any

import torch

from maskloom.blocks.intervals.rules import arithmetic, division, logic, shapes
from maskloom.blocks.intervals.rules.operands import Rule as Rule
from maskloom.program.batched import SHAPES

_aten = torch.ops.aten

_MINIMUM = arithmetic.from_ends(arithmetic.smaller, logic.conjunction)
_MAXIMUM = arithmetic.from_ends(arithmetic.greater, logic.disjunction)

RULES: dict[Any, Rule] = {
    _aten.add: arithmetic.moving_runs(
        arithmetic.from_ends(lambda los, his: (los[0] + los[1], his[0] + his[1]), logic.disjunction), 1
    ),
    _aten.sub: arithmetic.moving_runs(arithmetic.from_ends(lambda los, his: (los[0] - his[1], his[0] - los[1])), -1),
    _aten.rsub: arithmetic.from_ends(lambda los, his: (los[1] - his[0], his[1] - los[0])),
    _aten.neg: arithmetic.from_ends(lambda los, his: (-his[0], -los[0])),
    _aten.mul: arithmetic.from_ends(arithmetic.products, logic.conjunction),
    _aten.abs: arithmetic.from_ends(arithmetic.absolute),
    _aten.minimum: _MINIMUM,
    _aten.maximum: _MAXIMUM,
    _aten.clamp: arithmetic.clamp,
    _aten.clamp_min: lambda op, value, least: arithmetic.clamp(op, value, least),
    _aten.clamp_max: lambda op, value, most: arithmetic.clamp(op, value, None, most),
    _aten.pow: arithmetic.power,
    _aten.square: lambda op, value: arithmetic.power(op, value, 2),
    _aten.div: division.quotient,
    _aten.floor_divide: division.floor_quotient,
    _aten.remainder: division.remainder,
    _aten.bitwise_left_shift: division.shift_left,
    _aten.__lshift__: division.shift_left,
    _aten.bitwise_right_shift: division.shift_right,
    _aten.__rshift__: division.shift_right,
    _aten.bitwise_and: logic.conjunction,
    _aten.bitwise_or: logic.disjunction,
    _aten.bitwise_xor: logic.exclusive,
    _aten.bitwise_not: logic.negation,
    _aten.logical_and: logic.as_bools(logic.conjunction),
    _aten.logical_or: logic.as_bools(logic.disjunction),
    _aten.logical_xor: logic.as_bools(logic.exclusive),
    _aten.logical_not: logic.as_bools(logic.negation),
    _aten.lt: logic.less,
    _aten.le: logic.less_or_equal,
    _aten.gt: logic.swapped(logic.less),
    _aten.ge: logic.swapped(logic.less_or_equal),
    _aten.eq: logic.equal,
    _aten.ne: logic.unequal,
    _aten.isnan: logic.is_nan,
    _aten.where: shapes.chosen_by_condition,
    _aten._to_copy: shapes.to_copy,
    _aten.floor: shapes.by_ends,
    _aten.ceil: shapes.by_ends,
    _aten.round: shapes.by_ends,
    _aten.trunc: shapes.by_ends,
    _aten.sqrt: shapes.root,
    _aten.any: shapes.any_or_all,
    _aten.all: shapes.any_or_all,
    _aten.amin: shapes.extreme,
    _aten.amax: shapes.extreme,
    _aten.min: shapes.extreme_or(_MINIMUM),
    _aten.max: shapes.extreme_or(_MAXIMUM),
    _aten.sum: shapes.total,
    _aten.index: shapes.lookup,
    **dict.fromkeys(SHAPES, shapes.reshaped),
    **dict.fromkeys((_aten.clone, _aten.detach, _aten.alias, _aten.lift_fresh), shapes.identity),
}
"""Overload packet → rule. The result of an operation without a rule is unknown; tiles that depend on it are evaluated."""
