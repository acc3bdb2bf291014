"""Small runs of the example that trains."""

import csv
from pathlib import Path

_OPTIONS = {
    "d-model": 16, "layers": 2, "heads": 4, "kv-heads": 2, "capacity": 192, "rows": 4, "validation-rows": 5, "steps": 6,
    "report-every": 1, "validate-every": 3, "save-every": 3, "lr": 1e-2,
}  # fmt: skip
TINY = [word for name, value in _OPTIONS.items() for word in (f"--{name}", str(value))]
CURVE = ("step", "tokens", "loss", "validation")


def curve(out: Path) -> list[list[float]]:
    """The rows of a run: what does not depend on the machine."""
    with (out / "metrics.csv").open() as file:
        return [[float(row[name] or "nan") for name in CURVE] for row in csv.DictReader(file)]
