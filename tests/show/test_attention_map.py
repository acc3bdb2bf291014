"""Pictures of attention: what is handed to matplotlib is the truth, and hidden cells are seen as hidden."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

import maskloom as loom
from maskloom.attention.written_out import attention_scores, probabilities
from maskloom.blocks.dense import dense_of
from maskloom.show import attention
from maskloom.show.measure.cells import Head
from tests.memory import peak_bytes
from tests.show.looking import cell_pixels, cells, legend, mask, words

B, H, HKV, Q, K, D = 3, 10, 5, 7, 11, 13


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(B, H, Q, D, generator=generator), torch.randn(B, HKV, K, D, generator=generator)


@pytest.mark.parametrize("head", [0, 1, 2, 9])
@pytest.mark.parametrize("batch", [0, 2])
def test_probabilities_are_the_references_with_the_right_key_head(tensors, batch, head):
    query, key = tensors
    drawn = cells(attention(query, key, mask(), batch=batch, heads=head))
    scores = attention_scores(query, key, mask())[batch, head]
    np.testing.assert_allclose(drawn.filled(0), probabilities(scores)[0].numpy(), atol=1e-6)
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), scores.isneginf().numpy())
    sees = ~np.ma.getmaskarray(drawn).all(-1)
    np.testing.assert_allclose(drawn.filled(0).sum(-1), sees.astype(float), atol=1e-6)


def test_scores_with_a_score_mod_that_reads_every_index(tensors):
    query, key = tensors
    bias = torch.randn(B, H, Q, K, generator=torch.Generator().manual_seed(1))

    def score_mod(score, b, h, q_idx, kv_idx):
        return torch.where(kv_idx == 4, -float("inf"), score + bias[b, h, q_idx, kv_idx])

    figure = attention(query, key, mask(), score_mod=score_mod, scale=0.3, probabilities=False, batch=1, heads=7)
    truth = attention_scores(query, key, mask(), score_mod=score_mod, scale=0.3)[1, 7].numpy()
    drawn = cells(figure)
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isneginf(truth))
    np.testing.assert_allclose(drawn.filled(0), np.where(np.isneginf(truth), 0, truth), atol=1e-6)
    assert "score" in words(figure)


@pytest.mark.parametrize("block_size", [2, (3, 5)])
def test_block_mask_is_drawn_as_what_it_means(tensors, block_size):
    query, key = tensors
    blocks = loom.block_mask(mask(), Q, K, block_size=block_size)
    table = dense_of(blocks, B, H)[2, 0].numpy()
    drawn = cells(attention(query, key, blocks, batch=2, heads=3))
    np.testing.assert_array_equal(~np.ma.getmaskarray(drawn), table)


def test_block_mask_whose_tables_say_less_than_its_mask_mod(tensors):
    query, key = tensors
    every = loom.block_mask(loom.everything, Q, K, block_size=(2, 3))
    counts = torch.ones_like(every.kv_num_blocks)
    blocks = BlockMask.from_kv_blocks(
        counts, every.kv_indices, BLOCK_SIZE=(2, 3), mask_mod=loom.everything, seq_lengths=(Q, K)
    )
    hidden = np.ma.getmaskarray(cells(attention(query, key, blocks)))
    np.testing.assert_array_equal(~hidden, dense_of(blocks, B, H)[0, 0].numpy())
    assert hidden.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_gradients(tensors, dtype):
    query, key = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    drawn = cells(attention(query, key))
    truth = probabilities(attention_scores(query.detach().double(), key.detach().double()))[0][0, 0]
    np.testing.assert_allclose(drawn.filled(0), truth.numpy(), atol=1e-6)


def test_what_is_not_a_number_is_marked_and_hidden_poison_is_not(tensors):
    query, key = tensors
    key[0, :, 6] = torch.nan
    figure = attention(query, key, probabilities=False)
    assert legend(figure) == ["not finite"]
    marks = np.ma.getmaskarray(np.ma.asarray(figure.axes[0].images[1].get_array()))
    np.testing.assert_array_equal(~marks, np.arange(K) == 6 * np.ones((Q, 1)))
    assert legend(attention(query, key, loom.lengths([7] * B, [6] * B))) == ["hidden"]


def test_hidden_cells_are_hatched_in_grey_and_blind_rows_otherwise(tensors):
    query, key = tensors
    figure = attention(query, key, mask(), batch=1)  # 5 real queries, 3 real keys
    assert legend(figure) == ["hidden", "query sees nothing"]
    seen, hidden, fully_masked = (cell_pixels(figure, *at) for at in ((4, 1), (1, 3), (6, 1)))
    assert np.ptp(seen, axis=0).max() == 0  # one colour, of the scale
    for pattern in (hidden, fully_masked):
        assert np.ptp(pattern, axis=1).max() <= 2  # grey
        assert np.ptp(pattern[:, 0]) > 20  # with a pattern in it
        assert pattern.mean() > 180
    assert abs(hidden[:, 0].max() - fully_masked[:, 0].max()) > 10  # and not the same
    assert legend(attention(query, key)) == []


def test_everything_hidden_and_one_value_can_be_drawn(tensors):
    query, key = tensors
    assert legend(attention(query, key, loom.nothing)) == ["query sees nothing"]
    attention(query[:, :, :1], key[:, :, :1], probabilities=False).canvas.draw()


def test_axes_title_and_colour_bar_are_named(tensors):
    figure = attention(*tensors, batch=2, heads=4)
    assert {"key position", "query position", "probability", "attention\nbatch row 2 of 3, head 4 of 10"} <= set(
        words(figure)
    )
    assert "mine" in words(attention(*tensors, title="mine"))


def test_tokens_are_drawn_as_they_are_written(tensors):
    query, key = tensors
    tokens = ["$x^2$", " the", "\n", "кот", "supercalifragilistic", "", "a_b"]
    figure = attention(query, key, tokens=tokens)
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["$x^2$", "␣the", "\\n", "кот", "supercalifragil…", "", "a_b"]
    assert not any(label.get_parse_math() for label in labels)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "0"  # Q and K differ
    both = attention(query, key, tokens=tokens, key_tokens=[f"k{at}" for at in range(K)])
    assert both.axes[0].get_xticklabels()[-1].get_text() == "k10"
    alike = attention(query, key[:, :, :Q], tokens=tokens)
    assert alike.axes[0].get_xticklabels()[0].get_text() == "$x^2$"
    title = attention(query, key, title="$5 and $6")._suptitle
    assert not title.get_parse_math()


@pytest.mark.parametrize("length", [401, 1000])
def test_all_of_a_long_sequence_is_drawn_as_means(length):
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 1, length, D, generator=generator) for _ in "qk")
    near = loom.window(back=2)
    drawn = cells(figure := attention(query, key, near))
    side = 2 if length == 401 else 4
    truth = probabilities(attention_scores(query, key, near))[0][0, 0]
    corner, sees = truth[:side, :side], near.dense(length, length)[0, 0]
    assert drawn.shape == (-(-length // side),) * 2
    np.testing.assert_allclose(drawn[0, 0], corner.sum() / sees[:side, :side].sum(), atol=1e-6)
    np.testing.assert_allclose(drawn[-1, -1], truth[-1, -1] if length == 401 else truth[-4:, -4:].sum() / 9, atol=1e-6)
    assert np.ma.getmaskarray(drawn)[0, -1]
    assert legend(figure) == ["hidden"]
    assert f"a cell is the mean of {side} × {side} pairs" in words(figure)


def test_of_very_long_sequences_some_queries_are_computed():
    query, key = torch.zeros(1, 1, 20000, 2), torch.zeros(1, 1, 20000, 2)
    figure = attention(query, key, loom.causal & loom.lengths([13333]))
    assert "a cell is the mean of 64 × 64 pairs; 2 of 64 queries computed" in words(figure)
    drawn = cells(figure)
    mean = (
        1 / (100 * 64 + 32) + 1 / (101 * 64)
    ) / 2  # of a query in the middle of the cell and the last one, over all keys
    np.testing.assert_allclose(drawn[100, 3], mean, rtol=1e-5)
    assert np.ma.getmaskarray(drawn)[100, 101]
    assert legend(figure)[:2] == ["hidden", "query sees nothing"]


def test_few_rows_of_cells_beside_many_columns_keep_their_edges():
    query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3000, 2)
    image = attention(query, key, loom.causal).axes[0].images[0]
    assert image.get_array().shape == (3 * 125, 375)  # each row of cells is many rows of an image, which is not blurred
    assert image.get_extent() == [-0.5, 2999.5, 2.5, -0.5]


def test_long_sequences_are_read_once(monkeypatch):
    """One product with the keys for all queries that are computed, not one for each of them."""
    asked = []
    rows = Head.rows
    monkeypatch.setattr(Head, "rows", lambda head, positions: asked.append(len(positions)) or rows(head, positions))
    query, key = torch.zeros(1, 1, 1 << 18, 2), torch.zeros(1, 1, 1 << 18, 2)
    attention(query, key, loom.causal)
    assert asked == [16] * 4


def test_a_power_of_ten_stands_beside_each_number_of_the_bar():
    query, key = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1 << 15, 2)
    figure = attention(query, key)
    figure.draw_without_rendering()
    axis = figure.axes[1].yaxis if len(figure.axes) > 1 else figure.axes[0].child_axes[0].yaxis
    assert axis.get_offset_text().get_text() == ""
    assert [label.get_text() for label in axis.get_ticklabels()][1] == "1e-05"


def test_titles_of_several_panels_stand_apart():
    query = torch.zeros(2, 2, 10, 2)
    figure = attention(query, query, loom.lengths([10, 5]), batch="all", heads="all")
    figure.draw_without_rendering()
    top = figure._suptitle.get_window_extent().y0
    assert all(axes.title.get_window_extent().y1 <= top for axes in figure.axes[:4])


def test_tokens_may_be_ids():
    figure = attention(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), tokens=torch.tensor([464, 7, 11]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["464", "7", "11"]


def test_memory_is_bounded_whatever_the_length():
    query, key = torch.zeros(1, 1, 1 << 15, 2), torch.zeros(1, 1, 1 << 15, 2)
    assert peak_bytes(lambda: attention(query, key, loom.causal)) < 100 << 20


def test_some_queries_and_keys(tensors):
    figure = attention(*tensors, mask(), rows=slice(2, 5), keys=(1, 4), tokens=list("abcdefg"))
    truth = probabilities(attention_scores(*tensors, mask()))[0][0, 0, 2:5, 1:4].numpy()
    np.testing.assert_allclose(cells(figure).filled(0), truth, atol=1e-6)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["c", "d", "e"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2", "3"]


def test_heads_side_by_side(tensors):
    figure = attention(*tensors, mask(), heads="all", batch=1)
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"batch row 1 of 3, head {head} of 10" for head in range(H)]
    truth = probabilities(attention_scores(*tensors, mask()))[0][1, 7].numpy()
    np.testing.assert_allclose(panels[7].images[0].get_array().filled(0), truth, atol=1e-6)
    assert len({axes.images[0].get_clim() for axes in panels}) == 1  # one scale for all


def test_given_weights(tensors):
    weights = probabilities(attention_scores(*tensors, mask()))[0]
    for given, where in ((weights, {"batch": 2, "heads": 3}), (weights[2], {"heads": 3}), (weights[2, 3], {})):
        figure = attention(weights=given, **where)
        np.testing.assert_allclose(cells(figure).filled(0), weights[2, 3].numpy(), atol=1e-6)
        assert "weight" in words(figure)
    hidden = np.ma.getmaskarray(cells(attention(weights=weights, mask=mask(), batch=2)))
    np.testing.assert_array_equal(~hidden, mask().dense(Q, K)[2, 0].numpy())


def test_zero_and_hidden_look_different(tensors):
    figure = attention(weights=torch.tensor([[0.0, 1.0], [0.5, 0.5]]), mask=lambda b, h, q, k: (q > 0) | (k < 2))
    zero = cell_pixels(figure, 0, 0)
    assert np.ptp(zero, axis=0).max() == 0 and zero[0].tolist() == [68, 1, 84]  # the first colour of the scale


@pytest.mark.parametrize("length", [100, 300])
def test_colours_are_spent_on_what_is_there(length):
    tensor = torch.zeros(1, 1, length, 2)
    figure = attention(tensor, tensor, loom.causal)
    low, high = figure.axes[0].images[0].get_clim()
    assert low == 0 and 1 / length < high < 10 / length  # and not 1, which one query has
    assert figure.axes[0].images[0].colorbar.extend == "max"
    full = attention(tensor, tensor, loom.causal, vmax=0.25).axes[0].images[0].get_clim()
    assert full == (0, 0.25)


def test_axes_of_ones_own(tensors):
    from matplotlib.figure import Figure

    axes = Figure(figsize=(4, 4)).subplots()
    assert attention(*tensors, mask(), ax=axes) is axes.figure
    assert axes.get_title() == "attention under causal & lengths(int64[3], int64[3])\nbatch row 0 of 3, head 0 of 10"
    assert axes.images


def test_size_grows_with_length_within_bounds():
    sizes = [attention(torch.ones(1, 1, n, 2), torch.ones(1, 1, n, 2)).get_size_inches() for n in (5, 13, 60, 3000)]
    assert all((smaller <= larger).all() for smaller, larger in pairwise(sizes))
    assert sizes[-1].max() < 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 3}, "batch is from 0 to 2, as there are 3 batch rows; got 3"),
        ({"heads": -1}, "heads is from 0 to 9, as there are 10 heads; got -1"),
        ({"heads": 1.0}, r'heads is a head, an int, several, or "all"; got float: 1\.0'),
        ({"query": torch.ones(H, Q, D)}, r"query has shape \(batch, heads, length, head dim\); got \(10, 7, 13\)"),
        ({"key": [1]}, "key is a tensor .*; got list"),
        ({"key": torch.ones(B, HKV, K, D).int()}, r"key is floating point; got torch\.int32"),
        ({"key": torch.ones(B, 3, K, D)}, "the query heads are a multiple of the key heads; got 10 and 3"),
        (
            {"key": torch.ones(2, HKV, K, D)},
            r"the same batch size; got query \(3, 10, 7, 13\) and key \(2, 5, 11, 13\)",
        ),
        ({"key": torch.ones(B, HKV, K, 2)}, "query and key have the same head dim"),
        ({"query": torch.ones(B, H, 0, D)}, "nothing to draw of an empty tensor"),
        ({"tokens": ["a"] * 5}, "tokens has one label for each of 7 positions; got 5"),
        ({"key_tokens": ["a"] * 7}, "key_tokens has one label for each of 11 positions; got 7"),
        ({"tokens": "letters"}, "tokens is a sequence of labels, .*; got one string: 'letters'"),
        ({"mask": loom.block_mask(loom.causal, 5, 13)}, r"lengths \(Q, K\) = \(5, 13\); the attention has \(7, 11\)"),
        (
            {"mask": loom.block_mask(loom.lengths([1, 2]), Q, K)},
            "the block mask has 2 batch rows, and the attention has 3; it needs 3, or 1 for all",
        ),
        ({"mask": loom.lengths([1, 2])}, "the mask reads a table for 2 batch rows, and the attention has 3"),
        (
            {"mask": loom.masks.per_head([loom.causal, loom.everything])},
            "the mask reads a table for 2 heads, and the attention has 10",
        ),
        ({"mask": 5}, "a mask is a function"),
        ({"vmax": "most"}, "vmax is a number, or \"auto\"; got 'most'"),
        ({"vmax": 10**400}, 'vmax is a number, or "auto", above 0 and at most 1e\\+300; got 1000'),
        ({"vmax": float("nan")}, 'vmax is a number, or "auto", above .*; got nan'),
        ({"probabilities": "no"}, "probabilities is True or False; got 'no'"),
        ({"scale": "much"}, r"scale is a number, or None for 1 / sqrt\(head dim\); got 'much'"),
        ({"scale": -(10**400)}, r"scale is a number, .*, above -1e\+300 .*; got -1000"),
        ({"score_mod": loom.causal}, "causal takes 4; with four it looks like a mask_mod"),
        ({"score_mod": lambda score, b, h, q_idx, kv_idx: None}, "answers with the score, .*; <lambda> gave None"),
        ({"batch": 10**400}, r"batch is from 0 to 2, as there are 3 batch rows; got 10{90,}\.\.\."),
        ({"tokens": 5}, "tokens is a sequence of labels, one for each position; got int: 5"),
        ({"tokens": iter("abcdefg")}, "tokens is a sequence of labels, .*; got str_ascii_iterator"),
        (
            {"query": None, "key": None, "weights": torch.ones(7, 11), "scale": 2.0, "probabilities": False},
            "weights are drawn as they are, without scale or probabilities, which need query and key",
        ),
        ({"rows": slice(3, 9)}, r"rows is slice\(start, stop\) with 0 <= start < stop <= 7; got slice\(3, 9, None\)"),
        ({"keys": 5}, r"keys is one piece of positions, slice\(start, stop\); got 5"),
        ({"key": None}, "takes query and key, or weights=; got neither or one of them"),
        ({"weights": torch.ones(7, 11)}, "takes query and key, or weights=; got both"),
        ({"key": torch.ones(B, HKV, K, D, device="meta")}, "key is a dense tensor with values; got .* meta"),
        ({"query": None, "key": None, "weights": torch.ones(3, 5, device="meta")}, "weights is a dense tensor .* meta"),
        (
            {"query": None, "key": None, "weights": torch.eye(5).to_sparse()},
            "weights is a dense .*; got torch.sparse_coo",
        ),
        ({"query": None, "key": None, "weights": torch.ones(5)}, r"weights has shape .*; got \(5,\)"),
    ],
)
def test_errors_of_attention_name_what_was_passed(tensors, change, message):
    arguments = {"query": tensors[0], "key": tensors[1], **change}
    with pytest.raises((TypeError, ValueError), match=message):
        attention(**arguments)


@pytest.mark.parametrize("figure", [None, "a figure", torch.ones(3)])
def test_what_is_no_figure_is_not_saved(figure, tmp_path):
    with pytest.raises(TypeError, match="figure is a matplotlib Figure"):
        loom.show.save_figure(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
