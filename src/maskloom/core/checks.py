"""Checks of the arguments of masks. Each returns the checked value, or raises an error with the wrong name and value.

Values are read only on the CPU, and not while torch traces: a check never waits for a device.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypeGuard

import torch
from torch import Tensor

from maskloom.core.symbols import is_int, known
from maskloom.core.torch_state import counting_writes, is_tracing
from maskloom.core.words import brief


def count(name: str, value: object, *, least: int = 0, of: str = "positions") -> int:
    """A number of positions (or of ``of``): an int, at least ``least``."""
    number = integer(name, value, f"a number of {of}")
    if known(number < least):
        raise ValueError(f"{name} is a number of {of}, at least {least}; got {number}")
    return number


def positive(name: str, value: object) -> int:
    """A positive number of positions: an int, at least 1."""
    return count(name, value, least=1)


def per_axis(name: str, value: int | Sequence[int], axes: int, *, least: int = 1) -> tuple[int, ...]:
    """A number of positions for each of ``axes`` axes; one int is used for all axes."""
    check = positive if least else count
    value = as_list(value)
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        return (check(name, value),) * axes
    if len(value) != axes:
        raise ValueError(f"{name} has one number for each of the {axes} axes; got {brief(value)}")
    return tuple(check(name, number) for number in value)


MOST_NUMBER = 2**30
"""The largest offset: kernels add positions to it in 32 bits."""


def integer(name: str, value: object, what: str, *, most: int = MOST_NUMBER) -> int:
    """An int, with absolute value at most ``most``: kernels add positions to it in 32 bits. Errors call it ``what``.

    A number that torch traces is returned as it is (`maskloom.core.symbols`): ``operator.index`` would make it a
    constant.
    """
    if not is_int(value) and not is_number(value):
        raise TypeError(f"{name} is {what}, an int; got {type(value).__name__}: {brief(value)}")
    number = value if is_int(value) else operator.index(value)
    if known(abs(number) > most):
        raise ValueError(f"{name} is {what}, at most {most} in size; got {number}")
    return number


def is_number(value: object) -> TypeGuard[SupportsIndex]:
    """Whether it is one integer of Python or NumPy (also an array without dimensions). A bool or a tensor is not."""
    return isinstance(value, SupportsIndex) and not (isinstance(value, (bool, Tensor)) or _is_array(value))


def as_int(value: Any) -> Any:
    """A NumPy integer as an int, for torch; everything else unchanged."""
    if value is None or is_int(value) or isinstance(value, int) or not is_number(value):
        return value
    return operator.index(value)


def as_list(value: Any) -> Any:
    """An array with dimensions as a list; everything else unchanged."""
    return value.tolist() if _is_array(value) else value


def _is_array(value: Any) -> bool:
    """Whether it is an array with dimensions, such as NumPy's, and not a tensor."""
    # numbers first: while torch compiles, the value may be a symbol, which has no attributes
    if is_int(value) or isinstance(value, (int, float, Tensor)):
        return False
    return getattr(value, "ndim", None) not in (None, 0)


def count_by_row(name: str, value: int | Tensor | Sequence[int]) -> int | Tensor:
    """A number of positions, not negative: one int for all batch rows, or integers (B,)."""
    if is_int(value):
        return count(name, value)
    rows = as_list(value)
    if isinstance(rows, Tensor) or (isinstance(rows, Sequence) and not isinstance(rows, str)):
        return length_table(name, rows)
    return count(name, rows)


def position_offset(name: str, offset: int | Tensor | Sequence[int]) -> int | Tensor:
    """The position of the first entry: an int, an int32 or int64 tensor without dimensions, or integers (B,).

    A tensor of one element, in any shape, fits any batch: a view without dimensions is returned.
    """
    if isinstance(offset, (list, tuple)) or _is_array(offset):
        offset = integers(name, offset).long()
    checked = _offset(name, offset, "a position")
    if isinstance(checked, Tensor) and checked.ndim > 1:
        raise ValueError(f"{name} is one position, or one for each batch row, (B,); got shape {tuple(checked.shape)}")
    return checked


def position_offsets(
    q_offset: int | Tensor | Sequence[int], kv_offset: int | Tensor | Sequence[int]
) -> tuple[int | Tensor, int | Tensor]:
    """The positions of the first query and of the first key; one object given twice is returned twice."""
    if type(q_offset) is type(kv_offset) is int and is_zero(q_offset) and is_zero(kv_offset):
        return 0, 0
    first_query = position_offset("q_offset", q_offset)
    return first_query, first_query if kv_offset is q_offset else position_offset("kv_offset", kv_offset)


def head_offset(offset: int | Tensor) -> int | Tensor:
    """The number of the first head: an int, at least 0, or an int32 or int64 tensor of one element."""
    checked = _offset("h_offset", offset, "a head")
    if isinstance(checked, Tensor):
        if checked.ndim:
            raise ValueError(f"h_offset is one head for all batch rows; got shape {tuple(checked.shape)}")
    elif known(checked < 0):
        raise ValueError(f"h_offset is a head, at least 0; got {checked}")
    return checked


