"""Attention on padded batches on the GPU, in bfloat16: ``attend`` beside what people do today, forward and backward.

    python benchmarks/attention_gpu.py --sections padded clean short simplify

TFLOP/s count useful work: visible pairs of real positions. Times are medians of the GPU's own clock; ``step_ms`` is wall-clock
time of a forward and backward where several are queued, so that what Python costs shows. Block masks and tables are ready
before. Each contender is first compared with the reference in float32; one that fails, or is wrong, gets no time, and its
row says why. None is begun later than ``--seconds``. ``--tiny --device cpu`` tries the script out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from attention_cases import Batch, flops, make_batch, truth, visible_pairs, worst_error
from attention_contenders import Contender, attend, cudnn, dense_sdpa, each_backend, packed, padded, varlen
from clocks import device_ms, once_ms
from rows import append
from torch import Tensor

import maskloom as loom
from maskloom.masks.algebra import Mask

HEADS, HEAD_DIM = 16, 128
WINDOW = 1023
BOUND = 0.02
"""Five rounding steps of bfloat16, 2**-8 each: inputs and weights are rounded before each of up to three products in a row.
Right kernels were measured at 0.003; one wrong tile of a hundred would show as 0.1."""

Maker = Callable[[int, int, float], Batch]
"""A batch from its number of rows, its length and its real share."""


@dataclass(frozen=True)
class Group:
    """Contenders that do the same work: ``truth`` says which, on ``batch``."""

    section: str
    mask: str
    batch: Batch
    truth: Mask
    contenders: list[Contender]


def shapes(tiny: bool) -> list[tuple[int, int, float]]:
    return [(3, 40, 0.74)] if tiny else [(8, 4096, 0.74), (4, 16384, 0.68)]


def padded_section(make: Maker, tiny: bool) -> Iterator[Group]:
    """The masks of a padded batch, ours as they are and packed."""
    for shape in shapes(tiny):
        batch, full = make(*shape), make(*shape[:2], 1.0)
        lengths, pads = loom.lengths(batch.lens), loom.padding(loom.pads_from_lengths(batch.lens, shape[1]))
        documents = loom.documents(offsets=loom.offsets_from_lengths(batch.lens)) & loom.causal
        causal, window = loom.causal & lengths, loom.window(back=WINDOW) & lengths
        contenders = {
            "causal & lengths": [varlen(batch), *each_backend(causal, padded(batch))],
            "causal & padding": [dense_sdpa(batch, loom.causal), *each_backend(loom.causal & pads, padded(batch))],
            "documents & causal": [varlen(batch), *each_backend(documents, packed(batch), "varlen")],
        }
        yield from (Group("padded", name, batch, causal, all_) for name, all_ in contenders.items())
        windows = [dense_sdpa(batch, loom.window(back=WINDOW)), varlen(batch, WINDOW)]
        yield Group("padded", "window & lengths", batch, window, [*windows, *each_backend(window, padded(batch))])
        contenders_of_full = [cudnn(full), *each_backend(loom.causal, padded(full), "sdpa")]
        yield Group("padded", "causal, no padding", full, loom.causal, contenders_of_full)


def clean_section(make: Maker, tiny: bool) -> Iterator[Group]:
    """What it costs that nothing in padded positions can reach real ones."""
    for shape in shapes(tiny):
        batch = make(*shape)
        mask = loom.causal & loom.lengths(batch.lens)
        contenders = [
            attend(f"attend, clean_padding={clean}", mask, padded(batch), clean_padding=clean)
            for clean in (False, True)
        ]
        yield Group("clean", "causal & lengths", batch, mask, contenders)


def short_section(make: Maker, tiny: bool) -> Iterator[Group]:
    """Batches of 32 Ki positions in short rows."""
    for length in [16] if tiny else [128, 512, 1024]:
        batch = make((64 if tiny else 2**15) // length, length, 0.74)
        mask = loom.causal & loom.lengths(batch.lens)
        ours = each_backend(mask, padded(batch), "sdpa")
        contenders = [dense_sdpa(batch, loom.causal), varlen(batch), *ours]
        yield Group("short", "causal & lengths", batch, mask, contenders)


def simplify_section(make: Maker, tiny: bool) -> Iterator[Group]:
    """A mask as it is written, and the equal one of `simplify`: ``create_block_mask`` takes each as it is."""
    shape = shapes(tiny)[0]
    batch, full = make(*shape), make(*shape[:2], 1.0)
    lengths = loom.causal & loom.lengths(batch.lens)
    documents = loom.causal & loom.documents(offsets=loom.offsets_from_lengths(batch.lens))
    window = loom.causal & loom.window(back=WINDOW, ahead=WINDOW)
    for name, mask, given, layout, expected in (
        ("causal & lengths", lengths, batch, padded(batch), lengths),
        ("causal & documents", documents, batch, packed(batch), lengths),
        ("causal & window", window, full, padded(full), window),
    ):
        rows, _, length, _ = layout.arrange(given.query).shape
        contenders = []
        for what, written in (("as given", mask), ("simplified", loom.simplify(mask))):
            blocks = loom.create_block_mask(written, rows, None, length, length, given.query.device)
            contenders.append(attend(f"attend, {what}", blocks, layout))
        yield Group("simplify", name, given, expected, contenders)


SECTIONS = {"padded": padded_section, "clean": clean_section, "short": short_section, "simplify": simplify_section}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few positions: does everything run?")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=230)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention_gpu.csv"))
    arguments = parser.parse_args()

    def make(rows: int, length: int, real: float) -> Batch:
        dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
        return make_batch(rows, HEADS, length, HEAD_DIM, real=real, device=arguments.device, dtype=dtype)

    deadline = time.monotonic() + arguments.seconds
    for section in arguments.sections:
        for group in SECTIONS[section](make, arguments.tiny):
            for row in measure(group, arguments.repeats, arguments.device, deadline):
                append(arguments.out, row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def measure(group: Group, repeats: int, device: str, deadline: float) -> list[dict[str, object]]:
    """The rows of a group."""
    rows, heads, length, head_dim = group.batch.query.shape
    work = flops(visible_pairs(group.truth, group.batch), heads, head_dim)
    shared = {
        "section": group.section,
        "shape": f"B{rows} H{heads} N{length} D{head_dim}",
        "real": round(float(group.batch.lens.float().mean()) / length, 3),
        "mask": group.mask,
    }
    found = []
    for contender in group.contenders:
        if time.monotonic() > deadline:
            print(f"no time left for {group.section}, {group.mask}: {contender.name}", flush=True)
        else:
            found.append({"contender": contender.name, **tried(contender, group, repeats, device)})
    return [{**shared, **row} for row in with_speed(found, work)]


def tried(contender: Contender, group: Group, repeats: int, device: str) -> dict[str, object]:
    """Error and times of a contender, or why it has none."""
    columns = ("note", "error", "forward_ms", "backward_ms", "step_ms")
    try:
        values = timed(contender, group, repeats, device)
    except Exception as error:  # a kernel may fail in any way; the others still count
        words = str(error).strip().splitlines() or [""]
        values = (f"{type(error).__name__}: {words[0][:200]}", "", "", "", "")
    return dict(zip(columns, values, strict=True))


def timed(contender: Contender, group: Group, repeats: int, device: str) -> tuple[object, ...]:
    layout, batch = contender.layout, group.batch
    inputs = [layout.arrange(tensor).detach().requires_grad_() for tensor in batch.inputs]
    grad = layout.arrange(batch.grad)
    held: list[Tensor] = []

    def forward() -> None:
        held[:] = [contender.run(*inputs)]

    def backward() -> None:
        for tensor in inputs:
            tensor.grad = None
        held.pop().backward(grad)

    def step() -> None:
        forward()
        backward()

    forward()
    out = held[0].detach()
    backward()
    results = [layout.real(tensor) for tensor in (out, *(tensor.grad for tensor in inputs)) if tensor is not None]
    error = worst_error(results, truth(group.truth, batch))
    if not error < BOUND:
        raise ArithmeticError(f"relative error {error:.1e}")
    forward_ms = device_ms(forward, repeats=repeats, device=device)
    backward_ms = device_ms(backward, repeats=repeats, device=device, before=forward)
    step_ms = once_ms(lambda: [step() for _ in range(repeats)], device=device) / repeats
    return contender.chosen(*inputs), f"{error:.5f}", forward_ms, backward_ms, step_ms


def with_speed(rows: list[dict[str, object]], work: tuple[int, int]) -> list[dict[str, object]]:
    """The rows with TFLOP/s forward and backward, and the part of the best of them that each comes to."""
    for direction, operations in zip(("forward", "backward"), work, strict=True):
        times = {id(row): row[f"{direction}_ms"] for row in rows}
        speeds = {key: operations / time / 1e9 for key, time in times.items() if isinstance(time, float)}
        for row in rows:
            speed = speeds.get(id(row))
            row[f"{direction}_tflops"] = "" if speed is None else round(speed, 1)
            row[f"{direction}_of_best"] = "" if speed is None else round(speed / max(speeds.values()), 3)
    for row in rows:
        row["note"] = row.pop("note")  # the longest cell comes last
    return [{key: round(cell, 4) if isinstance(cell, float) else cell for key, cell in row.items()} for row in rows]


if __name__ == "__main__":
    main()
