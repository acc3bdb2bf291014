"""One step of decoding on a GPU: `attend` at a position in a tensor, beside torch's ways with a ready mask, in one run.

    python benchmarks/decoding.py --out benchmarks/results/decoding.csv

bf16, 32 query heads, 8 key-value heads of 128, `causal`. ``filled`` is the share of the cache that is written. GPU times are
those of a replayed CUDA graph of ten steps; wall times end when the GPU is idle; host times end when the call returns.
``of_best`` is the GPU time over that of torch's best, ``of_reading`` over the time to read the whole cache at 4.3 TB/s.
``--before DIR`` adds rows of the package in DIR, from another process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rows import append
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import maskloom as loom

H, HKV, D = 32, 8, 128
SHAPES = ((16, 8192), (1, 32768), (64, 2048))
QUERIES = (1, 4, 16)
FILLED = (1.0, 0.5)
BYTES_PER_MS = 4.3e9
IN_GRAPH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", help="a folder with another maskloom, whose attend is measured too")
    parser.add_argument("--only-attend", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for batch, size in SHAPES:
        for q_len in QUERIES:
            for filled in FILLED:
                if given.only_attend:
                    measure(given.out, (batch, size, q_len, filled), {given.only_attend: attended}, graph=False)
                else:
                    measure(given.out, (batch, size, q_len, filled), contenders_of(batch, filled))
    if given.before:
        command = [sys.executable, __file__, "--out", str(given.out), "--only-attend", "attend, before"]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": given.before}, check=True)


def contenders_of(batch: int, filled: float) -> dict[str, Any]:
    """All, but for what takes seconds to compile and tells nothing new."""
    compiled = {
        "attend, compiled": batch == SHAPES[0][0] and filled == 1,
        "flex, compiled, ready block mask": filled == 1,
    }
    return {name: make for name, make in CONTENDERS.items() if compiled.get(name, True)}


def attended(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Callable[[], Tensor]:
    return lambda: loom.attend(q, k, v, loom.causal, q_offset=position)


def attended_compiled(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Callable[[], Tensor]:
    step = torch.compile(lambda *qkv, at: loom.attend(*qkv, loom.causal, q_offset=at), fullgraph=True)
    return lambda: step(q, k, v, at=position)


def sdpa(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Callable[[], Tensor]:
    table = visible(q, k, position)
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=table, enable_gqa=True)


def sdpa_folded(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Callable[[], Tensor]:
    batch, _, q_len, _ = q.shape
    table = visible(q, k, position).repeat(1, 1, H // HKV, 1)
    folded = q.reshape(batch, HKV, H // HKV * q_len, D)
    return lambda: F.scaled_dot_product_attention(folded, k, v, attn_mask=table).view(q.shape)


def flex(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Callable[[], Tensor]:
    compiled = torch.compile(flex_attention, dynamic=False)
    blocks = create_block_mask(
        lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + position[b],
        q.shape[0],
        None,
        q.shape[2],
        k.shape[2],
        device="cuda",
    )
    return lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=True)


CONTENDERS: dict[str, Any] = {
    "attend": attended,
    "attend, compiled": attended_compiled,
    "sdpa, ready mask": sdpa,
    "sdpa, folded, ready mask": sdpa_folded,
    "flex, compiled, ready block mask": flex,
}


def visible(q: Tensor, k: Tensor, position: Tensor) -> Tensor:
    """The ready mask: bool (B, 1, Q, K)."""
    queries = position[:, None] + torch.arange(q.shape[2], device="cuda")
    return torch.arange(k.shape[2], device="cuda") <= queries[:, None, :, None]


def measure(out: Path, case: tuple[int, int, int, float], contenders: dict[str, Any], *, graph: bool = True) -> None:
    torch._dynamo.reset()
    batch, size, q_len, filled = case
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(batch, heads, length, D, generator=generator, device="cuda", dtype=torch.bfloat16)
        for heads, length in ((H, q_len), (HKV, size), (HKV, size))
    )
    end = int(size * filled) - q_len
    position = torch.randint(end - size // 64, end + 1, (batch,), generator=generator, device="cuda")
    truth = (
        sdpa(q.double(), k.double(), v.double(), position)()
        if batch * size <= 2**17
        else sdpa_folded(q, k, v, position)()
    )
    rows: dict[str, dict[str, float]] = {}
    for name, make in contenders.items():
        with torch.no_grad():
            run = make(q, k, v, position)
            error = float((run().double() - truth).abs().max())
            assert error < 0.02, (name, case, error)
            rows[name] = {
                "error": round(error, 5), "gpu_ms": gpu_ms(run) if graph else float("nan"),
                "wall_ms": wall_ms(run), "host_ms": host_ms(run),
            }  # fmt: skip
    theirs = [row["gpu_ms"] for name, row in rows.items() if not name.startswith("attend")]
    reading = 2 * k.nbytes / BYTES_PER_MS
    for name, row in rows.items():
        of_best = round(row["gpu_ms"] / min(theirs), 3) if theirs else ""
        shown = {key: round(value, 5) for key, value in row.items()}
        line = {"batch": batch, "cache": size, "queries": q_len, "filled": filled, "contender": name, **shown}
        append(out, {**line, "of_best": of_best, "of_reading": round(row["gpu_ms"] / reading, 3)})
        print(*line.values(), of_best, round(row["gpu_ms"] / reading, 3), sep="  ", flush=True)


def gpu_ms(run: Callable[[], object]) -> float:
    """Milliseconds of a call in a CUDA graph; nan if it cannot be captured."""
    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(IN_GRAPH):
            run()
    return statistics.median(_replayed(graph) for _ in range(30))


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / IN_GRAPH


def wall_ms(run: Callable[[], object]) -> float:
    return statistics.median(_timed(run)[1] for _ in range(60))


def host_ms(run: Callable[[], object]) -> float:
    return statistics.median(_timed(run)[0] for _ in range(60))


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    returned = time.perf_counter()
    torch.cuda.synchronize()
    return 1e3 * (returned - start), 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
