"""Draws docs/pictures/architecture.png: the package's rooms on their floors, and who imports whom, read from the imports.

`docs.make_pictures` writes it.
"""

import ast
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import maskloom as loom

PACKAGE = Path(loom.__file__).parent

FLOORS = ("core", "program", "batches", "masks", "blocks", "scores", "attention", "loading", "nn", "distributed")
"""Bottom to top. A room imports from rooms below it alone; tests/test_surface.py checks it."""

EDGE = ("show", "integrations", "testing", "demo", "cli")
"""At the edge: they import any floor, and no floor imports them."""

_SUBFOLDERS = {
    "masks": ("patterns", "patterns/packed", "patterns/grids"),
    "blocks": ("intervals", "intervals/rules", "replay"),
    "attention": ("backends", "kernels", "plans", "sliced", "dropout"),
    "nn": ("convert",),
    "distributed": ("sharing", "exchange"),
}
_WIDTH = 9.0
_COLUMNS = 156  # characters in a line of files
_INK, _PAPER, _ARROW = "#17406d", "#eef3f9", "#c1461f"


def figures() -> dict[str, Callable[[], Figure]]:
    """What this file draws, by the name of its picture."""
    return {"architecture": picture}


def floors() -> list[str]:
    """The floors that exist, bottom to top."""
    return [floor for floor in FLOORS if (PACKAGE / floor).is_dir()]


def files(floor: str) -> str:
    """What stands on a floor: its files, and the files of its folders in brackets."""
    words = _stems(PACKAGE / floor)
    for folder in _SUBFOLDERS.get(floor, ()):
        words.append(f"{folder} ({', '.join(_stems(PACKAGE / floor / folder))})")
    return " · ".join(words)


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))


def arrows() -> Counter[tuple[str, str]]:
    """How many import statements lead from one floor down to another."""
    found: Counter[tuple[str, str]] = Counter()
    for floor in floors():
        for path in (PACKAGE / floor).rglob("*.py"):
            if path.parent == PACKAGE / floor and path.name == "__init__.py":  # a namespace may show what stands higher
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskloom."):
                    below = node.module.split(".")[1]  # type: ignore[union-attr]
                    if below in FLOORS and below != floor:
                        found[floor, below] += 1
    return found


def picture() -> Figure:
    """The floors, bottom to top, and the imports as arrows down."""
    names = floors()
    figure = Figure(figsize=(_WIDTH, 0.8 * len(names) + 0.4))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-2.6, _WIDTH)
    axes.set_ylim(-0.45, len(names) + 0.15)
    axes.axis("off")
    for row, name in enumerate(names):
        _floor(axes, row, name)
    _edge(axes, len(names))
    counted = arrows()
    most = max(counted.values())
    for (above, below), count in sorted(counted.items()):
        _arrow(axes, names.index(above), names.index(below), count / most)
    return figure


def _floor(axes: Axes, row: int, name: str) -> None:
    axes.add_patch(
        FancyBboxPatch((0, row - 0.36), _WIDTH - 0.2, 0.72, boxstyle="round,pad=0.05", facecolor=_PAPER, edgecolor=_INK)
    )
    axes.text(0.1, row + 0.25, name, color=_INK, weight="bold", fontsize=9, va="center")
    axes.text(0.1, row + 0.12, textwrap.fill(files(name), _COLUMNS), color="#333333", fontsize=5.8, va="top")


def _edge(axes: Axes, row: int) -> None:
    there = [name for name in EDGE if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()]
    axes.text(
        0.1,
        row - 0.1,
        "at the edge, imported by no floor: " + " · ".join(there),
        color="#666666",
        fontsize=7,
        va="center",
    )


def _arrow(axes: Axes, above: int, below: int, weight: float) -> None:
    """An arrow on the left; the further it leads, the further out it bends."""
    axes.add_patch(
        FancyArrowPatch(
            (-0.05, above), (-0.05, below), arrowstyle="-|>", mutation_scale=8, color=_ARROW,
            linewidth=0.5 + 2.5 * weight, alpha=0.35 + 0.5 * weight, connectionstyle=f"arc3,rad={0.25 + 0.02 * (above - below)}",
        )
    )  # fmt: skip
