"""Score mods, the log-sum-exp and sinks on the CPU, beside torch's own attention with a ready float mask.

    python benchmarks/cpu_scores.py --out benchmarks/results/cpu_scores.csv

A step is a forward and a backward, in wall-clock time, on B4 H4 N1024 D64 in float32. SDPA's float mask is made before its
clock starts: 0, and -inf where the mask hides. All take turns in one run, and the first turn is not counted. A ratio is that
of the shortest steps, which other work on the machine disturbs least. Each contender is checked against the float64
reference before it is timed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rows import append
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

import maskloom as loom
from maskloom.masks.algebra import Mask
from tests.memory import peak_bytes

B, H, N, D = 4, 4, 1024, 64
CAUSAL, ALL = "causal", "everything"
MASKS: dict[str, Mask] = {CAUSAL: loom.causal, ALL: loom.everything}

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--state", default="after", help="a word for the row: before or after a change")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_scores.csv"))
    arguments = parser.parse_args()
    for mask in MASKS:
        for row in measure(mask, arguments.repeats):
            full = {"state": arguments.state, **row}
            append(arguments.out, full)
            print(*full.values(), sep="  ")


def contenders() -> dict[str, dict[str, Any]]:
    """What `attend` is asked for, by name."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(H, 257, generator=generator)
    learned, sinks = table.clone().requires_grad_(), torch.randn(H, generator=generator).requires_grad_()
    slopes = torch.rand(H, generator=generator)
    return {
        "ALiBi": {"score_mod": loom.scores.alibi(H, symmetric=True)},
        "relative bias, fixed": {"score_mod": loom.scores.relative_bias(table)},
        "relative bias, learned": {"score_mod": loom.scores.relative_bias(learned)},
        "softcap": {"score_mod": loom.scores.softcap(30.0)},
        "a function that adds": {"score_mod": lambda score, b, h, q, k: score - slopes[h] * (q - k).abs()},
        "a function that caps": {"score_mod": lambda score, b, h, q, k: 30 * torch.tanh(score / 30)},
        "sinks": {"sinks": sinks},
        "log-sum-exp": {"return_aux": AuxRequest(lse=True)},
    }


def measure(mask: str, repeats: int) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(B, H, N, D, generator=generator).requires_grad_() for _ in range(3)]
    dense = MASKS[mask].dense(N, N)
    bias = torch.zeros(1, H, N, N).masked_fill(~dense, -torch.inf)
    steps: dict[str, Step] = {"sdpa, ready float mask": lambda: sdpa(tensors, bias)}
    for name, how in contenders().items():
        check(name, tensors, mask, how)
        steps[name] = lambda how=how: ours(tensors, MASKS[mask], how)  # type: ignore[misc]
    times = timed(steps, repeats)
    least = times["sdpa, ready float mask"]
    return [
        {
            "contender": name,
            "shape": f"B{B} H{H} N{N} D{D} float32",
            "mask": mask,
            "backend": "torch" if name.startswith("sdpa") else backend_of(tensors, mask, contenders()[name]),
            "step_ms": round(times[name], 2),
            "to_sdpa": round(times[name] / least, 2),
            "peak_mib": round(peak_bytes(step) / 2**20, 1),
            "threads": torch.get_num_threads(),
        }
        for name, step in steps.items()
    ]


def backend_of(tensors: list[Tensor], mask: str, how: dict[str, Any]) -> str:
    return loom.explain(*tensors, MASKS[mask], **how).backend


def sdpa(tensors: list[Tensor], bias: Tensor) -> None:
    F.scaled_dot_product_attention(*tensors, attn_mask=bias).sum().backward()


def ours(tensors: list[Tensor], mask: Mask, how: dict[str, Any]) -> None:
    made = loom.attend(*tensors, mask, **how)
    loss = made.sum() if isinstance(made, Tensor) else made[0].sum() + made[1].lse.sum()
    loss.backward()


def check(name: str, tensors: list[Tensor], mask: str, how: dict[str, Any]) -> None:
    """One batch row, against the reference in float64."""
    row = [tensor.detach()[:1] for tensor in tensors]
    options = {key: how[key] for key in ("score_mod", "sinks") if key in how}
    with torch.no_grad():
        truth = loom.reference(*(tensor.double() for tensor in row), MASKS[mask], **options)[0]
        made = loom.attend(*row, MASKS[mask], **how)
    out = made if isinstance(made, Tensor) else made[0]
    error = float((out.double() - truth).norm() / truth.norm())
    assert error < 1e-5, f"{name} is wrong: relative error {error:.1e}"


def timed(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """The shortest step of each, in milliseconds; they take turns."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            samples[name].append((time.perf_counter() - start) * 1000)
    return {name: min(values[1:]) for name, values in samples.items()}


if __name__ == "__main__":
    main()
