"""Steps of training of the example's model by each layout and attention, in one run.

    python benchmarks/train_lm_gpu.py --out benchmarks/results/train_lm_gpu.csv
    python benchmarks/train_lm_gpu.py --small --device cpu --out build/train_lm_cpu.csv    # that it runs

bf16 autocast, width 1024, 12 layers, 16 heads, 4 KV heads, packed rows of 8,192 tokens, blocks under torch.compile. The corpus is
the functions of Python's standard library. Each contender takes the same optimiser steps of the same sequences; a padded batch
has at most as many positions as a packed row, its rows of similar length, or ("drawn") in the order in which they were drawn.
A step is all that a training loop does on a batch that lies on the host: the copy to the device, the mask, forward, backward,
AdamW. ``tokens_per_s`` counts real tokens, by the median of passes over all steps, contenders by turns. ``gradient`` is the
relative difference of the first projection's gradient to that of float32 attention with a dense table, not compiled; ``loss``
that of the first step, before any. ``backends`` is what `maskloom.attend` chooses, or whose attention it is. Memory is what a step takes over parameters, their gradients and AdamW's state.
"""

import argparse
import inspect
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from clocks import MIB, once_ms, wait
from rows import append
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from lm.corpus import STANDARD_LIBRARY, Bytes, Corpus, Sequences
from lm.layouts import IGNORED, MicroBatches, mask_of
from lm.model import Decoder, ModelConfig, parameter_groups

import maskloom as loom
from maskloom.batches import Batch, TokenBudgetSampler
from maskloom.nn.call import MultiheadOutput

Sample = list[dict[str, Any]]


def contenders(capacity: int, device: str) -> dict[str, tuple[MicroBatches, str]]:
    """By name: the layout, and whose attention. The first one is what others are compared with."""
    packed = MicroBatches("packed", capacity)
    padded, drawn = MicroBatches("padded", capacity), MicroBatches("padded", capacity, by_length=False)
    found = {
        "packed: attend": (packed, "attend"),
        "packed: torch varlen": (packed, "varlen"),
        "packed: attend, block masks": (packed, "attend, blocks"),
        "packed: attend, flash": (packed, "attend, flash"),
        "padded: sdpa, dense": (padded, "sdpa"),
        "padded: attend": (padded, "attend"),
        "padded, drawn: sdpa, dense": (drawn, "sdpa"),
        "padded, drawn: attend": (drawn, "attend"),
        "packed: sdpa, dense": (packed, "sdpa"),
    }
    return {
        name: case for name, case in found.items() if case[1] not in ("varlen", "attend, flash") or device == "cuda"
    }


def heads_of(module: loom.MultiheadFlexAttention, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, L, d_head), normed and turned."""
    heads = module.in_proj(x).unflatten(-1, (-1, module.d_head)).transpose(1, 2)
    queries, keys, values = heads.split([module.n_heads, module.n_kv_heads, module.n_kv_heads], 1)
    rotary, q_norm, k_norm = module.rotary, module.q_norm, module.k_norm
    assert rotary is not None and q_norm is not None and k_norm is not None
    queries, keys = rotary(normed(q_norm, queries), positions), rotary(normed(k_norm, keys), positions)
    return queries.to(values.dtype), keys.to(values.dtype), values


def normed(norm: torch.nn.RMSNorm, heads: Tensor) -> Tensor:
    """In the dtype of the heads, as torch's fused kernel takes it under autocast."""
    return F.rms_norm(heads, norm.normalized_shape, norm.weight.to(heads.dtype), norm.eps)


class Sdpa(loom.MultiheadFlexAttention):
    """torch's own attention with a dense table, as one would write it."""

    def forward(self, x: Tensor, table: Any, *, positions: Any = None, **options: Any) -> MultiheadOutput:  # type: ignore[override]
        queries, keys, values = heads_of(self, x, positions)
        shared = self.n_heads // self.n_kv_heads  # torch's fused kernels take no grouped heads beside a table
        keys, values = (tensor.repeat_interleave(shared, 1) for tensor in (keys, values))
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=table)
        return MultiheadOutput(self.out_proj(out.transpose(1, 2).flatten(2)), queries, keys)


