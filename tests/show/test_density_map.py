"""The picture of the work of a mask."""

import numpy as np
import pytest

import maskloom as loom
from maskloom.show import density
from maskloom.show.density_map import balance, in_runs, zigzag
from tests.show.looking import words


def test_tiles_of_each_row_are_those_of_the_block_mask():
    mask = loom.causal & loom.lengths([70, 110])
    blocks = loom.block_mask(mask, 110, 110, block_size=10)
    for given in (blocks, mask):
        figure = density(given, 110, 110, block_size=10, batch=1)
        steps = figure.axes[0].patches[0].get_data()
        np.testing.assert_array_equal(steps.values, loom.blocks.tiles_per_row(blocks)[1, 0].numpy())
        assert steps.edges[[0, -1]].tolist() == [-0.5, 109.5]
        assert "visited tiles of 10 × 10" in words(figure)


def test_ranks_share_the_sum():
    work = np.arange(1, 17)
    assert in_runs(work, 2) == [36, 100] and zigzag(work, 2) == [68, 68]
    assert balance([36, 100]) == pytest.approx(100 / 68)
    assert balance([0, 0]) == 1
    figure = density(loom.causal, 160, block_size=10, ranks=2)
    assert {"one run each: balance 1.47", "zigzag: balance 1.00"} <= set(words(figure))
    bars = [bar.get_height() for bar in figure.axes[1].patches]
    assert bars == [36, 100, 68, 68]


def test_several_batch_rows_are_lines():
    figure = density(loom.lengths([5, 7, 11]), 13, block_size=2, batch="all")
    assert len(figure.axes[0].patches) == 3
    assert "lengths(int64[3])\n3 batch rows and heads" in words(figure)


def test_words():
    with pytest.raises(ValueError, match="ranks is a number of ranks, at least 1; got 0"):
        density(loom.causal, 5, ranks=0)
