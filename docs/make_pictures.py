"""Makes the pictures of README and docs, and the demo's, which are README's; those of masks are made by `docs.make_masks`.

    python -m docs.make_pictures

A plot whose rows are not measured yet is left out. tests/docs/test_pictures.py makes all of them and compares.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure

import maskloom as loom
from docs import make_architecture, make_plots, make_strategies, make_training
from maskloom import demo

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    """Write all of them."""
    for name, make in makers().items():
        (PICTURES / name).write_bytes(make())


def makers() -> dict[str, Callable[[], bytes]]:
    """For each picture what makes it."""
    figures = make_architecture.figures() | make_strategies.figures() | make_plots.figures() | make_training.figures()
    plots = {f"{name}.png": _png(draw) for name, draw in figures.items()}
    return plots | {name: _of_demo(name) for name in ("attention.png", "tiles.png")}


def _png(draw: Callable[[], Figure]) -> Callable[[], bytes]:
    def make() -> bytes:
        with _folder() as folder:
            return loom.show.save_figure(draw(), folder / "picture.png", dpi=150).read_bytes()

    return make


def _of_demo(name: str) -> Callable[[], bytes]:
    return lambda: _demo()[name]


@cache
def _demo() -> dict[str, bytes]:
    """What `maskloom demo` draws."""
    with _folder() as folder:
        found = demo.run(
            None, heads=8, dim=64, out=folder, device="cpu", progress=lambda step: contextlib.nullcontext()
        )
        return {path.name: path.read_bytes() for path in found.pictures}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


if __name__ == "__main__":
    main()