class TorchVarlen(loom.MultiheadFlexAttention):
    """torch's attention for packed documents, as one would write it."""

    def forward(self, x: Tensor, ends: Any, *, positions: Any = None, **options: Any) -> MultiheadOutput:  # type: ignore[override]
        from torch.nn.attention import varlen

        attention: Any = varlen.varlen_attn
        queries, keys, values = heads_of(self, x, positions)
        rows = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (queries, keys, values)]
        shared = {"enable_gqa": True} if "enable_gqa" in inspect.signature(attention).parameters else {}
        out = attention(*rows, ends, ends, x.shape[1], x.shape[1], window_size=(-1, 0), **shared)
        return MultiheadOutput(self.out_proj(out.flatten(1)[None]), queries, keys)


def mask_for(batch: Batch, whose: str) -> Any:
    """What an attention takes for a mask, made from what the batch has on the device, once for all blocks."""
    if whose == "attend":
        return batch.mask if batch.packed else mask_of("padded", batch)
    if whose in ("attend, blocks", "attend, flash"):
        return mask_of("padded", batch)
    if whose == "varlen":
        return batch.cu_seqlens
    places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    same = batch.ids[:, :, None] == batch.ids[:, None, :] if batch.packed else (batch.ids >= 0)[:, None, :]
    return (same & (places[:, None] >= places))[:, None]


def built(config: ModelConfig, whose: str, device: str, compiled: bool) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config)
    kind = {"sdpa": Sdpa, "varlen": TorchVarlen}.get(whose, loom.MultiheadFlexAttention)
    for block in model.blocks:
        block.attention.__class__ = kind  # the same parameters
    for block in model.blocks if compiled else ():
        block.compile()
    return model.to(device)


