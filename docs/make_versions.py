"""Tables of docs/versions.md: what ran with which versions, from committed rows and from the tables in the code."""

import csv
import re
from collections import defaultdict

from docs.make_backends import table
from docs.make_plots import RESULTS, rows_of
from maskloom.attention.backends.flash_limits import LIMITS
from tools.release.cells import INSTALLS, PYTHONS, TORCHES


def installs() -> str:
    """What became of the last release's installation of each Python with each torch."""
    with INSTALLS.open() as file:
        found = {(row["python"], row["torch"]): row for row in csv.DictReader(file)}
    lines = [" | ".join(["Python", *(f"torch {torch}" for torch in TORCHES)])]
    for python in PYTHONS:
        cells = [_outcome(found.get((python, torch))) for torch in TORCHES]
        lines.append(" | ".join([python, *cells]))
    return table(lines)


def _outcome(row: dict[str, str] | None) -> str:
    """A cell: the versions that it ran with, or why it did not run."""
    if row is None:
        return "not run"
    versions = re.search(r"Python (\S+), torch ([^\s,]+)", row["words"])
    if versions:
        return f"run: {versions[1]}, {versions[2]}"
    return "not run" if row["words"] == "not asked for" else f"{row['verdict']}: {row['words']}"


def gpus() -> str:
    """The GPUs, and the versions beside them, that rows were measured with."""
    files = defaultdict(set)
    for path in RESULTS.glob("*.csv"):
        for row in rows_of(path.stem):
            if row["device"].startswith("NVIDIA"):
                files[row["device"], row["torch"], row["triton"], row["flash_attn_4"]].add(path.stem)
    lines = ["GPU | torch | triton | flash-attn-4 | files of rows"]
    lines += [" | ".join([*(value or "none" for value in key), str(len(files[key]))]) for key in sorted(files)]
    return table(lines)


def flash_rules() -> str:
    """What FLASH is refused with which versions, on which GPUs, from the table that refuses it."""
    lines = ["where | what is refused | source | "]
    lines += [f"{it.where} | {it.words} | {it.source} | {'run' if it.ran else 'read, not run'}" for it in LIMITS]
    return table(lines)


TABLES = {"installs": installs, "gpus": gpus, "flash_rules": flash_rules}
