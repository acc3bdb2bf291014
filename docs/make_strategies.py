"""Makes docs/pictures/strategies.png: who computes which tiles of a mask, and who gets which keys, by each strategy.

python -m docs.make_strategies
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import maskloom as loom
from maskloom.distributed.asking import Weighed, checked, weighed

PICTURE = Path(__file__).parent / "pictures" / "strategies.png"
RANKS, LENGTH = 4, 256
COLOURS = ("#17406d", "#c1461f", "#3a8f5d", "#d9a520")
STRATEGIES = ("heads", "gather", "needed")


def main() -> None:
    """Write the picture."""
    loom.show.save_figure(picture(), PICTURE, dpi=130)


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
            asked = checked(mask, LENGTH, [RANKS], heads=(8, 2), strategy=strategy)
            _draw(axes[row][column], weighed(asked, [RANKS]))
            if row == 0:
                axes[row][column].set_title(name)
        axes[row][0].set_ylabel(f'"{strategy}"\nqueries')
    figure.supxlabel("keys; the bars show which keys each rank gets from others", fontsize="medium")
    return figure


def _draw(axes: Axes, asked: Weighed) -> None:
    """Visible tiles in the colours of the ranks that compute them; below, the keys that each gets from others."""
    scheme, visible = asked.schemes[0], asked.tiles.needed
    count = asked.tiles.number
    if scheme.assignment is None:
        _shared_tiles(axes, visible.tolist())
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


def _shared_tiles(axes: Axes, visible: list[list[bool]]) -> None:
    """Tiles that all ranks compute, each for some heads: a stripe of each colour."""
    for query, row in enumerate(visible):
        for key, seen in enumerate(row):
            for rank in range(RANKS) if seen else ():
                axes.add_patch(Rectangle((key + rank / RANKS, query), 1 / RANKS, 1, color=COLOURS[rank], linewidth=0))


def _bars(axes: Axes, wanted: list[torch.Tensor], count: int) -> None:
    for rank, keys in enumerate(wanted):
        for key in keys.nonzero().flatten().tolist():
            axes.add_patch(Rectangle((key, count + 1 + rank), 1, 0.7, color=COLOURS[rank], linewidth=0))


if __name__ == "__main__":
    main()
