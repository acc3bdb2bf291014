"""Draw the curves of some runs of ``train_lm.py`` into one picture.

python examples/plot_curves.py runs/packed runs/padded --out curves.png
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

import maskloom as loom

STYLES = (("#17406d", "-", 5.0), ("#c1461f", "--", 2.6), ("#e8c547", ":", 1.6), ("#2e8b57", "-.", 1.0))
"""Colours, styles and widths by turns: curves may lie on one another, so that later ones are thinner."""

Row = Mapping[str, str]


def curves(runs: Mapping[str, Sequence[Row]]) -> Figure:
    """Training and validation loss against real tokens, for each named run; rows as in ``metrics.csv``."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(panels, ("loss", "validation"), ("training", "validation"), strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            colour, style, width = STYLES[number % len(STYLES)]
            found = [row for row in rows if row[column]]
            tokens, losses = [int(row["tokens"]) / 1000 for row in found], [float(row[column]) for row in found]
            axes.plot(tokens, losses, style, color=colour, linewidth=width, label=name)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("thousands of real tokens")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss, nats a token")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def rows_of(run: Path) -> list[Row]:
    path = run / "metrics.csv"
    if not path.exists():
        raise SystemExit(f"{run} is no folder of a run: it has no metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that train_lm.py wrote with --out")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    given = parser.parse_args(words)
    loom.show.save_figure(curves({str(run): rows_of(run) for run in given.runs}), given.out, dpi=150)


if __name__ == "__main__":
    main()
