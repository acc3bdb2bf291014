"""The Figure of all pictures. matplotlib is loaded with this module, so it is imported where a picture is drawn."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib Figure that a notebook shows without pyplot, and that warns of missing letters once."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.1)
        return drawn.getvalue()

    _is_laid_out = False

    def draw(self, renderer: Any) -> None:
        """As matplotlib draws it.

        The first time it is laid out twice: cells of a fixed aspect make panels smaller, and labels around them are measured
        right only then.
        """
        engine = self.get_layout_engine()
        if engine is not None and not self._is_laid_out:
            engine.execute(self)
            self._is_laid_out = True
        with _without_glyph_warnings():
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """As matplotlib saves it."""
        with _without_glyph_warnings():
            super().savefig(fname, **options)


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """matplotlib warns for each letter and each draw; `maskloom.show.labels` has warned once, and said what to install."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
