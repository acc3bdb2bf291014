"""Layouts: every position has one row, and rows that hold nothing come last."""

import pytest
import torch

from maskloom.distributed.sharing.assignment import head_and_tail, in_order, one_by_one
from maskloom.distributed.sharing.layout import Runs, layout_of, positions_of, runs_of


@pytest.mark.parametrize("length", [1, 2, 37, 211, 256])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("how", [None, in_order, head_and_tail, one_by_one])
def test_every_position_has_one_row(length, parts, how):
    unit, groups = 4, 1 if how is None else 5
    tiles = -(-length // unit)
    costs = torch.randint(9, (tiles,), generator=torch.Generator().manual_seed(length))
    assignment = None if how is None else how(costs if how is one_by_one else tiles, groups)
    longest = length if assignment is None else max(len(positions_of(own, unit, length)) for own in assignment.tiles)
    layout = layout_of(assignment, length, unit, -(-longest // parts), parts)
    rows = torch.cat([layout.of_rank(group, part) for group in range(groups) for part in range(parts)])
    assert len(rows) == groups * parts * layout.rows
    assert torch.equal(rows[layout.places()], torch.arange(length))
    assert int((rows < 0).sum()) == len(rows) - length
    for group in range(groups):
        own = torch.cat([layout.of_rank(group, part) for part in range(parts)])
        real = own[own >= 0]
        assert torch.equal(own[: len(real)], real)
        assert torch.equal(real, real.sort().values)


def test_the_last_tile_is_cut():
    assert positions_of((0, 2), 4, 10).tolist() == [0, 1, 2, 3, 8, 9]
    assert positions_of((), 4, 10).tolist() == []


@pytest.mark.parametrize(
    ("tiles", "runs"),
    [
        ((), Runs(0, 0, 0)),
        ((0, 1, 2), Runs(0, 12, 0)),
        ((3,), Runs(12, 4, 12)),
        ((0, 1, 6), Runs(0, 8, 16)),
        ((2, 5, 6, 7), Runs(8, 4, 16)),
        ((0, 2, 4), None),
    ],
)
def test_tiles_in_one_run_or_two(tiles, runs):
    numbers = torch.tensor(tiles, dtype=torch.int64)
    found = runs_of(numbers, 4)
    assert found == runs
    if runs is not None:
        positions = positions_of(numbers, 4, 30)  # the last tile, of number 7, is cut
        assert torch.equal(runs.positions(len(positions)), positions)
        assert torch.equal(runs.moved(5).positions(len(positions)), positions + 5)
        assert runs.is_one == (len(numbers) == 0 or int(numbers[-1] - numbers[0]) == len(numbers) - 1)
