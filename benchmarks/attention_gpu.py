"""Attention on padded batches on the GPU, in bfloat16: ``attend`` beside what people do today, forward and backward.

    python benchmarks/attention_gpu.py --sections padded short clean --masks "causal & lengths"

Contenders that do the same work are first compared with the reference in float32; one that fails, or is wrong, gets no
time, and its row says why. Then they are measured in rounds, all of them in each, each behind each other equally often, so
that what disturbs the machine, or moves the GPU's clock, disturbs all alike. Cells are medians over rounds, in milliseconds:

- ``forward_ms``, ``backward_ms``: by the GPU's own clock, however long the host takes to launch them;
- ``host_forward_ms``, ``host_backward_ms``: by the wall, until the call returns, the device idle before;
- ``step_ms``: by the wall, of a forward and a backward where several are queued, as in training.

TFLOP/s count useful work: visible pairs of real positions. ``_of_best`` is the best time of the group by this one. Block masks
and tables are ready before. What costs most is compiling, once for each mask and backend in a process, whatever the
shape: so ``--masks`` and ``--sections`` pick, shapes come together. No contender is begun later than ``--seconds``.
``--tiny --device cpu`` tries the script out.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from attention_cases import Batch, flops, make_batch, truth, visible_pairs, worst_error
from attention_contenders import Contender, attend, cudnn, dense_sdpa, each_backend, packed, padded, plain, varlen
from clocks import balanced, once_device_ms, once_host_ms, once_ms
from rows import append
from torch import Tensor

import maskloom as loom
from maskloom.masks.algebra import Mask

HEADS, HEAD_DIM = 16, 128
WINDOW = 1023
STEP_ROUNDS = 3
BOUND = 0.02
"""Five rounding steps of bfloat16, 2**-8 each: inputs and weights are rounded before each of up to three products in a row.
Right kernels were measured at 0.003; one wrong tile of a hundred would show as 0.1."""

Work = tuple[Batch, Mask, list[Contender]]
"""A batch, the mask that says what attends to what on it, and contenders that do that work."""
Case = Callable[[Batch, Batch], Work]
"""Some work, on one of two batches of the same shape: a padded one and a full one."""
Shape = tuple[int, int, float]
"""Rows, length, and the share of it that is real."""


# -- masks of a padded batch, ours as they are and packed --------------------------------------------------------------


def with_lengths(batch: Batch, full: Batch) -> Work:
    mask = causal_lengths(batch)
    return batch, mask, [varlen(batch), *each_backend(mask, padded(batch)), *plain(mask, batch)]


def with_padding(batch: Batch, full: Batch) -> Work:
    mask = loom.causal & loom.padding(loom.batches.pads_from_lengths(batch.lens, batch.query.shape[2]))
    return batch, causal_lengths(batch), [dense_sdpa(batch, loom.causal), *each_backend(mask, padded(batch))]


def with_documents(batch: Batch, full: Batch) -> Work:
    ours = each_backend(documents(batch) & loom.causal, packed(batch), "varlen")
    return batch, causal_lengths(batch), [varlen(batch), *ours]


def without_padding(batch: Batch, full: Batch) -> Work:
    return full, loom.causal, [cudnn(full), *each_backend(loom.causal, padded(full), "sdpa")]


def with_window(batch: Batch, full: Batch) -> Work:
    window = loom.window(back=WINDOW)
    mask = window & loom.lengths(batch.lens)
    return batch, mask, [dense_sdpa(batch, window), varlen(batch, WINDOW), *each_backend(mask, padded(batch))]


def causal_lengths(batch: Batch) -> Mask:
    return loom.causal & loom.lengths(batch.lens)


def documents(batch: Batch) -> Mask:
    return loom.documents(offsets=loom.batches.offsets_from_lengths(batch.lens))


# -- a mask as it is written, and the equal one of `simplify`: ``create_block_mask`` takes each as it is ---------------


def simplified_lengths(batch: Batch, full: Batch) -> Work:
    mask = causal_lengths(batch)
    return batch, mask, as_given_and_simplified(mask, batch, packs=False)


def simplified_window(batch: Batch, full: Batch) -> Work:
    mask = loom.causal & loom.window(back=WINDOW, ahead=WINDOW)
    return full, mask, as_given_and_simplified(mask, full, packs=False)


def simplified_documents(batch: Batch, full: Batch) -> Work:
    return batch, causal_lengths(batch), as_given_and_simplified(loom.causal & documents(batch), batch, packs=True)


def as_given_and_simplified(mask: Mask, batch: Batch, *, packs: bool) -> list[Contender]:
    layout = packed(batch) if packs else padded(batch)
    rows, _, length, _ = layout.arrange(batch.query).shape
    contenders = []
    for what, written in (("as given", mask), ("simplified", loom.masks.simplify(mask))):
        blocks = loom.create_block_mask(written, rows, None, length, length, batch.query.device)
        contenders.append(attend(f"attend, {what}", blocks, layout))
    return contenders


# -- tables of queries and keys, as Hugging Face's models make them: every tile reads its part ------------------------


def with_table(batch: Batch, full: Batch) -> Work:
    mask, length = causal_lengths(batch), batch.query.shape[2]
    table = loom.masks.from_dense(mask.dense(length, length))
    return batch, mask, [dense_sdpa(batch, loom.causal), *each_backend(table, padded(batch), "sdpa")]


def with_random_table(batch: Batch, full: Batch) -> Work:
    length, device = full.query.shape[2], full.query.device
    table = torch.rand(length, length, generator=torch.Generator(device).manual_seed(0), device=device) < 0.5
    mask = loom.masks.from_dense(table.fill_diagonal_(True))  # as `dense_sdpa` has it
    return full, mask, [dense_sdpa(full, mask), *each_backend(mask, padded(full), "sdpa")]


# -- short rows, and what it costs that nothing in padded positions can reach real ones --------------------------------


def in_short_rows(batch: Batch, full: Batch) -> Work:
    mask = causal_lengths(batch)
    ours = each_backend(mask, padded(batch), "sdpa")
    return batch, mask, [dense_sdpa(batch, loom.causal), varlen(batch), *ours]


def cleaned(batch: Batch, full: Batch) -> Work:
    mask, layout = causal_lengths(batch), padded(batch)
    ways = [attend(f"attend, clean_padding={clean}", mask, layout, clean_padding=clean) for clean in (False, True)]
    return batch, mask, ways


SECTIONS: dict[str, dict[str, Case]] = {
    "padded": {
        "causal & lengths": with_lengths,
        "causal & padding": with_padding,
        "documents & causal": with_documents,
        "causal, no padding": without_padding,
        "window & lengths": with_window,
    },
    "simplify": {
        "causal & lengths": simplified_lengths,
        "causal & window": simplified_window,
        "causal & documents": simplified_documents,
    },
    "table": {"causal & lengths": with_table, "random half": with_random_table},
    "short": {"causal & lengths": in_short_rows},
    "clean": {"causal & lengths": cleaned},
}
"""What matters most comes first."""
MASKS = list(dict.fromkeys(mask for cases in SECTIONS.values() for mask in cases))


def shapes(section: str, *, tiny: bool) -> list[Shape]:
    if tiny:
        return [(4, 16, 0.74) if section == "short" else (3, 40, 0.74)]
    if section == "short":
        return [(2**15 // length, length, 0.74) for length in (128, 512, 1024)]
    return [(8, 4096, 0.74), (4, 16384, 0.68)][: 1 if section in ("simplify", "table") else 2]


def main() -> None:
    arguments = parsed()
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32

    @functools.lru_cache(maxsize=4)  # a padded and a full one of each shape
    def make(rows: int, length: int, real: float) -> Batch:
        return make_batch(rows, HEADS, length, HEAD_DIM, real=real, device=arguments.device, dtype=dtype)

    deadline = time.monotonic() + arguments.seconds
    for section in arguments.sections:
        for mask, case in SECTIONS[section].items():
            for shape in shapes(section, tiny=arguments.tiny) if mask in arguments.masks else ():
                work = case(make(*shape), make(*shape[:2], 1.0))
                for row in measure(work, arguments.repeats, arguments.device, deadline):
                    full = {"section": section, **shape_of(work[0]), "mask": mask, **row}
                    append(arguments.out, full)
                    print(" ".join(f"{key}={value}" for key, value in full.items()), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=MASKS, help="those of the sections to measure")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few positions: does everything run?")
    parser.add_argument("--repeats", type=int, default=10, help="rounds, at least, and steps that are queued")
    parser.add_argument("--seconds", type=float, default=230)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention_gpu.csv"))
    return parser.parse_args()


def shape_of(batch: Batch) -> dict[str, object]:
    rows, heads, length, head_dim = batch.query.shape
    share = round(float(batch.lens.float().mean()) / length, 3)
    return {"shape": f"B{rows} H{heads} N{length} D{head_dim}", "real": share}


def measure(work: Work, repeats: int, device: str, deadline: float) -> list[dict[str, object]]:
    """The rows of contenders that do the same work."""
    batch, mask, contenders = work
    entrants = []
    for contender in contenders:
        start = time.monotonic()
        if start > deadline:
            print(f"no time left for {contender.name} on {mask}", flush=True)
            continue
        entrants.append(Entrant(contender, batch, device))
        entrants[-1].attempt(lambda entrant: entrant.check(truth(mask, batch)))
        print(f"{contender.name}: checked in {time.monotonic() - start:.1f} s", flush=True)
    for entrant in entrants:
        entrant.attempt(lambda entrant: entrant.call(counts=False))
    rounds = balanced(len(entrants))
    for number in range(-(-repeats // len(rounds)) * len(rounds) if rounds else 0):
        for place in rounds[number % len(rounds)]:
            entrants[place].attempt(lambda entrant: entrant.call(counts=True))
    for number in range(STEP_ROUNDS if rounds else 0):
        for place in rounds[number % len(rounds)]:
            entrants[place].attempt(lambda entrant: entrant.queue(repeats))
    if not entrants:
        return []
    _, heads, _, head_dim = batch.query.shape
    return with_speed([entrant.row() for entrant in entrants], flops(visible_pairs(mask, batch), heads, head_dim))


TIMES = ("forward_ms", "backward_ms", "step_ms", "host_forward_ms", "host_backward_ms")


@dataclass(eq=False)
class Entrant:
    """A contender with its inputs, and what was measured of it.

    Attributes:
        note: what "auto" chose, or why there are no times.
        held: the output that a forward made, until a backward takes it.
    """

    contender: Contender
    batch: Batch
    device: str
    error: str = ""
    note: str = ""
    failed: bool = False
    inputs: list[Tensor] = field(default_factory=list)
    held: list[Tensor] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})

    def attempt(self, work: Callable[["Entrant"], None]) -> None:
        """Do some work, unless there was a failure; a kernel may fail in any way, and the others still count."""
        if self.failed:
            return
        try:
            work(self)
        except Exception as error:
            words = str(error).strip().splitlines() or [""]
            self.failed, self.error, self.note = True, "", f"{type(error).__name__}: {words[0][:200]}"
            self.inputs, self.held = [], []

    def check(self, expected: list[Tensor]) -> None:
        """Make the inputs, and compare output and gradients with what is right."""
        layout = self.contender.layout
        self.inputs = [layout.arrange(tensor).detach().requires_grad_() for tensor in self.batch.inputs]
        self.grad = layout.arrange(self.batch.grad)
        self.forward()
        results = [self.held[0].detach()]
        self.backward()
        results += [tensor.grad for tensor in self.inputs if tensor.grad is not None]
        error = worst_error([layout.real(tensor) for tensor in results], expected)
        if not error < BOUND:
            raise ArithmeticError(f"relative error {error:.1e}")
        self.error, self.note = f"{error:.5f}", self.contender.chosen(*self.inputs)
        self.free()

    def call(self, *, counts: bool) -> None:
        """One forward and its backward by the device's clock, and another by the host's."""
        for clock, prefix in ((once_device_ms, ""), (once_host_ms, "host_")):
            for run, part in ((self.forward, "forward"), (self.backward, "backward")):
                elapsed = clock(run, device=self.device)
                if counts:
                    self.times[f"{prefix}{part}_ms"].append(elapsed)
        self.free()

    def queue(self, steps: int) -> None:
        """Some steps, queued one behind the other."""
        self.times["step_ms"].append(once_ms(lambda: self.steps(steps), device=self.device) / steps)
        self.free()

    def steps(self, steps: int) -> None:
        for _ in range(steps):
            self.forward()
            self.backward()

    def forward(self) -> None:
        self.held[:] = [self.contender.run(*self.inputs)]

    def backward(self) -> None:
        self.free()
        self.held.pop().backward(self.grad)

    def free(self) -> None:
        for tensor in self.inputs:
            tensor.grad = None

    def row(self) -> dict[str, object]:
        times = {name: "" if self.failed else statistics.median(found) for name, found in self.times.items()}
        return {"contender": self.contender.name, "error": self.error, **times, "note": self.note}


def with_speed(rows: list[dict[str, object]], work: tuple[int, int]) -> list[dict[str, object]]:
    """The rows with TFLOP/s forward and backward, and the part of the best of them that each comes to."""
    for part, operations in (("forward", work[0]), ("backward", work[1]), ("step", None)):
        times = {id(row): time for row in rows if isinstance(time := row[f"{part}_ms"], float)}
        for row in rows:
            time = times.get(id(row))
            if operations is not None:
                row[f"{part}_tflops"] = "" if time is None else round(operations / time / 1e9, 1)
            row[f"{part}_of_best"] = "" if time is None else round(min(times.values()) / time, 3)
    for row in rows:
        row["note"] = row.pop("note")  # the longest cell comes last
    return [{key: round(cell, 4) if isinstance(cell, float) else cell for key, cell in row.items()} for row in rows]


if __name__ == "__main__":
    main()
