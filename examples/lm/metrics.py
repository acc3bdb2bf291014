"""What a run says of itself: a progress bar, lines, and a row in a CSV file for each of them."""

import csv
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = ("layout", "corpus", "step", "tokens", "loss", "validation", "real", "tokens_per_s")


class Metrics:
    """Collects numbers of steps, and reports them now and then; on the first process alone.

    A row has the mean loss of a token since the last row, in nats; the validation loss, if it was measured; the share of
    positions that held a token; and real tokens per second.
    """

    def __init__(self, path: Path, labels: dict[str, str], steps: int, start: int, *, quiet: bool) -> None:
        self.path, self.labels, self.quiet = path, labels, quiet
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), disable=quiet
        )
        self._task = self.bar.add_task("training", total=steps, completed=start)
        self.rows = [row for row in _rows_of(path) if int(row["step"]) <= start]
        self.tokens = int(self.rows[-1]["tokens"]) if self.rows else 0
        self._clear()
        if not quiet:
            self._write()

    def say(self, text: str) -> None:
        """Print a line, on the first process."""
        if not self.quiet:
            self.bar.console.print(text, highlight=False, soft_wrap=True)

    def step(self, loss: float, targets: float, real: float, positions: float) -> None:
        """Count a step: sums over all processes."""
        for name, number in (("loss", loss), ("targets", targets), ("real", real), ("positions", positions)):
            self._sums[name] += number
        self.tokens += int(real)
        self.bar.advance(self._task)

    def report(self, step: int, validation: float | None) -> None:
        """Write a row of the steps since the last one."""
        sums, seconds = self._sums, time.perf_counter() - self._since
        numbers = {
            "step": step,
            "tokens": self.tokens,
            "loss": f"{sums['loss'] / sums['targets']:.5f}" if sums["targets"] else "",
            "validation": "" if validation is None else f"{validation:.5f}",
            "real": f"{sums['real'] / sums['positions']:.3f}" if sums["positions"] else "",
            "tokens_per_s": round(sums["real"] / seconds),
        }
        self.rows.append({**self.labels, **{name: str(number) for name, number in numbers.items()}})
        if not self.quiet:
            self._write()
        self.say("  ".join(f"{name} {number}" for name, number in numbers.items() if number != ""))
        self._clear()

    def _clear(self) -> None:
        self._sums = dict.fromkeys(("loss", "targets", "real", "positions"), 0.0)
        self._since = time.perf_counter()

    def _write(self) -> None:
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def _rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))
