"""The picture of a mask."""

import numpy as np
import pytest

import maskloom as loom


def test_cells_are_those_of_the_mask(tmp_path):
    mask = loom.causal & loom.lengths([2, 5])
    figure = loom.show.plot_mask(mask, 5, 7, batch_idx=1)
    drawn = figure.axes[0].images[0].get_array()
    assert np.array_equal(drawn, mask.dense(5, 7)[1, 0].numpy())
    assert figure.get_suptitle() == repr(mask)
    assert loom.show.save_figure(figure, tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


def test_functions_and_long_masks(tmp_path):
    figure = loom.show.plot_mask(
        lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % (h + 2) == 0, 501, 300, heads=3, head_idx=2
    )
    assert figure.axes[0].images[0].get_array().shape == (501, 300)
    loom.show.save_figure(figure, tmp_path / "mask.svg")


def test_words():
    with pytest.raises(ValueError, match="head_idx is from 0 to 2, as there are 3 heads; got 3"):
        loom.show.plot_mask(lambda b, h, q, k: q >= k + h, 3, 5, heads=3, head_idx=3)
    with pytest.raises(ValueError, match="batch_idx is from 0 to 0, as there are 1 batch rows; got -1"):
        loom.show.plot_mask(loom.causal, 3, 5, batch_idx=-1)
