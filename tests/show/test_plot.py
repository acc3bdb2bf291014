"""Pictures: what is handed to matplotlib is the truth, hidden cells are seen as hidden, and files are whole or absent."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.nn.attention.flex_attention import BlockMask

import maskloom as loom
from maskloom.attention.written_out import attention_scores, probabilities
from maskloom.blocks.dense import dense_of
from maskloom.blocks.tile_states import FULL, PARTIAL, SKIPPED, tile_states
from maskloom.show import figures
from maskloom.show.attention_map import POSITIONS_SHOWN
from maskloom.show.plot import plot_attention, plot_tiles, save_figure, visualize_attention_scores

B, H, HKV, Q, K, D = 3, 10, 5, 7, 11, 13


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(B, H, Q, D, generator=generator), torch.randn(B, HKV, K, D, generator=generator)


def mask():
    return loom.causal & loom.lengths([7, 5, 2], [11, 3, 2])


def cells(figure):
    return figure.axes[0].images[0].get_array()


def words(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def cell_pixels(figure, row, column):
    """The pixels within a cell, red, green and blue, (pixels, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    corners = figure.axes[0].transData.transform([(column - 0.4, row + 0.4), (column + 0.4, row - 0.4)])
    (left, bottom), (right, top) = corners.round().astype(int)
    return image[image.shape[0] - top : image.shape[0] - bottom, left:right].reshape(-1, 3).astype(int)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [0, 1, 2, 9])
@pytest.mark.parametrize("batch", [0, 2])
def test_probabilities_are_the_references_with_the_right_key_head(tensors, batch, head):
    query, key = tensors
    drawn = cells(plot_attention(query, key, mask(), batch_idx=batch, head_idx=head))
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

    figure = plot_attention(
        query, key, mask(), score_mod=score_mod, scale=0.3, probabilities=False, batch_idx=1, head_idx=7
    )
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
    drawn = cells(plot_attention(query, key, blocks, batch_idx=2, head_idx=3))
    np.testing.assert_array_equal(~np.ma.getmaskarray(drawn), table)


def test_block_mask_whose_tables_say_less_than_its_mask_mod(tensors):
    query, key = tensors
    every = loom.block_mask(loom.everything, Q, K, block_size=(2, 3))
    counts = torch.ones_like(every.kv_num_blocks)
    blocks = BlockMask.from_kv_blocks(
        counts, every.kv_indices, BLOCK_SIZE=(2, 3), mask_mod=loom.everything, seq_lengths=(Q, K)
    )
    hidden = np.ma.getmaskarray(cells(plot_attention(query, key, blocks)))
    np.testing.assert_array_equal(~hidden, dense_of(blocks, B, H)[0, 0].numpy())
    assert hidden.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_gradients(tensors, dtype):
    query, key = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    drawn = cells(plot_attention(query, key))
    truth = probabilities(attention_scores(query.detach().double(), key.detach().double()))[0][0, 0]
    np.testing.assert_allclose(drawn.filled(0), truth.numpy(), atol=1e-6)


def test_what_is_not_a_number_is_marked_and_hidden_poison_is_not(tensors):
    query, key = tensors
    key[0, :, 6] = torch.nan
    figure = plot_attention(query, key, probabilities=False)
    assert legend(figure) == ["not finite"]
    marks = np.ma.getmaskarray(np.ma.asarray(figure.axes[0].images[1].get_array()))
    np.testing.assert_array_equal(~marks, np.arange(K) == 6 * np.ones((Q, 1)))
    assert legend(plot_attention(query, key, loom.lengths([7] * B, [6] * B))) == ["hidden"]


# -- what is seen ------------------------------------------------------------------------------------------------------


