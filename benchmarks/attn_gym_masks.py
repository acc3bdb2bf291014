"""How the tiles of every attention-gym mask are decided: by intervals, witnesses or evaluation.

    python benchmarks/attn_gym_masks.py

The masks are those of tests/blocks/test_attn_gym.py, where their tables are compared with torch's.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

from rows import append

from maskloom.blocks.inspect import explain_block_mask
from tests.blocks.test_attn_gym import MASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attn_gym_masks.csv"))
    arguments = parser.parse_args()
    for name, (mask, batch, heads, q_len, kv_len) in MASKS.items():
        explained = explain_block_mask(
            mask, q_len, kv_len, batch=batch, heads=heads, device="cpu", block_size=arguments.block
        )
        row = {
            "benchmark": "attention-gym masks",
            "mask": name,
            "shape": f"B{batch} H{heads} Q{q_len} KV{kv_len}",
            "block": arguments.block,
            "tiles": explained.decided.total,
            **{f"{way}_percent": round(explained.share(way), 1) for way in ("intervals", "witnesses", "evaluation")},
            "without_rule": " ".join(explained.decided.unsupported_ops),
        }
        append(arguments.out, row)
        print(" ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
