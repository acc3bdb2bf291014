"""Tables of queries and keys from users: bool tables, or float tables that are added to scores."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.core.checks import INTEGERS, copied
from maskloom.core.torch_state import can_cache
from maskloom.core.words import what_it_is

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def bool_table(name: str, value: Tensor | Sequence[object], *, additive: bool = False) -> Tensor:
    """A bool table, True = may attend; with ``additive`` also from a float table of scores, as in `from_dense`.

    Raises:
        TypeError: another dtype, or not a plain tensor.
    """
    table = value if isinstance(value, Tensor) else copied(name, value, "bools")
    check_kind(name, table, additive=additive)
    return what_may(name, table)


def check_kind(name: str, table: Tensor, *, additive: bool) -> None:
    """Raise a TypeError unless it is a plain tensor, bool or, with ``additive``, floating point. Values are not read."""
    if table.is_nested:
        raise TypeError(f"{name} is a nested tensor; a mask of packed sequences is documents(offsets=...)")
    if table.layout != torch.strided:
        if "sparse" in str(table.layout):
            raise TypeError(f"{name} is a sparse tensor; from_edges takes one, and its to_dense() is a table")
        raise TypeError(f"{name} is a tensor of layout {table.layout}; its to_dense() is a table")
    if table.is_quantized:
        raise TypeError(f"{name} is a quantized tensor, {table.dtype}; give a bool one, True = may attend")
    if table.dtype != torch.bool and not (additive and table.dtype.is_floating_point):
        raise TypeError(f"{name} is a bool tensor, True = may attend; got {table.dtype}{_hint(table)}")
    if table.requires_grad:
        raise TypeError(f"{name} is a float table that learns: it is added to scores by a score_mod: {_AS_SCORE}")


def what_may(name: str, table: Tensor) -> Tensor:
    """A table that passed `check_kind`, as bool, True = may attend.

    Raises:
        TypeError: a float table with values that do more than hide.
    """
    return table if table.dtype == torch.bool else _from_additive(name, table)


class Sizes(NamedTuple):
    """The sizes that a table must have; B or H is None if any size is allowed."""

    batch: int | None
    heads: int | None
    q_len: int
    kv_len: int

    def __str__(self) -> str:
        return ", ".join(f"{letter} = {size}" for letter, size in zip("BHQK", self, strict=True) if size is not None)


def table_in_place(table: Tensor, sizes: Sizes) -> Tensor:
    """A table in place of a mask, as bool (Q, K), (B, Q, K) or (B, H, Q, K), True = may attend.

    Raises:
        TypeError: the errors of `bool_table`. ValueError: a table for other sizes, or without values.
    """
    check_kind("the mask", table, additive=True)
    if table.device.type == "meta":
        raise ValueError("the mask is on the meta device, where there are no values")
    _check_shape(table, sizes)
    return what_may("the mask", table)


def letters_of(dimensions: int) -> str:
    """The dims of a table in place of a mask, by their index: "qk", "bqk" or "bhqk"."""
    return "bqk" if dimensions == 3 else "bhqk"[4 - dimensions :]


def _check_shape(table: Tensor, sizes: Sizes) -> None:
    if 2 <= table.ndim <= 4:
        needed = [sizes["bhqk".index(letter)] for letter in letters_of(table.ndim)]
        broadcasts = table.ndim > 2  # (1, K) could be the padding of one batch row instead
        pairs = zip(table.shape, needed, strict=True)
        fits = [need is None or size == need or (size == 1 and broadcasts) for size, need in pairs]
        if all(fits):
            return
    raise ValueError(
        f"a tensor in place of a mask has shape (Q, K), (B, Q, K) or (B, H, Q, K), B and H of 1 for all; "
        f"here {sizes}; got {tuple(table.shape)}{_meant(tuple(table.shape), sizes)}"
    )


def _meant(shape: tuple[int, ...], sizes: Sizes) -> str:
    """A hint what a table of another shape may be, and what to write for it."""
    batch, heads, q_len, kv_len = sizes
    if len(shape) == 1 or (len(shape) == 2 and shape[1] in (q_len, kv_len) and shape[0] in (1, batch)):
        return (
            ". A flag for each position, (B, L), is padding(t), or key_padding(t) for keys alone, True = padding; or real(t), "
            "True = a real token"
        )
    if len(shape) not in (2, 3, 4):
        return ""
    if len(shape) == 3 and batch and heads and shape == (batch * heads, q_len, kv_len):
        return f". One of shape (B·H, Q, K) goes in as table.view({batch}, {heads}, {q_len}, {kv_len})"
    if len(shape) == 3 and shape == (heads, q_len, kv_len):
        return ". One table for each head goes in as table[None]"
    if shape[-2] >= q_len and shape[-1] >= kv_len and shape[-2:] != (q_len, kv_len):
        return f". Of a larger table give the rows and columns that are meant: table[..., :{q_len}, :{kv_len}], say"
    return ""


def _hint(table: Tensor) -> str:
    if table.dtype not in INTEGERS:
        return ""
    if table.ndim == 2:
        return (
            ". Hugging Face's attention_mask, (B, L) of 0 and 1, is real(attention_mask), or key_padding(attention_mask == 0); "
            "a table (Q, K) of 0 and 1 is table.bool()"
        )
    return "; a table of 0 and 1 is table.bool()"


def _from_additive(name: str, table: Tensor) -> Tensor:
    """A bool table from an additive one: True at 0, False at minus infinity or at the lowest number of a dtype."""
    wide = table.float() if table.dtype.itemsize == 1 else table  # torch cannot compare float8
    may = wide == 0
    known = may | (wide == -math.inf)
    least = torch.finfo(table.dtype).min
    for number in {least, *(torch.finfo(dtype).min for dtype in _FLOATS)}:
        if number >= least:  # the table may have been made in a narrower dtype
            known |= wide == number
    _check_all_known(name, wide, known)
    return may


def _check_all_known(name: str, table: Tensor, known: Tensor) -> None:
    """Check by one read that a table has no other values; if it cannot be read, the device checks it later."""
    words = (
        f"{name} is a float table, which shows by 0 and hides by -inf, or the least number of its dtype. Other values are added "
        f"to scores by a score_mod: {_AS_SCORE}; a table of 0 and 1 is table.bool()"
    )
    if table.is_meta:
        return
    if not can_cache():
        torch._assert_async(known.all(), words)
    elif not bool(known.all()):
        raise TypeError(f"{words}; got {table[~known][0].item():g}")


_AS_SCORE = "score_mod=lambda s, b, h, q, k: s + table[q, k]"


def not_a_mask(value: object) -> str:
    """The error text if a tensor or array is combined with a mask."""
    return (
        f"what a tensor means must be said; got {what_it_is(value)}. Of positions (B, L) write padding(t) or key_padding(t), True = "
        "padding, or real(t), True or 1 = a real token; of queries and keys from_dense(t), True = may attend"
    )