def _offset(name: str, offset: Any, what: str) -> int | Tensor:
    if isinstance(offset, Tensor) and offset.dtype in (torch.int32, torch.int64):
        return offset.reshape(()) if offset.ndim and offset.numel() == 1 else offset
    if isinstance(offset, Tensor) or not (is_int(offset) or is_number(offset)):
        got = offset.dtype if isinstance(offset, Tensor) else brief(offset)
        raise TypeError(f"{name} is {what}, an int or int32 or int64 tensor; got {got}")
    return integer(name, offset, what)


def is_zero(offset: int | Tensor) -> bool:
    """Whether an offset is known to be 0 without reading a tensor."""
    if torch.compiler.is_dynamo_compiling():
        return type(offset) is int and known(offset == 0)
    return type(offset) is int and offset == 0


def may_be_negative(offset: int | Tensor) -> bool:
    """Whether a position at or after an offset may be negative; True for a tensor, which is not read."""
    return isinstance(offset, Tensor) or not known(offset >= 0)


def end_of(length: int, offset: int | Tensor) -> int | None:
    """The position after the last of ``length`` positions from an offset; None if that would wait for a device."""
    if not isinstance(offset, Tensor):
        return length + offset
    return length + int(offset.max()) if readable(offset) else None


def length_table(name: str, value: Tensor | Sequence[int]) -> Tensor:
    """Lengths: integers (B,), none negative. For an empty batch, an empty list is allowed."""
    none = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 0
    table = torch.zeros(0, dtype=torch.int64) if none or _is_empty_array(value) else integers(name, value)
    if table.ndim != 1:
        raise ValueError(f"{name} has one length for each batch row, shape (B,); got shape {tuple(table.shape)}")
    if readable(table) and bool((table < 0).any()):
        raise ValueError(f"{name} are numbers of positions, at least 0; got {int(table.min())}")
    return table


def _is_empty_array(value: Any) -> bool:
    return _is_array(value) and tuple(value.shape) == (0,)


def flags(name: str, value: Tensor, *, true_means: str, or_one_row: bool = False) -> Tensor:
    """A table of flags: bool (B, L); with ``or_one_row`` also (L,), the same for all batch rows."""
    shape, ranks = ("(L,) or (B, L)", (1, 2)) if or_one_row else ("(B, L)", (2,))
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a bool tensor {shape}, True = {true_means}; got {type(value).__name__}")
    if value.is_nested or value.layout is not torch.strided:
        raise TypeError(f"{name} is a dense bool tensor, True = {true_means}; got a {form_of(value)} one")
    if value.dtype != torch.bool:
        raise TypeError(f"{name} is a bool tensor, True = {true_means}; got {value.dtype}")
    if value.ndim not in ranks or value.shape[-1] == 0:
        raise ValueError(f"{name} has shape {shape}, True = {true_means}; got {tuple(value.shape)}")
    return value


def integers(name: str, value: Any) -> Tensor:
    """Integers as a tensor, from a tensor or a sequence."""
    table = value if isinstance(value, Tensor) else signed(name, copied(name, value, "integers"))
    if table.is_nested or table.layout is not torch.strided:
        raise TypeError(f"{name} are integers in a dense tensor; got a {form_of(table)} one")
    if table.dtype in UNSIGNED:
        raise TypeError(
            f"{name} are integers of a dtype that torch computes with, int64 for one; got {table.dtype}: give {name}.long()"
        )
    if table.dtype not in INTEGERS:
        raise TypeError(f"{name} are integers; got {table.dtype}")
    return table


def signed(name: str, table: Tensor) -> Tensor:
    """A tensor of unsigned integers as int64, in which torch has all operations; others unchanged.

    Raises:
        ValueError: a number that int64 does not have (values are read on the CPU only).
    """
    if table.dtype not in UNSIGNED:
        return table
    found = table.long()
    if table.dtype == torch.uint64 and readable(found) and bool((found < 0).any()):
        raise ValueError(f"{name} are at most 2**63 - 1, as int64 has them; got {int(found.min()) + (1 << 64)}")
    return found


@counting_writes
def copied(name: str, value: Any, what: str) -> Tensor:
    """A sequence of ``what`` as a tensor. An array is copied, since a mask does not change."""
    refuse_bools_among_numbers(name, value, what)
    try:
        table = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} are {what}, a tensor or a list of them; got {brief(value)} ({error})") from None
    if not table.numel():
        raise ValueError(f"{name} are {what}, at least one; got {brief(value)}")
    return table


def form_of(table: Tensor) -> str:
    """What a tensor is that is not dense: nested, or its layout."""
    return "nested" if table.is_nested else str(table.layout).removeprefix("torch.")


def refuse_bools_among_numbers(name: str, value: Any, what: str) -> None:
    """Raise a TypeError for a sequence of numbers and bools: torch and NumPy would take the bools for 0 and 1."""
    if _holds_bools(value) and _holds_bools(value, others=True):
        raise TypeError(f"{name} are {what}, and not numbers and bools together; got {brief(value)}")


