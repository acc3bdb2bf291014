"""The picture of tiles."""

import numpy as np
import pytest

import maskloom as loom
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.show import tiles
from tests.memory import peak_bytes
from tests.show.looking import cells, legend, mask, words

Q, K = 7, 11


def test_tiles_are_the_tables_with_counts_and_cut_ends():
    blocks = loom.block_mask(mask(), Q, K, block_size=(2, 3))
    states = tile_states(blocks)[:, 0].numpy()
    figure = tiles(blocks, batch="all")
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == [f"batch row {row} of 3" for row in range(3)]
    for axes, expected in zip(panels, states, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        assert axes.get_xlim() == (-0.5, K - 0.5)
        assert axes.get_ylim() == (Q - 0.5, -0.5)
    counted = [int(text.split()[1]) for text in legend(figure)]
    assert counted == [int((states == state).sum()) for state in (SKIPPED, PARTIAL, FULL)]
    assert figure.legends[0].get_title().get_text() == "7 queries × 11 keys in tiles of 2 × 3"


@pytest.mark.parametrize("block_size", [2, (3, 5)])
def test_the_tiles_of_a_mask_are_those_of_its_block_mask(block_size):
    blocks = loom.block_mask(mask(), Q, K, block_size=block_size)
    drawn = cells(tiles(mask(), Q, K, block_size=block_size, batch=2))
    np.testing.assert_array_equal(drawn, tile_states(blocks)[2, 0].numpy())


def test_shared_tables_stand_for_every_batch_row():
    figure = tiles(loom.block_mask(loom.causal, Q, K, block_size=2), batch=13, heads=5)
    assert "block mask of causal\nall batch rows, all heads" in words(figure)


def test_tiles_that_queries_and_keys_touch():
    blocks = loom.block_mask(mask(), Q, K, block_size=(2, 3))
    figure = tiles(blocks, rows=slice(3, 5), keys=slice(4, 11))
    np.testing.assert_array_equal(cells(figure), tile_states(blocks)[0, 0, 1:3, 1:].numpy())
    assert figure.axes[0].get_ylim() == (4.5, 2.5)


@pytest.mark.parametrize("given", ["mask", "block mask"])
def test_too_many_tiles_are_drawn_in_groups(given):
    length = 2 * 401
    made = loom.block_mask(loom.causal, length, length, block_size=2) if given == "block mask" else loom.causal
    figure = tiles(made, length, length, block_size=2)
    drawn = cells(figure)
    assert drawn.shape == (201, 201)
    assert (drawn == np.tril(np.full(drawn.shape, FULL)) - np.eye(len(drawn))).all() or drawn[-1, 0] == PARTIAL
    assert (drawn[np.triu_indices(201, 1)] == SKIPPED).all() and drawn[5, 2] == FULL
    assert "a cell is 4 × 4 pairs: several tiles" in figure.legends[0].get_title().get_text()


def test_memory_of_a_million_positions():
    mask = loom.window(back=4095) | loom.sinks(4)
    assert peak_bytes(lambda: tiles(mask, 1 << 20)) < 64 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 3}, "batch is from 0 to 2, as there are 3 batch rows; got 3"),
        ({"heads": "0"}, "heads is a head, several, or \"all\"; got '0'"),
        ({"block_size": 3}, r"a BlockMask has its own block size, \(2, 2\); got block_size=3"),
        ({"mask": loom.causal, "q_len": 5, "block_size": 0}, "the block size is a number of positions, at least 1"),
    ],
)
def test_words(change, message):
    arguments = {"mask": loom.block_mask(mask(), Q, K, block_size=2), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        tiles(**arguments)
