"""What notebooks show: HTML at once, with a picture of what is there."""

import base64
import html
import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import maskloom as loom
from maskloom.core import words
from maskloom.show.notebook import html_of, png


def picture_in(page):
    """The pixels of the only image: (rows, columns, 4), 0 to 255."""
    (data,) = re.findall(r"base64,([\w+/=]+)", page)
    return (imread(io.BytesIO(base64.b64decode(data))) * 255).round().astype(int)


def drawn(page):
    return picture_in(page)[..., 3] == 255  # hidden cells are half transparent


def test_a_mask_has_its_picture():
    mask = loom.causal & loom.lengths([5, 11])
    page = mask._repr_html_()
    np.testing.assert_array_equal(drawn(page), mask.dense(11, 11)[0, 0].numpy())
    assert "causal &amp; lengths(int64[2])" in page
    assert "11 queries × 11 keys, batch row 0 of 2, all heads" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("mask", "length"), [(loom.causal, 32), (loom.window(back=100), 256), (loom.documents(offsets=[0, 2, 3]), 3)]
)
def test_the_length_of_a_picture_shows_the_mask(mask, length):
    page = mask._repr_html_()
    assert f"{length} queries × {length} keys" in page
    assert drawn(page).any() and not drawn(page).all()


def test_a_mask_with_its_own_heads_or_of_a_function():
    page = loom.as_mask(lambda b, h, q, k: q >= k + h)._repr_html_()
    assert "all batch rows, head 0" in page
    np.testing.assert_array_equal(drawn(page), np.tril(np.ones((32, 32), dtype=bool)))


def test_a_block_mask_has_its_tiles_and_true_numbers():
    blocks = loom.block_mask(loom.causal, 300, 300)
    page = html_of(blocks)
    tiles = picture_in(page)
    assert tiles.shape == (3, 3, 4)
    assert tiles[0, 2].tolist() == [128, 128, 128, 48] and tiles[1, 0].tolist() == [46, 124, 214, 255]
    assert "% of the pairs are visited" in page and "block mask of causal" in page
    assert type(blocks).__repr__.__module__ == type(blocks).__module__  # torch's own, as it was


def test_reports_have_their_words_and_a_bar():
    query = torch.zeros(1, 1, 300, 8)
    blocks = loom.block_mask(loom.causal, 300, 300)
    summary = loom.blocks.summary(blocks)
    for report in (summary, loom.explain(query, query, query, blocks)):
        page = report._repr_html_()
        assert html.escape(str(report)) in page
        assert f'title="full {summary.full}"' in page
    decided = loom.blocks.explain_block_mask(loom.causal, 300, 300)
    assert "decided by" in decided._repr_html_()


def test_the_plan_of_ranks_has_the_picture_of_its_mask():
    plan = SimpleNamespace(mask=loom.causal, length=64)
    page = html_of(plan)
    assert "64 queries × 64 keys" in page and html.escape(str(plan)) in page


def test_what_is_written_in_names_is_text():
    def evil(b, h, q, k):
        return q >= k

    evil.__name__ = "<img onerror=alert(1)></script>"
    page = loom.as_mask(evil)._repr_html_()
    assert "<img onerror" not in page and "</script>" not in page


def test_a_mask_that_cannot_be_drawn_says_why():
    page = loom.as_mask(lambda b, h, q, k: q + k)._repr_html_()
    assert "no picture: " in page


def test_png_is_an_image():
    pixels = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 4) + 200
    image = (imread(io.BytesIO(png(pixels))) * 255).round()
    np.testing.assert_array_equal(image, pixels.numpy())


class Shell:
    """As much of IPython's shell as is used."""

    class Formatter(dict):
        def for_type_by_name(self, module, name, function):
            self[module, name] = function

    def __init__(self):
        self.display_formatter = self
        self.formatters = {"text/html": self.Formatter(), "text/plain": self.Formatter()}


def test_block_masks_are_registered_with_a_shell():
    shell = Shell()
    loom.load_ipython_extension(shell)
    kind = "torch.nn.attention.flex_attention", "BlockMask"
    assert "block mask of causal" in shell.formatters["text/html"][kind](loom.block_mask(loom.causal, 5, 7))
    said = []
    printer = type("Printer", (), {"text": lambda self, words: said.append(words)})()
    shell.formatters["text/plain"][kind](loom.block_mask(loom.lengths([1, 2, 3]), 5, 7), printer, False)
    assert said == ["BlockMask(B=3, H=1, Q=5, KV=7, tiles of 128×128, lengths(int64[3]))"]
    words.register_block_masks()  # without IPython nothing happens


CELLS = (
    "import maskloom as loom\nloom.causal & loom.lengths([2, 3])",
    "loom.block_mask(loom.causal, 300, 300)",
    "loom.show.mask(loom.causal, 5)",
    "loom.blocks.summary(loom.block_mask(loom.causal, 300, 300))",
)


def test_a_fresh_kernel_shows_everything():
    """In a real kernel of IPython; needs nbclient and ipykernel."""
    client = pytest.importorskip("nbclient", reason="needs nbclient, which runs a notebook")
    pytest.importorskip("ipykernel", reason="needs ipykernel, the kernel of a notebook")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    paths = os.pathsep.join([str(Path(loom.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    client.NotebookClient(book, timeout=300, kernel_name="python3").execute(env=os.environ | {"PYTHONPATH": paths})
    mask, blocks, figure, summary = (cell.outputs[-1].data for cell in book.cells)
    assert drawn(mask["text/html"]).shape == (3, 3)
    assert picture_in(blocks["text/html"]).shape == (3, 3, 4)
    assert blocks["text/plain"] == "BlockMask(B=1, H=1, Q=300, KV=300, tiles of 128×128, causal)"
    assert base64.b64decode(figure["image/png"]).startswith(b"\x89PNG")
    assert "% of the pairs are visited" in summary["text/html"]
