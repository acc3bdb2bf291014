"""All ordered tables of a BlockMask by one kernel, if Triton is available.

A program handles some lines of a table, and reads them twice: first to count the listed columns, then to put every
column in its place. It reads the state of each tile and writes the table, which is the minimum. `ordered` does the same with
running counts in torch, in about fifteen launches per table.
"""

import functools
from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from maskloom.blocks.tile_states import FULL, SKIPPED
from maskloom.core.launches import Launches, on_device_of

_LINES, _ACROSS, _WARPS = 4, 128, 2  # the fastest of fifteen on an H100, up to 1 Mi positions


@triton.jit
def _put(listed, column, inside, counts, before, indices):  # type: ignore[no-untyped-def]
    """Write each column's place in its line; return the number of listed columns so far."""
    rank = before[:, None] + tl.cumsum(listed, 1)  # number of listed columns, up to and including this one
    place = tl.where(listed == 1, rank - 1, counts[:, None] + column - rank)
    tl.store(indices + place, tl.broadcast_to(column, place.shape), mask=inside)
    return before + tl.sum(listed, 1)


@triton.jit(do_not_specialize=["heads", "lines", "across", "by_batch", "by_head", "by_line", "by_column"])
def _order(  # type: ignore[no-untyped-def]
    states,
    counts,
    indices,
    full_counts,
    full_indices,
    turned_counts,
    turned_indices,
    turned_full_counts,
    turned_full_indices,
    heads,
    lines,
    across,
    by_batch,
    by_head,
    by_line,
    by_column,
    least: tl.constexpr,
    most: tl.constexpr,
    full: tl.constexpr,
    has_full: tl.constexpr,
    LINES: tl.constexpr,  # noqa: N803 - Triton's naming
    ACROSS: tl.constexpr,  # noqa: N803
):
    if tl.program_id(2) == 1:  # transposed: columns are lines
        counts, indices, full_counts, full_indices = (
            turned_counts,
            turned_indices,
            turned_full_counts,
            turned_full_indices,
        )
        lines, across, by_line, by_column = across, lines, by_column, by_line
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    row = tl.program_id(1)  # the batch row and head
    step = tl.arange(0, ACROSS)
    states += (row // heads).to(tl.int64) * by_batch + (row % heads).to(tl.int64) * by_head
    states += line[:, None].to(tl.int64) * by_line
    here = row.to(tl.int64) * lines + line
    is_line = line < lines
    reach = tl.where(tl.program_id(0) * LINES < lines, across, 0)  # one direction may have more lines than the other

    listed_in_line = tl.zeros((LINES,), tl.int32)
    full_in_line = tl.zeros((LINES,), tl.int32)
    for first in range(0, reach, ACROSS):
        column = (first + step)[None, :]
        inside = is_line[:, None] & (column < across)
        state = tl.load(states + column.to(tl.int64) * by_column, mask=inside, other=0).to(tl.int32)
        listed_in_line += tl.sum(((state >= least) & (state <= most)).to(tl.int32), 1)
        if has_full:
            full_in_line += tl.sum((state == full).to(tl.int32), 1)
    tl.store(counts + here, listed_in_line, mask=is_line)
    if has_full:
        tl.store(full_counts + here, full_in_line, mask=is_line)

    table = here[:, None] * across
    seen = tl.zeros((LINES,), tl.int32)
    full_seen = tl.zeros((LINES,), tl.int32)
    for first in range(0, reach, ACROSS):
        column = (first + step)[None, :]
        inside = is_line[:, None] & (column < across)
        state = tl.load(states + column.to(tl.int64) * by_column, mask=inside, other=0).to(tl.int32)
        listed = ((state >= least) & (state <= most)).to(tl.int32)
        seen = _put(listed, column, inside, listed_in_line, seen, indices + table)
        if has_full:
            is_full = (state == full).to(tl.int32)
            full_seen = _put(is_full, column, inside, full_in_line, full_seen, full_indices + table)


def order(
    states: Tensor, batch: int, heads: int, *, separate_full_blocks: bool, full: int = FULL
) -> list[tuple[Tensor, Tensor]]:
    """The tables that list partial tiles, and with ``separate_full_blocks`` those that list full tiles; then the same tables
    transposed, for each column.

    Args:
        states: int8 or int32 (B or 1, H or 1, lines, columns), with any strides: 0 for skipped tiles, ``full`` for full ones, and
            what lies between for partial ones.
        batch, heads: B and H of the tables.

    Returns:
        Pairs of counts int32 (B, H, lines) and indices int32 (B, H, lines, columns).
    """
    lines, across = states.shape[2:]
    by_batch, by_head, by_line, by_column = states.expand(batch, heads, lines, across).stride()
    ways = 1 + separate_full_blocks
    tables = [
        _empty(batch, heads, *sizes, states.device) for sizes in ((lines, across), (across, lines)) for _ in range(ways)
    ]
    with on_device_of(states):
        _launch(
            ((max(lines, across) + _LINES - 1) // _LINES, batch * heads, 2),
            (states, *tables[0], *tables[ways - 1], *tables[ways], *tables[-1]),
            (heads, lines, across, by_batch, by_head, by_line, by_column),
            _apart(full) if separate_full_blocks else _together(full),
        )
    return tables


_launch = Launches(_order)
_SHAPE = {"LINES": _LINES, "ACROSS": _ACROSS, "num_warps": _WARPS}


@functools.lru_cache(64)
def _apart(full: int) -> dict[str, Any]:
    return {"least": SKIPPED + 1, "most": full - 1, "full": full, "has_full": True, **_SHAPE}


@functools.lru_cache(64)
def _together(full: int) -> dict[str, Any]:
    return {"least": SKIPPED + 1, "most": full, "full": full, "has_full": False, **_SHAPE}


def _empty(batch: int, heads: int, lines: int, across: int, device: torch.device) -> tuple[Tensor, Tensor]:
    counts = torch.empty(batch, heads, lines, dtype=torch.int32, device=device)
    return counts, torch.empty(batch, heads, lines, across, dtype=torch.int32, device=device)
