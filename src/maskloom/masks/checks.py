"""Checks of what masks are made from. Each returns the checked value, or raises with the name and value that is wrong.

Values are looked at only where they lie on the CPU, and not while torch compiles: a check never waits for a device.
"""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor


def count(name: str, value: object, *, least: int = 0, of: str = "positions") -> int:
    """A number of positions (or of what ``of`` says): a Python int, at least ``least``."""
    number = integer(name, value, f"a number of {of}")
    if number < least:
        raise ValueError(f"{name} is a number of {of}, at least {least}; got {number}")
    return number


def integer(name: str, value: object, what: str) -> int:
    """A Python int, which is ``what``."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or isinstance(value, Tensor):
        raise TypeError(f"{name} is {what}, an int; got {type(value).__name__}: {value!r}")
    return operator.index(value)


def count_by_row(name: str, value: int | Tensor | Sequence[int]) -> int | Tensor:
    """A number of positions: one int for all batch rows, or integers (B,); none negative."""
    if isinstance(value, SupportsIndex) and not isinstance(value, Tensor):
        return count(name, value)
    return length_table(name, value)


def length_table(name: str, value: Tensor | Sequence[int]) -> Tensor:
    """Lengths: integers (B,), none negative."""
    table = integers(name, value)
    if table.ndim != 1 or table.numel() == 0:
        raise ValueError(f"{name} has one length for each batch row, shape (B,); got shape {tuple(table.shape)}")
    if readable(table) and bool((table < 0).any()):
        raise ValueError(f"{name} are numbers of positions, at least 0; got {int(table.min())}")
    return table


def flags(name: str, value: Tensor, *, true_means: str, or_one_row: bool = False) -> Tensor:
    """A table of yes and no: bool (B, L); with ``or_one_row`` also (L,), the same for all batch rows."""
    shape, ranks = ("(L,) or (B, L)", (1, 2)) if or_one_row else ("(B, L)", (2,))
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a bool tensor {shape}, True = {true_means}; got {type(value).__name__}")
    if value.dtype != torch.bool:
        raise TypeError(f"{name} is a bool tensor, True = {true_means}; got {value.dtype}")
    if value.ndim not in ranks or value.numel() == 0:
        raise ValueError(f"{name} has shape {shape}, True = {true_means}; got {tuple(value.shape)}")
    return value


def integers(name: str, value: Any) -> Tensor:
    """Integers as a tensor, from a tensor or a sequence."""
    table = value if isinstance(value, Tensor) else torch.tensor(value)  # a copy: a mask does not change
    if table.dtype not in INTEGERS:
        raise TypeError(f"{name} are integers; got {table.dtype}")
    return table


def integers_by_position(name: str, value: Any) -> Tensor:
    """Integers for each position, from a tensor or a sequence: (L,), or (B, L)."""
    table = integers(name, value)
    if table.ndim not in (1, 2) or table.numel() == 0:
        raise ValueError(f"{name} has shape (L,) or (B, L); got {tuple(table.shape)}")
    return table


INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def readable(table: Tensor) -> bool:
    """Whether a check may look at the values of a tensor."""
    return table.device.type == "cpu" and not torch.compiler.is_compiling()