def _holds_bools(value: Any, *, others: bool = False) -> bool:
    """Whether a sequence, or one in it at any depth, holds a bool; with ``others`` something else than bools."""
    if not isinstance(value, (list, tuple)):
        return _is_bool(value) is not others
    kinds = set(map(type, value))  # one pass in C: the list may be long
    return others if kinds and kinds <= {int, float} else any(_holds_bools(one, others=others) for one in value)


def _is_bool(value: object) -> bool:
    """Whether it is a bool, also NumPy's or a tensor's."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def by_position(name: str, table: Tensor, length: str = "L") -> Tensor:
    """A table with an entry for each position: (L,) for all batch rows, or (B, L). Errors call L ``length``."""
    if table.ndim not in (1, 2) or table.shape[-1] == 0:
        raise ValueError(f"{name} has shape ({length},) or (B, {length}); got {tuple(table.shape)}")
    return table


def integers_by_position(name: str, value: Any) -> Tensor:
    """Integers for each position, from a tensor or a sequence: (L,), or (B, L)."""
    return by_position(name, integers(name, value))


INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Integers that torch stores, and hardly computes with."""


def check_held(name: str, number: int, dtype: torch.dtype, whose: str) -> None:
    """Raise a ValueError for a number that an integer dtype, or bool, does not have: torch would take another one.

    Errors say that ``dtype`` is that of ``whose``.
    """
    if dtype != torch.bool and dtype not in INTEGERS:
        return
    limits = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if known(number < limits[0]) or known(number > limits[1]):
        raise ValueError(f"{name} is from {limits[0]} to {limits[1]}, as {whose} are {dtype}; got {number}")


def exactly_one(name: str, **choices: object) -> None:
    """Raise a TypeError unless one of the choices is given."""
    given = [choice for choice, value in choices.items() if value is not None]
    if len(given) != 1:
        raise TypeError(f"{name} takes one of {', '.join(choices)}; got {' and '.join(given) or 'none'}")


def refuse_length(length: int | None) -> None:
    """Raise a TypeError if a length is given beside a table, which has its own length."""
    if length is not None:
        raise TypeError("ids and position_ids take no length=: they have one entry for each position")


def check_ids_below(words: str, ids: Tensor, number: int, of: str) -> None:
    """Raise a ValueError if an id is not below ``number`` (values are read on the CPU only)."""
    if readable(ids) and ids.numel() and int(ids.max()) >= number:
        raise ValueError(f"{words} {number} {of}, 0 to {number - 1}; ids go up to {int(ids.max())}")


def checked_offsets(offsets: Tensor | Sequence[int], name: str = "offsets") -> Tensor:
    """Offsets as a tensor (pieces + 1,): they start at 0 and never fall (values are read on the CPU only)."""
    table = integers(name, offsets)
    if table.ndim != 1 or table.numel() < 2:
        raise ValueError(f"{name} has shape (documents + 1,), at least 2 entries; got {tuple(table.shape)}")
    if readable(table):
        if int(table[0]) != 0:
            raise ValueError(f"{name} start at 0; got {int(table[0])}")
        falls = (table[1:] < table[:-1]).nonzero()
        if len(falls):
            before, after = table[int(falls[0]) :][:2].tolist()
            raise ValueError(f"{name} never fall; got {before} and then {after} at entry {int(falls[0]) + 1}")
    return table


def readable(table: Tensor) -> bool:
    """Whether a check may read the values of a tensor."""
    return table.device.type == "cpu" and not is_tracing()


def check_has_values(name: str, table: Tensor, instead: str = "") -> None:
    """Raise a ValueError for a tensor without values, on the meta device; ``instead`` says what avoids reading it."""
    if table.is_meta:
        raise ValueError(f"{name} is on the meta device, where there are no values to read{instead}")


def check_flags(**flags: object) -> None:
    """Raise a TypeError for what is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is True or False; got {brief(flag)}")


def required_arguments(function: Callable[..., object]) -> int | None:
    """The number of arguments that a function requires, those by name alone too; None if unknown, or if it takes any number."""
    called = function.forward if isinstance(function, torch.nn.Module) else function  # its __call__ takes any number
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    needed = sum(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return needed + sum(one.kind in positional and one.default is one.empty for one in parameters)


def checked_length(name: str, length: int) -> int:
    """``length`` itself, or a ValueError that names it."""
    if not is_int(length) or known(length < 1):
        raise ValueError(f"{name} is a number of positions, at least 1; got {brief(length)}")
    if is_beyond_all(length):
        raise ValueError(f"{name} is a number of positions, at most {MOST_POSITIONS}; got {brief(length)}")
    return length


MOST_POSITIONS = 1 << 40
"""Maximum length, and block size: sums of such numbers fit 64 bits."""


def is_beyond_all(length: int) -> bool:
    """Whether a number of positions is too large; not asked while torch traces, because it would guard the graph."""
    return not is_tracing() and length > MOST_POSITIONS
