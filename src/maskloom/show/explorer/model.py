"""The data of a page: what its script reads, as JSON."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskloom.core.words import brief
from maskloom.masks.algebra import Mask
from maskloom.show.explorer.cells import cells_for, shares_for, states_for, tables_for
from maskloom.show.explorer.instructions import Instructions, distinct
from maskloom.show.explorer.programs import Operand, lowered, operands_of
from maskloom.show.explorer.scores import scores_for
from maskloom.show.explorer.stored import LIMIT, size_of, stored, stored_json
from maskloom.show.measure.selection import Members

if TYPE_CHECKING:
    from maskloom.show.explorer.subject import Subject

_MOST_OF_TABLES, _MOST_UNPACKED = LIMIT - 500_000, 1 << 28


def model_of(subject: "Subject", title: str | None) -> dict[str, Any]:
    """The data of a page.

    Raises:
        ValueError: tables or tokens that take more bytes than a page may have.
    """
    source, out = subject.source, Instructions()
    expression, masks = operands_of(subject.mask)
    operands = [lowered(out, mask, set(subject.rows), set(subject.heads)) for mask in masks]
    tables = _stored_tables(out.tables)
    labels = _tokens(subject)
    cells = cells_for(subject, runs=all(operand.slot is not None for operand in operands))
    shares, exact = shares_for(subject, cells)
    tiles = tables_for(subject, cells)
    return {
        "title": source.title if title is None else title,
        "mask": source.title,
        "sizes": [source.q_len, source.kv_len],
        "block": list(subject.block),
        "batch": _members(source.batch, subject.rows),
        "heads": _members(source.heads, subject.heads),
        "code": out.code,
        "tables": tables,
        "expression": expression,
        "operands": [_operand(subject, operand) for operand in operands],
        "cells": {
            "size": [cells.q_block, cells.kv_block],
            "shape": list(cells.shape[2:]),
            "exact": exact,
            "shares": shares.stored(),
            "tiles": None if tiles is None else tiles.stored(),
            "states": [states_for(subject, mask, cells).stored() for mask in masks] if len(masks) > 1 else [],
        },
        "tokens": labels,
        "documents": list(_documents(subject, masks)),
        "scores": scores_for(subject),
    }


def _members(members: Members, chosen: list[int]) -> dict[str, Any]:
    return {"item": members.item, "count": members.count, "varies": members.varies, "chosen": chosen}


def _operand(subject: "Subject", operand: Operand) -> dict[str, Any]:
    name = subject.names.get(id(operand.mask)) or repr(operand.mask)
    return {"name": name, "slot": operand.slot, "reason": operand.reason}


# -- tables ------------------------------------------------------------------------------------------------------------


def _stored_tables(tables: list[Tensor]) -> list[dict[str, Any]]:
    unpacked = sum(table.numel() * table.element_size() for table in tables)
    if unpacked > _MOST_UNPACKED:
        raise _too_large(tables, f"{unpacked:,} bytes, and a page reads at most {_MOST_UNPACKED:,}")
    found = [stored(table) for table in tables]
    packed = sum(map(size_of, found))
    if packed > _MOST_OF_TABLES:
        raise _too_large(tables, f"{packed:,} bytes compressed, and a page has room for {_MOST_OF_TABLES:,}")
    return found


def _too_large(tables: list[Tensor], words: str) -> ValueError:
    largest = max(tables, key=lambda table: table.numel() * table.element_size())
    return ValueError(
        f"the tables that the mask reads take {words}; the largest is {brief(largest)}, equal batch rows and heads counted "
        "once. Choose fewer with batch= and heads=, or a mask of fewer positions"
    )


# -- tokens and documents ----------------------------------------------------------------------------------------------


def _tokens(subject: "Subject") -> dict[str, Any]:
    """The labels; those of keys are null where they are the queries'."""
    queries, keys = subject.tokens
    same = keys is queries
    found: dict[str, Any] = {
        "queries": None if queries is None else stored_json(queries),
        "keys": None if same or keys is None else stored_json(keys),
        "same": same,
    }
    size = sum(size_of(part) for part in found.values() if isinstance(part, dict))
    if size > _MOST_OF_TABLES:
        raise ValueError(f"the tokens take {size:,} bytes compressed, and a page has room for {_MOST_OF_TABLES:,}")
    return found


def _documents(subject: "Subject", masks: list[Mask]) -> Iterator[dict[str, Any]]:
    """The ids of documents by position, of each operand that has some; equal ones once."""
    seen: list[tuple[Tensor, Tensor]] = []
    for mask in masks:
        ids = _ids(mask)
        if ids is None or any(_equal(ids, other) for other in seen):
            continue
        seen.append(ids)
        yield {side: _by_row(part, subject.rows) for side, part in zip(("queries", "keys"), ids, strict=True)}


def _ids(mask: Mask) -> tuple[Tensor, Tensor] | None:
    """The ids of an operand's documents: of queries and of keys, (L,) or (B, L)."""
    segments = getattr(mask, "segments", mask)
    ids = getattr(segments, "ids", None)
    if not isinstance(segments, Mask) or not isinstance(ids, Tensor):
        return None
    return ids, getattr(segments, "kv_ids", ids)


def _equal(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _by_row(ids: Tensor, rows: list[int]) -> dict[str, Any]:
    """Ids of (B, L) for the batch rows of the page, equal rows once."""
    table = torch.atleast_2d(ids.detach().cpu().long())
    kept = table[[row if row < len(table) else 0 for row in rows]] if len(table) > 1 else table
    found, which = distinct(kept.contiguous())
    return {"ids": stored(found), "length": found.shape[1], "which": which.tolist()}
