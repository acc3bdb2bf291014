"""A training step of a whole model under torch.compile, padded and packed into one row: attention by each contender, in one run.

    python benchmarks/model_step.py --out benchmarks/results/model_step.csv

bf16, 4 layers, width 2048, 16 heads of 128, MLP of 4 × the width, 8 rows of 4096 of which 74 % are real (packed: the same
documents in one row). Block masks and tables are made before. Times are medians of the GPU's clock over steps (forward and
backward), contenders by turns. ``gradient`` is the relative difference of the gradient of the first projection to that of
``sdpa, dense`` over real tokens; ``compile_s`` the first step. ``of_dense`` is the time over that of ``sdpa, dense``, padded.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rows import append
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import maskloom as loom

LAYERS, HEADS, HEAD_DIM, ROWS, LENGTH, REAL = 4, 16, 128, 8, 4096, 0.74
WIDTH = HEADS * HEAD_DIM

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.in_proj, self.out_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, attention: Any, how: Any) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.in_proj(self.norms[0](x)).view(batch, length, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        out = attention(q, k, v, how)
        x = x + self.out_proj(out.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.attention = nn.ModuleList([Layer() for _ in range(LAYERS)]), attention

    def forward(self, x: Tensor, how: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.attention, how)
        return x


def by_attend(backend: Any) -> Any:
    return lambda q, k, v, how: loom.attend(q, k, v, how, backend=backend)


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=table)


def by_flex(q: Tensor, k: Tensor, v: Tensor, blocks: Any) -> Tensor:
    return flex_attention(q, k, v, block_mask=blocks)  # type: ignore[return-value]


def by_varlen(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (q, k, v)]
    options: Any = {"window_size": (-1, 0)}
    out: Any = varlen_attn(*rows, ends, ends, LENGTH, LENGTH, **options)
    return out.unflatten(0, (1, -1)).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600, help="no contender is compiled later than that")
    parser.add_argument("--only", nargs="*", help="names of contenders")
    given = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64  # all contenders' models are graphs of one code
    generator = torch.Generator().manual_seed(1)
    lens = torch.randint(int((2 * REAL - 1) * LENGTH), LENGTH + 1, (ROWS,), generator=generator)
    x = torch.randn(
        ROWS, LENGTH, WIDTH, generator=torch.Generator("cuda").manual_seed(2), device="cuda", dtype=torch.bfloat16
    )
    runs: dict[str, Run] = {}
    start = time.perf_counter()
    for name, case in contenders(lens).items():
        if (not given.only or name in given.only) and time.perf_counter() - start < given.seconds:
            runs[name] = Run(name, *case, x, lens.tolist())
    for _ in range(given.steps):
        for run in runs.values():
            run.step()
    dense = runs.get("padded: sdpa, dense")
    for name, run in runs.items():
        row = {
            "contender": name, "step_ms": round(statistics.median(run.times), 2),
            "of_dense": round(statistics.median(run.times) / statistics.median(dense.times), 3) if dense else "",
            "compile_s": round(run.compile_s, 1), "gradient": round(run.differs_from(dense), 5) if dense else "",
            "real": round(float(lens.sum()) / ROWS / LENGTH, 3),
        }  # fmt: skip
        append(given.out, row)
        print(*row.values(), sep="  ", flush=True)


def contenders(lens: Tensor) -> dict[str, tuple[Any, Any, bool]]:
    """By name: the attention, the mask in its form, and whether the batch is packed."""
    lens = lens.cuda()
    total = int(lens.sum())
    ends = F.pad(lens.cumsum(0), (1, 0)).to(torch.int32)
    padded = loom.block_mask(loom.causal & loom.lengths(lens), LENGTH, LENGTH)
    packed = loom.block_mask(loom.causal & loom.documents(offsets=ends, length=total), total, total)
    table = (loom.causal & loom.lengths(lens)).dense(LENGTH, LENGTH)
    table |= torch.eye(LENGTH, dtype=torch.bool, device="cuda")  # a padded query that sees nothing would be NaN there
    plain = create_block_mask(
        lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx < lens[b]) & (kv_idx < lens[b]),
        ROWS,
        None,
        LENGTH,
        LENGTH,
        device="cuda",
    )
    return {
        "padded: sdpa, dense": (by_sdpa, table, False),
        "padded: attend, auto": (by_attend("auto"), padded, False),
        "packed: attend, auto": (by_attend("auto"), packed, True),
        "packed: torch varlen": (by_varlen, ends, True),
        "padded: attend, flash": (by_attend("flash"), padded, False),
        "packed: attend, flash": (by_attend("flash"), packed, True),
        "padded: torch flex": (by_flex, plain, False),
        "padded: attend, triton": (by_attend("triton"), padded, False),
        "packed: attend, triton": (by_attend("triton"), packed, True),
    }


class Run:
    """One contender: its compiled model, and the times of its steps in milliseconds."""

    def __init__(self, name: str, attention: Any, how: Any, is_packed: bool, x: Tensor, lens: list[int]) -> None:
        real = [row[:length] for row, length in zip(x, lens, strict=True)]
        self.x = torch.cat(real)[None] if is_packed else x
        self.how, self.is_packed, self.lens = how, is_packed, lens
        self.model = Model(attention).to("cuda", torch.bfloat16)
        self.compiled = torch.compile(self.model, fullgraph=True)
        is_real = torch.arange(LENGTH, device="cuda") < torch.tensor(lens, device="cuda")[:, None]
        self.counts = (
            torch.ones(self.x.shape[:2], device="cuda", dtype=torch.bfloat16) if is_packed else is_real.bfloat16()
        )
        self.times: list[float] = []
        start = time.perf_counter()
        self.step()
        torch.cuda.synchronize()
        self.compile_s = time.perf_counter() - start
        self.step()
        self.times.clear()
        print(name, f"compiled in {self.compile_s:.1f} s", flush=True)

    def step(self) -> None:
        self.model.zero_grad(set_to_none=True)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        out = self.compiled(self.x, self.how)
        (out.float().square() * self.counts[..., None]).sum().mul(1e-6).backward()
        end.record()
        torch.cuda.synchronize()
        self.times.append(start.elapsed_time(end))

    def differs_from(self, other: "Run") -> float:
        ours, theirs = (run.model.layers[0].in_proj.weight.grad.float() for run in (self, other))  # type: ignore[union-attr]
        return float((ours - theirs).norm() / theirs.norm())


if __name__ == "__main__":
    main()