def test_hidden_cells_are_hatched_in_grey_and_blind_rows_otherwise(tensors):
    query, key = tensors
    figure = plot_attention(query, key, mask(), batch_idx=1)  # 5 real queries, 3 real keys
    assert legend(figure) == ["hidden", "query sees nothing"]
    seen, hidden, fully_masked = (cell_pixels(figure, *at) for at in ((4, 1), (1, 3), (6, 1)))
    assert np.ptp(seen, axis=0).max() == 0  # one colour, of the scale
    for pattern in (hidden, fully_masked):
        assert np.ptp(pattern, axis=1).max() <= 2  # grey
        assert np.ptp(pattern[:, 0]) > 20  # with a pattern in it
        assert pattern.mean() > 180
    assert abs(hidden[:, 0].max() - fully_masked[:, 0].max()) > 10  # and not the same
    assert legend(plot_attention(query, key)) == []


def test_everything_hidden_and_one_value_can_be_drawn(tensors):
    query, key = tensors
    assert legend(plot_attention(query, key, loom.nothing)) == ["query sees nothing"]
    plot_attention(query[:, :, :1], key[:, :, :1], probabilities=False).canvas.draw()


def test_axes_title_and_colour_bar_are_named(tensors):
    figure = plot_attention(*tensors, batch_idx=2, head_idx=4)
    assert {"key position", "query position", "probability", "batch row 2, head 4"} <= set(words(figure))
    assert "mine" in words(plot_attention(*tensors, title="mine"))


def test_tokens_are_drawn_as_they_are_written(tensors):
    query, key = tensors
    tokens = ["$x^2$", " the", "\n", "кот", "supercalifragilistic", "", "a_b"]
    figure = plot_attention(query, key, tokens=tokens)
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["$x^2$", "␣the", "\\n", "кот", "supercalifragil…", "", "a_b"]
    assert not any(label.get_parse_math() for label in labels)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "0"  # Q and K differ
    both = plot_attention(query, key, tokens=tokens, key_tokens=[f"k{at}" for at in range(K)])
    assert both.axes[0].get_xticklabels()[-1].get_text() == "k10"
    alike = plot_attention(query, key[:, :, :Q], tokens=tokens)
    assert alike.axes[0].get_xticklabels()[0].get_text() == "$x^2$"
    title = plot_attention(query, key, title="$5 and $6").axes[0].title
    assert not title.get_parse_math()


def test_long_sequences_keep_their_edges_and_say_what_is_left_out():
    q_len, kv_len = POSITIONS_SHOWN + 13, POSITIONS_SHOWN + 71
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 1, q_len, D, generator=generator)
    key = torch.randn(1, 1, kv_len, D, generator=generator)
    figure = plot_attention(query, key, loom.window(back=2))
    drawn = cells(figure)
    truth = probabilities(attention_scores(query, key, loom.window(back=2)))[0][0, 0].numpy()
    half = POSITIONS_SHOWN // 2
    np.testing.assert_allclose(drawn.filled(0)[:half, :half], truth[:half, :half], atol=1e-6)
    np.testing.assert_allclose(drawn.filled(0)[-half:, -half:], truth[-half:, -half:], atol=1e-6)
    assert np.ma.getmaskarray(drawn)[half:-half].all()
    assert f"query position ({half} to {q_len - half - 1} left out)" in words(figure)
    assert f"key position ({half} to {kv_len - half - 1} left out)" in words(figure)
    assert legend(figure) == ["hidden"]  # a query whose keys are all left out sees something


def test_size_grows_with_length_within_bounds():
    sizes = [
        plot_attention(torch.ones(1, 1, n, 2), torch.ones(1, 1, n, 2)).get_size_inches() for n in (5, 13, 60, 3000)
    ]
    assert all((smaller <= larger).all() for smaller, larger in pairwise(sizes))
    assert sizes[-1].max() < 12


# -- tiles -------------------------------------------------------------------------------------------------------------