class Run:
    """One contender: its model, optimiser and batches."""

    def __init__(self, case: tuple[MicroBatches, str], config: ModelConfig, samples: list[Sample], given: Any) -> None:
        collate, self.whose = case
        self.options = {"backend": "flash"} if self.whose == "attend, flash" else {}
        self.device, self.bf16 = given.device, not given.small
        self.is_compiled = not given.eager and not given.small
        self.model = built(config, self.whose, self.device, compiled=self.is_compiled)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), lr=1e-4, fused=True)
        self.batches = [[self.pinned(batch) for batch in collate(sample)] for sample in samples]
        all_batches = [batch for batches in self.batches for batch in batches]
        self.real = sum(int(batch.lengths.sum()) for batch in all_batches)
        self.positions = sum(batch.ids.numel() for batch in all_batches)
        self.times: list[float] = []

    def pinned(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self.device == "cuda" else batch

    def loss(self, batch: Batch) -> Tensor:
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            logits = self.model(batch.inputs, mask_for(batch, self.whose), positions=batch.positions, **self.options)
        targets: Any = batch.targets
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def gradients(self, batches: list[Batch]) -> float:
        """Gradients of the mean loss of a sample; that loss."""
        targets = sum(int(batch.lengths.sum()) - len(batch.lengths) for batch in batches)
        losses = []
        for batch in batches:
            loss = self.loss(batch) / targets
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum().item()

    def checked(self, reference: "Run | None") -> tuple[float, float]:
        """The loss of the first sample, and how far the first projection's gradient is from that of the reference."""
        loss = self.gradients(self.batches[0])
        grads = [run.model.blocks[0].attention.in_proj.weight.grad for run in (self, reference or self)]  # type: ignore[union-attr]
        ours, theirs = (grad.float() for grad in grads)
        difference = float((ours - theirs).norm() / theirs.norm())
        if reference is not None:
            self.model.zero_grad()
        return loss, difference

    def all_steps(self) -> None:
        for batches in self.batches:
            self.gradients(batches)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def backends(self) -> str:
        """What runs attention in the batches, if maskloom chooses it."""
        if not self.whose.startswith("attend"):
            return self.whose
        return ", ".join(sorted({self._backend(batch) for batches in self.batches for batch in batches}))

    def _backend(self, batch: Batch) -> str:
        config, (rows, length) = self.model.config, batch.ids.shape
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        query, key, value = (
            torch.zeros(rows, heads, length, config.d_model // config.n_heads, device=self.device, dtype=dtype)
            for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        )
        mask = mask_for(batch.to(self.device), self.whose)
        qkv = query.requires_grad_(), key, value
        return loom.explain(*qkv, mask, compiled=self.is_compiled, **self.options).backend

    def memory_mib(self) -> float | str:
        if self.device != "cuda":
            return ""
        wait(self.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.gradients(max(self.batches, key=lambda batches: max(batch.ids.numel() for batch in batches)))
        self.model.zero_grad()
        own = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return round((torch.cuda.max_memory_allocated() - before - own) / MIB)


def sampled(sequences: Sequences, capacity: int, count: int) -> list[Sample]:
    """The sequences of so many packed rows; one row is a step."""
    sampler = TokenBudgetSampler(sequences.lengths(), capacity, packed=True, seed=0)
    return [[sequences[at] for at in row] for row in islice(sampler, count)]


def begun(
    case: tuple[MicroBatches, str], config: ModelConfig, samples: list[Sample], given: Any, reference: Run
) -> tuple[Run, dict[str, Any]]:
    """A contender, checked, that has seen every shape; and what was found."""
    first = time.perf_counter()
    run = Run(case, config, samples, given)
    loss, gradient = run.checked(reference)
    run.all_steps()
    wait(given.device)
    seconds = round(time.perf_counter() - first, 1)
    return run, {"loss": round(loss, 5), "gradient": round(gradient, 5), "first_pass_s": seconds}


def measured(given: Any, config: ModelConfig, samples: list[Sample], capacity: int) -> dict[str, dict[str, Any]]:
    start = time.perf_counter()
    cases = contenders(capacity, given.device)
    exact = argparse.Namespace(device=given.device, small=True, eager=True)  # float32, not compiled
    reference = Run((MicroBatches("padded", capacity), "sdpa"), config, samples[:1], exact)
    reference.checked(None)
    runs: dict[str, Run] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in [name for name in cases if not given.only or name in given.only]:
        if time.perf_counter() - start > given.seconds:
            break
        try:
            runs[name], found[name] = begun(cases[name], config, samples, given, reference)
        except Exception as error:  # the others are measured all the same
            print(name, "failed:", type(error).__name__, error, flush=True)
            continue
        print(name, found[name], f"{time.perf_counter() - start:.0f} s", flush=True)
    for done in range(given.passes):
        if done and time.perf_counter() - start > given.until:
            break
        for run in runs.values():
            run.times.append(once_ms(run.all_steps, device=given.device))
    for name, run in runs.items():
        speed = 1e3 * run.real / statistics.median(run.times)
        step_ms = round(statistics.median(run.times) / len(run.batches), 2)
        found[name] |= {"real": round(run.real / run.positions, 3), "tokens_per_s": round(speed), "step_ms": step_ms}
        found[name] |= {"memory_mib": run.memory_mib(), "backends": run.backends()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, default=STANDARD_LIBRARY)
    parser.add_argument(
        "--steps", type=int, default=24, help="steps in a pass; a step is the sequences of one packed row"
    )
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=360, help="no contender is begun later than that")
    parser.add_argument(
        "--until", type=float, default=480, help="no pass but the first is begun later than that, in seconds"
    )
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--small", action="store_true", help="a tiny model in float32, not compiled")
    parser.add_argument("--only", nargs="*", help="names of contenders")
    given = parser.parse_args()
    torch._dynamo.config.recompile_limit = 128  # blocks of all contenders are graphs of one code
    width, layers, heads, kv_heads, capacity = (32, 2, 4, 2, 256) if given.small else (1024, 12, 16, 4, 8192)
    corpus = Corpus.read(given.data)
    sequences = Sequences.of(corpus.training, Bytes(), capacity, "split")
    config = ModelConfig(Bytes().vocab_size, width, layers, heads, kv_heads)
    found = measured(given, config, sampled(sequences, capacity, given.steps), capacity)
    first = next(iter(found.values()))["tokens_per_s"]
    for name, numbers in found.items():
        labels = {"contender": name, "width": width, "layers": layers, "capacity": capacity, "corpus": corpus.digest()}
        share = round(numbers["tokens_per_s"] / first, 3)
        compiled = not given.eager and not given.small
        append(given.out, {**labels, "compiled": compiled, **numbers, "of_first": share})
        print(f"{name:32}", *(f"{key} {value}" for key, value in numbers.items()), share, sep="  ", flush=True)


if __name__ == "__main__":
    main()
