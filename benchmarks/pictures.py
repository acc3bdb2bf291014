"""A picture of a mask, and of attention, written as PNG: `maskloom.show` beside attention-gym's ``visualize_attention_scores``.

    python benchmarks/pictures.py

The mask is a causal window of 256 with four sinks. ``ms`` is the median wall-clock time until the file is written, contenders
by turns, one picture before; ``mib`` is what tensors took at once beside those that were given. attention-gym evaluates every pair of
positions; its mask is asked up to 20,000 of them, its scores up to 4,000.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from attn_gym.utils import visualize_attention_scores
from clocks import once_ms, peak_mb
from rows import append
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

import maskloom as loom

MASK = loom.causal & loom.window(back=255) | loom.causal & loom.sinks(4)
LENGTHS = (1_000, 4_000, 20_000, 1_000_000)
THEIR_MOST = 20_000
THEIR_MOST_SCORES = 4_000
"""Of more they draw no scores within 24 GiB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pictures.csv"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for length in given.lengths:
            for row in measured(length, given.repeats, Path(folder)):
                append(given.out, row)
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)


def measured(length: int, repeats: int, folder: Path) -> list[dict[str, object]]:
    query, key = (torch.randn(1, 1, length, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    runs = contenders(query, key, folder)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            times[name].append(once_ms(run, device="cpu"))
    return [
        {
            "what": name, "length": length, "ms": round(statistics.median(found[1:]), 1),
            "mib": round(peak_mb(runs[name], device="cpu"), 1),
        }
        for name, found in times.items()
    ]  # fmt: skip


def contenders(query: Tensor, key: Tensor, folder: Path) -> dict[str, Callable[[], None]]:
    length = query.shape[2]

    def mask() -> None:
        loom.show.save_figure(loom.show.mask(MASK, length, length), folder / "ours.png")

    def attention() -> None:
        loom.show.save_figure(loom.show.attention(query, key, MASK), folder / "ours.png")

    def theirs(**options: object) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            visualize_attention_scores(query, key, mask_mod=MASK, device="cpu", path=folder / "theirs", **options)

    found = {"show.mask": mask, "show.attention": attention}
    if length <= THEIR_MOST:
        found["attn_gym, mask"] = theirs
    if length <= THEIR_MOST_SCORES:
        found["attn_gym, scores and mask"] = lambda: theirs(score_mod=lambda score, b, h, q_idx, kv_idx: score)
    return found


if __name__ == "__main__":
    main()
