"""What padding costs in `MultiheadFlexAttention`: forward and backward of a batch of which a part is real, and of a full one.

    python benchmarks/padding_module.py --out benchmarks/results/padding_module.csv
    python benchmarks/padding_module.py --device cpu --small      # to try it

bf16, 16 heads, causal; the block masks are built outside. The longest row is full, where there is room, and the others are spread evenly so
that the wanted share is real. ``contender`` is one of

- ``host``: the mask was made of a list, so the module packs tokens before its projections, if its rule says that this pays;
- ``device``: the same lengths on the device, which nobody waits for: the module computes padding too (on a GPU alone);
- ``by hand``: `pack` before the module, documents in one row, `unpack` behind it.

``ms`` is the wall clock of a step alone, host and device; ``row_ms`` that of each of ten steps one behind the other, as in training,
where the host is ahead of the device if it can; ``gpu_ms`` the device's own. ``of_full``, ``row_of_full`` and ``gpu_of_full`` are these over
the full batch's, medians of turns that are shared by all; ``bound`` is real + 0.05, or 1.05 for a full one. ``graphs`` is how many graphs the contender's module was compiled to so far, by all shapes and shares before. No cell is begun after ``--seconds``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from clocks import once_device_ms, once_ms
from rows import append
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import maskloom as loom
from maskloom.batches import Packed, pack, unpack

HEADS = 16
SHARES = (0.3, 0.5, 0.75, 0.9, 1.0)
CONTENDERS = ("full", "host", "device", "by hand")


class Size(NamedTuple):
    """A module's width, and the rows and length of its batches."""

    width: int
    batch: int
    length: int


class ByHand(nn.Module):
    """The module between `pack` and `unpack`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, blocks: Any, layout: Packed) -> Tensor:
        packed = pack(x, layout)
        return unpack(packed, self.module(packed.values, blocks).out)


def main() -> None:
    arguments = parsed()
    torch._dynamo.config.recompile_limit = 64  # of one function, for all contenders together
    deadline = time.monotonic() + arguments.seconds
    found: list[dict[str, Any]] = []
    for mode in arguments.modes.split(","):
        for width in arguments.widths:
            modules = Modules(width, mode, arguments.device)
            for size in sizes(width, arguments):
                for share in SHARES:
                    if time.monotonic() > deadline:
                        print("no time is left for", mode, size, share)
                        continue
                    for row in measured(modules, size, share, arguments):
                        append(arguments.out, row)
                        found.append(row)
    print(told(found))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--widths", type=int, nargs="+", default=None)
    parser.add_argument("--lengths", type=int, nargs="+", default=None)
    parser.add_argument("--tokens", type=int, nargs="+", default=None, help="positions of a batch")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--out", type=Path, default=Path("build/padding_module.csv"))
    arguments = parser.parse_args()
    small = arguments.small
    arguments.widths = arguments.widths or ([256] if small else [1024, 2048])
    arguments.lengths = arguments.lengths or ([128, 256] if small else [1024, 4096, 16384])
    arguments.tokens = arguments.tokens or ([1024] if small else [32768])
    return arguments


def sizes(width: int, arguments: argparse.Namespace) -> Iterator[Size]:
    for tokens in arguments.tokens:
        for length in arguments.lengths:
            yield Size(width, max(tokens // length, 1), length)


def lengths_of(size: Size, share: float) -> list[int]:
    """Lengths that have this share of all positions, spread evenly; the longest is full, if there is room for it."""
    full = 1 if share * size.batch >= 1.2 or share == 1 else 0
    others = size.batch - full
    mean = (share * size.batch - full) / max(others, 1)  # in rows
    spread = 0.9 * min(mean, 1 - mean)
    steps = [2 * row / (others - 1) - 1 if others > 1 else 0.0 for row in range(others)]
    return [size.length] * full + [round((mean + spread * step) * size.length) for step in steps]


class Modules:
    """One module and its forms, eager or compiled, which count their graphs."""

    def __init__(self, width: int, mode: str, device: str) -> None:
        torch.manual_seed(0)
        torch._dynamo.reset()
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.module = loom.MultiheadFlexAttention(width, width, HEADS, device=device, dtype=dtype)
        self.mode, self.dtype, self.device = mode, dtype, device
        self.counters = {name: CompileCounterWithBackend("inductor") for name in CONTENDERS}
        self.forms = {name: self._form(name) for name in CONTENDERS}

    def _form(self, name: str) -> Any:
        module = ByHand(self.module) if name == "by hand" else _Own(self.module)
        return torch.compile(module, backend=self.counters[name], fullgraph=True) if self.mode == "compiled" else module

    def graphs(self, name: str) -> int:
        return self.counters[name].frame_count


class _Own(nn.Module):
    """The module alone, in an object of its own: compiled forms of one object would share their graphs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, blocks: Any, layout: None = None) -> Tensor:
        return self.module(x, blocks).out


