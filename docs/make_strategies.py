"""Draws docs/pictures/strategies.png: who computes which tiles of a mask, and who gets which keys, by each strategy.

`docs.make_pictures` writes it.
"""

import itertools
from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

import maskloom as loom
from maskloom.distributed.asking import Weighed, checked, weighed

RANKS, HEADS, LENGTH = 4, 8, 256
COLOURS = ("#17406d", "#c1461f", "#3a8f5d", "#d9a520")
STRATEGIES = ("heads", "gather", "needed")


def figures() -> dict[str, Callable[[], Figure]]:
    """What this file draws, by the name of its picture."""
    return {"strategies": picture}


def masks() -> dict[str, loom.Mask]:
    """The masks that are drawn."""
    return {
        "causal": loom.causal,
        "documents & causal": loom.documents(offsets=[0, 30, 112, 170, 256]) & loom.causal,
        "window(back=47)": loom.window(back=47),
    }


def picture() -> Figure:
    """A row for each strategy, a column for each mask."""
    figure = Figure(figsize=(9.0, 9.6), layout="constrained")
    axes = figure.subplots(len(STRATEGIES), len(masks()))
    for row, strategy in enumerate(STRATEGIES):
        for column, (name, mask) in enumerate(masks().items()):
            asked = checked(mask, LENGTH, [RANKS], heads=(HEADS, 2), strategy=strategy)
            _draw(axes[row][column], weighed(asked, [RANKS]))
            if row == 0:
                axes[row][column].set_title(name)
        axes[row][0].set_ylabel(f'"{strategy}"\nqueries')
    figure.supxlabel("keys; the bars show which keys each rank gets from others", fontsize="medium")
    figure.legend(
        handles=[Patch(color=colour, label=f"rank {rank}") for rank, colour in enumerate(COLOURS)],
        loc="outside upper center",
        ncols=RANKS,
        frameon=False,
    )
    return figure


def _draw(axes: Axes, asked: Weighed) -> None:
    """Visible tiles in the colours of the ranks that compute them; below, the keys that each gets from others."""
    scheme, visible = asked.schemes[0], asked.tiles.needed
    count = asked.tiles.number
    if scheme.assignment is None:
        _shared_tiles(axes, visible)
    else:
        owner = {tile: rank for rank, own in enumerate(scheme.assignment.tiles) for tile in own}
        image = torch.ones(count, count, 3)
        for query, rank in owner.items():
            image[query][visible[query]] = torch.tensor(to_rgb(COLOURS[rank]))
        axes.imshow(image, extent=(0, count, count, 0), interpolation="nearest")
        own_keys = [torch.tensor([owner[key] == rank for key in range(count)]) for rank in range(RANKS)]
        wanted = scheme.foreign or [~own for own in own_keys]
        _bars(axes, list(wanted), count)
    axes.set(xlim=(0, count), ylim=(count + RANKS + 1, 0), xticks=[], yticks=[], aspect="equal")


def _shared_tiles(axes: Axes, visible: torch.Tensor) -> None:
    """The whole mask once for each rank, small, since every rank computes all tiles for some of the heads."""
    count, heads = len(visible), HEADS // RANKS
    for rank, (down, across) in enumerate(itertools.product(range(2), range(2))):
        image = torch.ones(count, count, 3)
        image[visible] = torch.tensor(to_rgb(COLOURS[rank]))
        left, top, side = across * count / 2, down * count / 2, count / 2 - 1
        axes.imshow(image, extent=(left, left + side, top + side, top), interpolation="nearest")
        words = f"heads {heads * rank} to {heads * (rank + 1) - 1}"
        axes.text(left + side - 1, top + 1, words, ha="right", va="top", fontsize=7, color="0.3")


def _bars(axes: Axes, wanted: list[torch.Tensor], count: int) -> None:
    for rank, keys in enumerate(wanted):
        for key in keys.nonzero().flatten().tolist():
            axes.add_patch(Rectangle((key, count + 1 + rank), 1, 0.7, color=COLOURS[rank], linewidth=0))
