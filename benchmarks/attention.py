"""Attention on the CPU, on a padded batch: ``attend`` beside what people do today. Forward, and forward with backward.

    python benchmarks/attention.py --out benchmarks/results/attention_cpu.csv

Every contender is checked against the float64 reference before it is timed. Times are medians; the table that SDPA gets is
ready before its clock starts, the BlockMask too, and what is compiled is compiled. FlexAttention has no backward on the
CPU. From `LONG` on, those contenders run that can train there, a few times, and the reference with them. Memory is what
forward and backward (without a backward, the forward) hold at one time beyond inputs and masks.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import append
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

import maskloom as loom
from tests.memory import peak_bytes

B, H, D = 4, 8, 64
LONG, FEW = 4096, 2

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, LONG])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention_cpu.csv"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    for length in arguments.lengths:
        for row in measure(length, arguments.repeats if length < LONG else FEW):
            append(arguments.out, row)
            print(*row.values(), sep="  ")


def contenders_at(length: int, table: Tensor, blocks: BlockMask) -> dict[str, Attention]:
    trains: dict[str, Attention] = {
        "sdpa, dense mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=table),
        "maskloom.attend": lambda q, k, v: loom.attend(q, k, v, blocks),
    }
    if length >= LONG:
        return {**trains, "maskloom.reference": lambda q, k, v: loom.reference(q, k, v, blocks)[0]}
    torch._dynamo.reset()  # each length has a graph of its own, with sizes that are constants
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return {
        **trains,
        "flex_attention, compiled": lambda q, k, v: compiled(q, k, v, block_mask=blocks),
        "flex_attention, eager": lambda q, k, v: flex_attention(q, k, v, block_mask=blocks),
    }


def measure(length: int, repeats: int) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(B, H, length, D, generator=generator) for _ in range(3)]
    lens = torch.randint(length // 2, length + 1, (B,), generator=generator)
    mask = loom.causal & loom.lengths(lens)
    table = mask.dense(length, length)
    blocks = loom.block_mask(mask, length, length)
    truth = loom.reference(*(tensor.double() for tensor in tensors), table)[0]
    contenders = contenders_at(length, table, blocks)
    for name, run in contenders.items():
        with torch.no_grad():
            error = float((run(*tensors).double() - truth).norm() / truth.norm())
        assert error < 1e-5, f"{name} is wrong: relative error {error:.1e}"
    del truth
    times = timed(contenders, tensors, repeats)
    return [
        {
            "contender": name,
            "shape": f"B{B} H{H} N{length} D{D} float32",
            "mask": "causal & lengths",
            "real": round(float(lens.sum()) / (B * length), 3),
            "forward_ms": round(times[name, "forward"], 2),
            "forward_backward_ms": round(times[name, "both"], 2) if (name, "both") in times else "none",
            "peak_mib": round(peak_bytes(lambda run=run, name=name: pass_of(name, run, tensors)) / 2**20, 1),
            "threads": torch.get_num_threads(),
        }
        for name, run in contenders.items()
    ]


def pass_of(name: str, run: Attention, tensors: list[Tensor]) -> None:
    """All that there is to a contender: forward and backward, or forward."""
    if name.startswith("flex_attention"):
        with torch.no_grad():
            run(*tensors)
    else:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        run(*leaves).sum().backward()


def timed(contenders: dict[str, Attention], tensors: list[Tensor], repeats: int) -> dict[tuple[str, str], float]:
    """Median milliseconds; contenders take turns, so that what disturbs the machine disturbs all."""
    samples: dict[tuple[str, str], list[float]] = {}
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            with torch.no_grad():
                samples.setdefault((name, "forward"), []).append(milliseconds(lambda run=run: run(*tensors)))
            if not name.startswith("flex_attention"):
                samples.setdefault((name, "both"), []).append(
                    milliseconds(lambda run=run: run(*leaves).sum().backward())
                )
    return {key: statistics.median(values[1:]) for key, values in samples.items()}


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
