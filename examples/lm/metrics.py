"""What a run says of itself: a progress bar, lines, and a row in a CSV file for each of them."""

import csv
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = ("layout", "corpus", "step", "tokens", "loss", "validation", "real", "tokens_per_s")


class Sums(NamedTuple):
    """Of one step and all processes: the loss of all targets together; the numbers of targets, tokens and positions."""

    loss: float
    targets: float
    tokens: float
    positions: float


def mean(loss: float, targets: float) -> float | None:
    """The mean loss of a target; None if there is none."""
    return loss / targets if targets else None


class Metrics:
    """Collects numbers of steps, and reports them now and then; on the first process alone.

    A row has the mean loss of a token since the last row, in nats; the validation loss, if it was measured; the share of
    positions that held a token; and real tokens per second.
    """

    _sums: Sums
    _seconds: float

    def __init__(self, path: Path, labels: dict[str, str], steps: int, start: int, *, quiet: bool) -> None:
        self.path, self.labels, self.quiet = path, labels, quiet
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), disable=quiet
        )
        self._task = self.bar.add_task("training", total=steps, completed=start)
        self.rows = [] if quiet else [row for row in rows_of(path) if int(row["step"]) <= start]
        self.tokens = int(self.rows[-1]["tokens"]) if self.rows else 0
        self._clear()
        if not quiet:
            self._write()

    def say(self, text: str) -> None:
        """Print a line, on the first process."""
        if not self.quiet:
            self.bar.console.print(text, highlight=False, soft_wrap=True)

    def step(self, sums: Sums) -> None:
        """Count a step."""
        self._sums = Sums(*map(sum, zip(self._sums, sums, strict=True)))
        self.tokens += round(sums.tokens)
        self._seconds += time.perf_counter() - self._since
        self.mark()
        self.bar.advance(self._task)

    def mark(self) -> None:
        """The next step begins now: what was done since the last one is not counted into its time."""
        self._since = time.perf_counter()

    def report(self, step: int, validation: float | None) -> None:
        """Write a row of the steps since the last one."""
        sums = self._sums
        numbers = {
            "step": step,
            "tokens": self.tokens,
            "loss": _shown(mean(sums.loss, sums.targets)),
            "validation": _shown(validation),
            "real": f"{sums.tokens / sums.positions:.3f}",
            "tokens_per_s": round(sums.tokens / self._seconds),
        }
        self.rows.append({**self.labels, **{name: str(number) for name, number in numbers.items()}})
        if not self.quiet:
            self._write()
        self.say(_line(numbers))
        self._clear()

    def _clear(self) -> None:
        self._sums, self._seconds = Sums(0, 0, 0, 0), 0.0
        self.mark()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")  # so that a run that is killed loses no row
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.path)


def _shown(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.5f}"


def _line(row: dict[str, Any]) -> str:
    losses = [f"{name} {row[name] or 'of no target'}" for name in ("loss", "validation") if row[name] or name == "loss"]
    wasted = f"{1 - float(row['real']):.1%} of positions wasted"
    return "  ".join([f"step {row['step']}", *losses, f"{row['tokens_per_s']:,} tokens/s", wasted])


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv; none if it is not there."""
    if not path.exists():
        return []
    try:
        with path.open() as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if any(set(names) != set(COLUMNS) for names in (reader.fieldnames or COLUMNS, *rows)):
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        for row in rows:
            int(row["step"]), int(row["tokens"]), [float(row[name] or 0) for name in ("loss", "validation")]
    except (TypeError, ValueError, csv.Error) as error:
        raise SystemExit(f"{path} is damaged: {error}. Moved away, it is begun anew with the next row") from None
    return rows