def test_tiles_are_the_tables_with_counts_and_cut_ends():
    blocks = loom.block_mask(mask(), Q, K, block_size=(2, 3))
    states = tile_states(blocks)[:, 0].numpy()
    figure = plot_tiles(blocks, names=["a", "$b$", "c"])
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["a", "$b$", "c"]
    for axes, expected in zip(panels, states, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        assert axes.get_xlim() == pytest.approx((-0.5, K / 3 - 0.5))
        assert axes.get_ylim() == pytest.approx((Q / 2 - 0.5, -0.5))
    counted = [int(text.split()[1]) for text in legend(figure)]
    assert counted == [int((states == state).sum()) for state in (SKIPPED, PARTIAL, FULL)]
    assert figure.legends[0].get_title().get_text() == "7 queries × 11 keys in tiles of 2 × 3"


def test_one_batch_row_of_tiles_with_positions():
    blocks = loom.block_mask(mask(), Q, K, block_size=(2, 3))
    figure = plot_tiles(blocks, batch_idx=2)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), tile_states(blocks)[2, 0].numpy())
    assert {"key tile", "query tile", "key position", "query position", "batch row 2, all heads"} <= set(words(figure))
    assert [text.get_text() for text in axes.child_axes[1].get_xticklabels()] == ["0", "3", "6", "9", "11"]


def test_shared_tables_stand_for_every_batch_row():
    figure = plot_tiles(loom.block_mask(loom.causal, Q, K, block_size=2), batch_idx=13, head_idx=5)
    assert "all batch rows, all heads" in words(figure)


def test_only_max_rows_are_drawn_and_the_rest_is_named():
    blocks = loom.block_mask(loom.lengths([1, 2, 3, 5, 7]), Q, Q, block_size=2)
    figure = plot_tiles(blocks, max_rows=3, title="five")
    assert sum(bool(axes.images) for axes in figure.axes) == 3
    assert "five\nthe first 3 batch rows, and 2 more" in words(figure)


def test_thousands_of_tiles_are_one_image():
    figure = plot_tiles(loom.block_mask(loom.causal, 200, 300, block_size=2))
    assert cells(figure).shape == (100, 150)
    assert len(figure.axes[0].patches) == 0


def test_tile_fills_differ_in_grey():
    from matplotlib.colors import to_rgb

    from maskloom.show.tile_map import FILLS

    light = sorted(float(np.dot(to_rgb(fill), (0.299, 0.587, 0.114))) for fill in FILLS.values())
    assert np.diff(light).min() > 0.2


# -- files -------------------------------------------------------------------------------------------------------------


def test_visualize_writes_where_it_is_told(tensors, tmp_path, monkeypatch):
    query, key = tensors
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for path, file in (
        (None, "layer.0_mask.png"),
        ("pictures", "pictures/layer.0_mask.png"),
        (Path("new/other"), "new/other.png"),
        ("drawing.svg", "drawing.svg"),
    ):
        written = visualize_attention_scores(
            query, key, mask_mod=mask(), device="cpu", name="layer.0_mask", path=path, batch_idx=1
        )
        assert written == Path(file)
        assert written.stat().st_size > 1000
    image = imread("layer.0_mask.png")
    assert min(image.shape[:2]) > 300
    assert image.std() > 0.05
    assert "</svg>" in Path("drawing.svg").read_text()


