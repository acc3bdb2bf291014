"""The picture of two masks."""

import numpy as np
import pytest

import maskloom as loom
from maskloom.show import compare
from maskloom.show.figures import LIGHT
from tests.show.looking import cells, colour, legend


def drawn_as(figure, name):
    return (np.abs(np.asarray(cells(figure)) - np.array(colour(name)) / 255) < 1e-6).all(-1)


def test_what_each_shows_alone():
    first, second = loom.causal, loom.window(back=1, ahead=2)
    figure = compare(first, second, 5, 7)
    one, two = (mask.dense(5, 7)[0, 0].numpy() for mask in (first, second))
    np.testing.assert_array_equal(drawn_as(figure, LIGHT.first), one & ~two)
    np.testing.assert_array_equal(drawn_as(figure, LIGHT.second), two & ~one)
    np.testing.assert_array_equal(drawn_as(figure, LIGHT.hidden), ~one & ~two)
    counts = [(one & ~two).sum(), (two & ~one).sum(), (one & two).sum()]
    assert [int(text.split(": ")[1]) for text in legend(figure)[:3]] == counts
    assert figure.get_suptitle().startswith("first: causal\nsecond: window(back=1, ahead=2)\n")


def test_one_pair_in_a_million_million_is_seen():
    figure = compare(loom.causal, loom.causal | (loom.sinks(1) & loom.causal), 1 << 20)
    assert not drawn_as(figure, LIGHT.second).any()
    figure = compare(loom.causal, loom.causal | loom.sinks(1), 1 << 20)
    assert not drawn_as(figure, LIGHT.second).any()  # key 0 is before every query
    figure = compare(loom.window(back=9), loom.window(back=9) | loom.sinks(1), 1 << 20)
    assert drawn_as(figure, LIGHT.second)[1:, 0].all()


def test_block_masks_and_lengths_of_the_second():
    documents = loom.documents(offsets=[0, 5, 9])
    blocks = loom.block_mask(documents, 9, 9, block_size=3)
    assert legend(compare(loom.causal & documents, blocks))[0] == "only the first: 0"
    assert legend(compare(blocks, documents))[:2] == ["only the first: 0", "only the second: 0"]
    assert (
        compare(loom.causal, loom.lengths([3, 5]), 7, batch=1).get_suptitle().endswith("\nbatch row 1 of 2, all heads")
    )


def test_words():
    blocks = loom.block_mask(loom.causal, 7, 11)
    with pytest.raises(ValueError, match="kv_len is that of the block mask, 11, or left out; got 5"):
        compare(blocks, loom.causal, kv_len=5)
    with pytest.raises(ValueError, match="the two masks are for different numbers of batch rows: 2 and 3"):
        compare(loom.lengths([1, 2]), loom.lengths([1, 2, 3]), 5)
    with pytest.raises(ValueError, match="causal has no length of its own: give q_len"):
        compare(loom.causal, loom.causal)
