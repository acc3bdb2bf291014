"""How long the mask of a packed batch takes on the CPU: transformers' for flex_attention, and maskloom's for the same kernel.

    python benchmarks/transformers_masks.py --out benchmarks/results/transformers_masks.csv

One row for each kind of layer and batch. Each call has other documents. Both begin at transformers' ``create_causal_mask`` (or its
sliding kin) and end at a BlockMask with its tables; transformers' is compiled, and warm.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rows import append
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import MistralConfig, masking_utils

import maskloom as loom
import maskloom.integrations.transformers as hf

LENGTH, WINDOW = 8192, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/transformers_masks.csv"))
    arguments = parser.parse_args()
    hf.register()
    for kind, batch in (("causal", 1), ("causal", 4), ("sliding", 1), ("sliding", 4)):
        theirs = seconds(lambda ids, kind=kind: made("flex_attention", kind, ids), batch, arguments.repeats)
        ours = seconds(lambda ids, kind=kind: tables("maskloom", kind, ids), batch, arguments.repeats)
        row = {"mask": kind, "batch": batch, "length": LENGTH, "transformers": transformers.__version__}
        row |= {"flex_attention_mask_s": theirs, "maskloom_s": ours, "ratio": round(theirs / ours, 1)}
        append(arguments.out, row)
        print(row, flush=True)


def seconds(call: Callable[[Tensor], BlockMask], batch: int, repeats: int) -> float:
    """The median of calls that each have other documents; three before do not count."""
    times = []
    for seed in range(repeats + 3):
        ids = position_ids(batch, seed)
        begin = time.perf_counter()
        call(ids)
        times.append(time.perf_counter() - begin)
    return float(f"{np.median(times[3:]):.3g}")


def position_ids(batch: int, seed: int) -> Tensor:
    """Rows (batch, LENGTH) full of documents of about 600 tokens."""
    random = np.random.default_rng(seed)
    ends = (random.random((batch, LENGTH)) < 1 / 600).cumsum(1)
    rows = [np.concatenate([np.arange(count) for count in np.unique(row, return_counts=True)[1]]) for row in ends]
    return torch.tensor(np.stack(rows))


def made(implementation: str, kind: str, ids: Tensor) -> Any:
    config = MistralConfig(sliding_window=WINDOW)
    config._attn_implementation = implementation
    maker = {
        "causal": masking_utils.create_causal_mask,
        "sliding": masking_utils.create_sliding_window_causal_mask,
    }[kind]
    return maker(config, torch.empty(*ids.shape, 1), None, None, position_ids=ids)


def tables(implementation: str, kind: str, ids: Tensor) -> BlockMask:
    mask = made(implementation, kind, ids).mask
    return loom.block_mask(mask, LENGTH, LENGTH, batch=ids.shape[0])


if __name__ == "__main__":
    main()