def test_the_title_of_visualize_is_its_name(tensors, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("maskloom.show.plot.save_figure", lambda figure, path: kept.append(figure))
    query, key = tensors
    visualize_attention_scores(query, key, name="causal_padding_mask", path=tmp_path, head_idx=3)
    assert "causal padding mask\nbatch row 0, head 3" in words(kept[0])


def test_a_failure_leaves_the_old_file_and_nothing_else(tensors, tmp_path, monkeypatch):
    figure = plot_attention(*tensors)
    path = tmp_path / "mask.png"
    path.write_text("before")

    def breaks(file, **_):
        file.write(b"half")
        raise RuntimeError("out of ink")

    monkeypatch.setattr(figure, "savefig", breaks)
    with pytest.raises(RuntimeError, match="out of ink"):
        save_figure(figure, path)
    with pytest.raises(RuntimeError, match="out of ink"):
        save_figure(figure, tmp_path / "new.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.png"]
    assert path.read_text() == "before"


def test_a_file_that_cannot_be_written_is_named(tensors, tmp_path):
    figure = plot_attention(*tensors)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "mask.png", tmp_path / "folder.png"):
        with pytest.raises(OSError, match="cannot write the figure: .*" + re.escape(str(path))):
            save_figure(figure, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_files_have_ordinary_permissions_and_the_same_bytes_again(tensors, tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    first, second = (save_figure(plot_attention(*tensors), tmp_path / name) for name in ("a.png", "b.PNG"))
    assert first.stat().st_mode == ordinary.stat().st_mode
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["mask.jpg", "mask"])
def test_other_suffixes_are_refused(tensors, tmp_path, name):
    with pytest.raises(ValueError, match=r"saved as \.png or \.svg; got suffix '(\.jpg)?'"):
        save_figure(plot_attention(*tensors), tmp_path / name)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_idx": 3}, "batch_idx is from 0 to 2, as there are 3 batch rows; got 3"),
        ({"head_idx": -1}, "head_idx is from 0 to 9, as there are 10 query heads; got -1"),
        ({"head_idx": 1.0}, r"head_idx is .*an int; got float: 1\.0"),
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
        ({"mask": loom.block_mask(loom.causal, 5, 13)}, r"lengths \(Q, K\) = \(5, 13\); query and key have \(7, 11\)"),
        (
            {"mask": loom.block_mask(loom.lengths([1, 2]), Q, K)},
            "the block mask has 2 batch rows, and query has 3; it needs 3, or 1 for all",
        ),
        ({"mask": loom.lengths([1, 2])}, "2"),
        ({"mask": 5}, "a mask is a function"),
    ],
)
def test_errors_of_plot_attention_name_what_was_passed(tensors, change, message):
    arguments = {"query": tensors[0], "key": tensors[1], **change}
    with pytest.raises((TypeError, ValueError), match=message):
        plot_attention(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_idx": 3}, "batch_idx is from 0 to 2, as there are 3 batch rows; got 3"),
        ({"head_idx": -1}, "head_idx is from 0 to 0"),
        ({"head_idx": "0"}, "head_idx is .*an int; got str: '0'"),
        ({"max_rows": 0}, "max_rows is a number of batch rows, at least 1; got 0"),
        ({"names": ["a", "b"]}, "names has one name for each of the tables' 3 batch rows; got 2"),
        ({"block_mask": loom.causal}, "block_mask is a BlockMask, .*; got Causal"),
    ],
)
def test_errors_of_plot_tiles_name_what_was_passed(change, message):
    arguments = {"block_mask": loom.block_mask(mask(), Q, K, block_size=2), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        plot_tiles(**arguments)


# -- imports -----------------------------------------------------------------------------------------------------------


def test_importing_does_not_import_matplotlib_and_drawing_does_not_import_pyplot(tmp_path):
    program = f"""
import sys
import maskloom, maskloom.show.plot as plot
assert "matplotlib" not in sys.modules
import torch
tensor = torch.ones(1, 1, 3, 2)
plot.visualize_attention_scores(tensor, tensor, mask_mod=maskloom.causal, path={str(tmp_path / "a.svg")!r})
plot.save_figure(plot.plot_tiles(maskloom.block_mask(maskloom.causal, 5, 5)), {str(tmp_path / "b.png")!r})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(loom.__file__).parents[1])},
    )


def test_labels_are_multiples_of_a_round_step_and_the_last():
    assert figures.spaced(range(5), 5.0, apart=0.3) == [0, 1, 2, 3, 4]
    assert figures.spaced(range(48), 3.0, apart=0.3) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 47]
    assert figures.spaced([0], 0.1, apart=0.3) == [0]
