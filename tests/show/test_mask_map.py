"""The picture of a mask."""

import numpy as np
import pytest
import torch

import maskloom as loom
from maskloom.blocks.dense import dense_of
from maskloom.show.figures import LIGHT
from maskloom.show.frame import MOST_PANELS
from tests.memory import peak_bytes
from tests.show.looking import cell_pixels, colour, legend, visible, words


def test_cells_are_those_of_the_mask():
    mask = loom.causal & loom.lengths([2, 5])
    figure = loom.show.mask(mask, 5, 7, batch=1)
    assert np.array_equal(visible(figure), mask.dense(5, 7)[1, 0].numpy())
    assert figure.get_suptitle() == f"{mask!r}\nbatch row 1 of 2, all heads"
    assert legend(figure) == ["visible", "hidden"]
    assert cell_pixels(figure, 3, 1).mean(0).round().tolist() == colour(LIGHT.visible)
    assert cell_pixels(figure, 1, 3).mean(0).round().tolist() == colour(LIGHT.hidden)


def test_heads_are_said_and_drawn_side_by_side():
    slopes = torch.tensor([1, 2, 3])

    def by_head(b, h, q_idx, kv_idx):
        return (q_idx - kv_idx) % slopes[h] == 0

    assert "batch rows, head 2 of 3" in loom.show.mask(by_head, 5, 7, heads=2).get_suptitle()
    figure = loom.show.mask(by_head, 5, 7, heads="all")
    assert [axes.get_title() for axes in figure.axes] == [f"head {head} of 3" for head in range(3)]
    truth = loom.as_mask(by_head).dense(5, 7)[0].numpy()
    assert all(np.array_equal(visible(figure, panel), truth[panel]) for panel in range(3))
    unknown = loom.show.mask(lambda b, h, q, k: q >= k + h, 5, 7, heads=[1, 3])
    assert [axes.get_title() for axes in unknown.axes] == ["head 1", "head 3"]


def test_more_panels_than_fit_are_counted():
    figure = loom.show.mask(loom.lengths([2] * 19), 3, 3, batch="all")
    assert figure.get_suptitle() == f"lengths(int64[19])\nthe first {MOST_PANELS}, and 3 more"
    assert sum(bool(axes.images) for axes in figure.axes) == MOST_PANELS


@pytest.mark.parametrize("block_size", [2, (3, 5)])
def test_block_masks_have_their_sizes(block_size):
    blocks = loom.block_mask(loom.causal & loom.lengths([2, 5]), 5, 7, block_size=block_size)
    assert np.array_equal(visible(loom.show.mask(blocks, batch=1)), dense_of(blocks, 2, 1)[1, 0].numpy())
    with pytest.raises(ValueError, match="q_len is that of the block mask, 5, or left out; got 3"):
        loom.show.mask(blocks, 3)


def test_lengths_are_those_of_tables():
    assert loom.show.mask(loom.documents(offsets=[0, 5, 9])).axes[0].get_xlim() == (-0.5, 8.5)
    assert loom.show.mask(loom.causal & loom.lengths([3, 11])).axes[0].get_ylim() == (10.5, -0.5)
    assert visible(loom.show.mask(torch.ones(3, 5, dtype=torch.bool))).shape == (3, 5)
    with pytest.raises(ValueError, match="causal has no length of its own: give q_len"):
        loom.show.mask(loom.causal)


def test_some_queries_and_keys_with_tokens():
    figure = loom.show.mask(
        loom.causal, 11, rows=slice(-4, None), keys=range(2, 9), tokens=[f"t{at}" for at in range(11)]
    )
    assert np.array_equal(visible(figure), loom.causal.dense(11, 11)[0, 0, 7:, 2:9].numpy())
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["t7", "t8", "t9", "t10"]
    assert figure.axes[0].get_xticklabels()[0].get_text() == "t2"


def test_axes_of_ones_own():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert loom.show.mask(loom.causal, 3, 5, ax=axes) is axes.figure
    assert axes.get_title() == "causal\nall batch rows, all heads"
    with pytest.raises(ValueError, match="ax takes one batch row and head; got 2 of them"):
        loom.show.mask(loom.lengths([1, 2]), 3, batch="all", ax=axes)


@pytest.mark.parametrize("length", [1, 2, 50, 400, 401, 20000, 1 << 20])
def test_few_sinks_are_seen_at_every_length(length):
    figure = loom.show.mask(loom.window(back=0) | loom.sinks(1), length)
    seen = visible(figure)
    assert max(seen.shape) <= 400
    assert seen[:, 0].all() and seen.diagonal().all()
    assert seen.sum() == 2 * len(seen) - 1
    if length > 400:
        assert any("pairs; the stronger its colour" in text for text in words(figure))


def test_no_table_of_all_pairs_is_made():
    mask = loom.causal & loom.lengths([19999, 13]) | loom.sinks(4)
    assert peak_bytes(lambda: loom.show.mask(mask, 1 << 15)) < 32 << 20
    blocks = loom.block_mask(loom.documents(offsets=[0, 2001, 9000]) & loom.causal, 9000, 9000)
    assert peak_bytes(lambda: loom.show.mask(blocks)) < 32 << 20


def test_a_function_that_intervals_cannot_follow_says_what_is_not_known():
    figure = loom.show.mask(lambda b, h, q, k: torch.stack([q == k, (q * 7 + k * 13) % 1000 == 0]).any(0), 20000)
    assert visible(figure)[:, :-1].all()  # never drawn empty
    assert any("cells: nothing visible was found, but may be; drawn faintest" in text for text in words(figure))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch": -1}, "batch is the number of a batch row, at least 0; got -1"),
        ({"heads": 3}, "heads is from 0 to 2, as there are 3 heads; got 3"),
        ({"heads": []}, r"heads names at least one head; got \[\]"),
        ({"batch": "every"}, "batch is a batch row, several, or \"all\"; got 'every'"),
        ({"heads": 1.5}, r'heads is a head, an int, several, or "all"; got float: 1\.5'),
        ({"rows": slice(2, 2)}, r"rows is slice\(start, stop\) with 0 <= start < stop <= 5"),
        ({"keys": (0, 9)}, r"keys is slice\(start, stop\) with 0 <= start < stop <= 7; got \(0, 9\)"),
        ({"q_len": 0}, "q_len is a number of positions, at least 1; got 0"),
        ({"tokens": ["a"]}, "tokens has one label for each of 5 positions; got 1"),
        ({"mask": 5}, "a mask is a function"),
    ],
)
def test_words(how, message):
    slopes = torch.tensor([1, 2, 3])
    arguments = {"mask": lambda b, h, q, k: q >= k * slopes[h], "q_len": 5, "kv_len": 7, **how}
    with pytest.raises((TypeError, ValueError), match=message):
        loom.show.mask(**arguments)
    with pytest.raises(ValueError, match=r"how many heads there are; pass heads=range\(n\)"):
        loom.show.mask(lambda b, h, q, k: q >= k + h, 3, 5, heads="all")
