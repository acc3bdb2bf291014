"""The committed pictures are what their programs draw, each picture has a program, and nothing in them is cut."""

import io
import re

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from docs import make_architecture, make_masks, make_pictures

PICTURES = make_pictures.PICTURES
MAKERS = make_pictures.makers()
CELL = 16  # pixels of a side: letters of another font are alike from there


def coarse(png):
    """The mean colour of each cell of a picture, and its size in pixels."""
    image = imread(io.BytesIO(png))[..., :3]
    height, width = image.shape[:2]
    rows, columns = height // CELL, width // CELL
    cells = image[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL, 3)
    return cells.mean((1, 3)), (height, width)


def alike(one, other):
    """Whether two pictures have one size, and show the same, but for single letters and lines."""
    (first, size), (second, other_size) = coarse(one), coarse(other)
    return size == other_size and float(np.abs(first - second).max()) < 0.08


@pytest.mark.parametrize("name", MAKERS)
def test_a_picture_is_what_its_program_draws(name):
    is_current = alike(MAKERS[name](), (PICTURES / name).read_bytes())
    assert is_current, "run python -m docs.make_pictures"


def test_another_picture_is_seen():
    pictures = {name: (PICTURES / name).read_bytes() for name in ("blocks.png", "blocks_gpu.png", "tiles.png")}
    assert all(alike(one, other) == (one is other) for one in pictures.values() for other in pictures.values())


def test_no_picture_is_without_a_program():
    found = {str(path.relative_to(PICTURES)) for path in PICTURES.rglob("*") if path.is_file()}
    of_masks = {name for name in found if name.startswith("masks/")}
    assert found - of_masks == MAKERS.keys()
    assert {re.sub(r"masks/(.*)\.\w+", r"\1", name) for name in of_masks} == make_masks.named().keys()


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_reaches_the_edge_of_a_picture(name):
    image = imread(PICTURES / name)
    edges = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all((edge == image[0, 0]).all() for edge in edges)


def test_the_files_of_a_floor_and_the_arrows_are_seen_whole():
    figure = make_architecture.picture()
    figure.set_dpi(150)
    figure.canvas.draw()
    [axes] = figure.axes
    floors = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    texts = [text for text in axes.texts if not text.get_text().startswith("at the edge")]
    assert len(texts) == 2 * len(floors)
    for number, text in enumerate(texts):
        assert contains(floors[number // 2], text.get_window_extent()), text.get_text()
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == len(make_architecture.arrows())
    assert all(contains(axes.bbox, arrow.get_window_extent()) for arrow in arrows)


def contains(outer, inner):
    return outer.contains(inner.x0, inner.y0) and outer.contains(inner.x1, inner.y1)