def measured(modules: Modules, size: Size, share: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    steps, device = steps_of(modules, size, share), arguments.device
    lens = lengths_of(size, share)
    for step in steps.values():
        step()  # compiles
        step()
    wall: dict[str, list[float]] = {name: [] for name in steps}
    own: dict[str, list[float]] = {name: [] for name in steps}
    in_row: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.repeats):
        for name, step in steps.items():
            wall[name].append(once_ms(step, device=device))
            own[name].append(once_device_ms(step, device=device))
            if turn % 3 == 0:
                in_row[name].append(once_ms(lambda step=step: [step() for _ in range(10)], device=device) / 10)
    rows = []
    for name in steps:
        ms, row_ms, gpu_ms = (statistics.median(times[name]) for times in (wall, in_row, own))
        of_full, row_of_full, gpu_of_full = (
            mine / statistics.median(times["full"]) for mine, times in ((ms, wall), (row_ms, in_row), (gpu_ms, own))
        )
        real = 1.0 if name == "full" else sum(lens) / (size.batch * size.length)
        rows.append(
            {
                "mode": modules.mode, "width": size.width, "batch": size.batch, "length": size.length, "share": share,
                "real": round(real, 4), "contender": name, "ms": round(ms, 4), "row_ms": round(row_ms, 4), "gpu_ms": round(gpu_ms, 4),
                "of_full": round(of_full, 3), "row_of_full": round(row_of_full, 3), "gpu_of_full": round(gpu_of_full, 3),
                "bound": round(real + 0.05, 3),
                "graphs": modules.graphs(name) if modules.mode == "compiled" else "",
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def steps_of(modules: Modules, size: Size, share: float) -> dict[str, Callable[[], object]]:
    """A forward and backward of each contender, with all that is made outside."""
    device, length, lens = modules.device, size.length, lengths_of(size, share)
    x = torch.randn(size.batch, length, size.width, device=device, dtype=modules.dtype, requires_grad=True)
    gradient = torch.randn(size.batch, length, size.width, device=device, dtype=modules.dtype)

    def blocks(told: Any) -> Any:
        return loom.block_mask((loom.causal & loom.lengths(told)).to(device), length, length)

    layout = pack(torch.empty(size.batch, length, device=device), lens)
    documents = loom.causal & loom.documents(offsets=layout.offsets, length=layout.total)
    given: dict[str, tuple[Any, Any]] = {
        "full": (blocks([length] * size.batch), None),
        "host": (blocks(lens), None),
        "device": (blocks(torch.tensor(lens, device=device)), None),
        "by hand": (loom.block_mask(documents, layout.total, layout.total), layout),
    }

    def step(name: str) -> Callable[[], object]:
        form, (mask, packed) = modules.forms[name], given[name]

        def run() -> None:
            x.grad = None
            modules.module.zero_grad()
            form(x, mask, packed).backward(gradient)

        return run

    return {name: step(name) for name in CONTENDERS if name != "device" or device != "cpu"}


def told(rows: list[dict[str, Any]]) -> str:
    """Wall time over that of a full batch, beside its bound, by shares; and the device's own."""
    lines = []
    for kind in dict.fromkeys((row["mode"], row["width"], row["batch"], row["length"]) for row in rows):
        here = [row for row in rows if (row["mode"], row["width"], row["batch"], row["length"]) == kind]
        full = statistics.median(row["ms"] for row in here if row["contender"] == "full")
        lines.append(
            f"{kind[0]} d {kind[1]}, {kind[2]} x {kind[3]}, full {full:.2f} ms: a step alone, in a row, GPU, of the full batch's"
        )
        for row in here:
            if row["contender"] == "host":
                others = {one["contender"]: one for one in here if one["share"] == row["share"]}
                said = ", ".join(
                    f"{name} {one['of_full']:.2f} {one['row_of_full']:.2f} {one['gpu_of_full']:.2f}"
                    for name, one in others.items()
                    if name != "full"
                )
                verdict = "ok" if row["row_of_full"] <= row["bound"] else "OVER"
                lines.append(
                    f"  real {row['real']:.2f} bound {row['bound']:.2f} {verdict}: {said}; graphs {row['graphs']}"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
