"""Makes the plots of measured tables from committed rows.

python docs/make_plots.py
"""

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import maskloom as loom

HERE = Path(__file__).parent
ROWS = HERE.parent / "benchmarks" / "results" / "blocks.csv"
COLOURS = {
    "causal": "#17406d",
    "causal & padding": "#c1461f",
    "window 1k": "#2e8b57",
    "16 documents & causal": "#8a5a9e",
}


def main() -> None:
    """Write docs/pictures/blocks.png."""
    with ROWS.open() as file:
        rows = list(csv.DictReader(file))
    loom.save_figure(plot(rows), HERE / "pictures" / "blocks.png", dpi=150)


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Time to build a block mask against length, ours and torch's eager evaluation."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for mask, colour in COLOURS.items():
        for column, style in (("ours_ms", "-o"), ("torch_eager_ms", "--s")):
            points = [(int(row["length"]), float(row[column])) for row in rows if row["mask"] == mask and row[column]]
            axes.plot(*zip(*points, strict=True), style, color=colour, markersize=4, linewidth=1.5)
        axes.plot(
            [], [], "-", color=colour, label=f"{mask}, batch {next(r['batch'] for r in rows if r['mask'] == mask)}"
        )
    axes.plot([], [], "-o", color="0.4", markersize=4, label="maskloom")
    axes.plot([], [], "--s", color="0.4", markersize=4, label="torch, eager")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({int(row["length"]) for row in rows})
    axes.set_xticks(lengths, [f"{length // 1024}k" for length in lengths])
    axes.set_xlabel("length, in positions")
    axes.set_ylabel("milliseconds")
    axes.set_title(
        f"Building a block mask on the CPU ({rows[0]['device']}, torch {rows[0]['torch']}, one thread)", fontsize=10
    )
    axes.grid(which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
