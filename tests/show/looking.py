"""What is seen in a figure: its cells, words, legend and pixels."""

import numpy as np

import maskloom as loom
from maskloom.show.figures import LIGHT


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


def colour(name):
    """A colour as pixels have it."""
    from matplotlib.colors import to_rgb

    return [round(255 * part) for part in to_rgb(name)]


def visible(figure, panel=0):
    """Which cells of a picture of a mask are not drawn as hidden."""
    image = np.asarray(figure.axes[panel].images[0].get_array())
    return (np.abs(image - np.array(colour(LIGHT.hidden)) / 255) > 1e-6).any(-1)
