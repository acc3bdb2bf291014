"""A Llama of transformers by each ``attn_implementation``: steps of training, and ``generate()``, in one run.

    python benchmarks/transformers_gpu.py --out build/transformers_gpu.csv
    python benchmarks/transformers_gpu.py --device cpu --small --out build/transformers_cpu.csv    # that it runs

bf16, 8 layers, 16 heads, 4 KV heads; a step of training is a forward and a backward. Rows are padded on the right, or
their documents are packed into one row (``packed``). Contenders run by turns; times are medians. With ``--compile`` each layer
is compiled, in a model of its own for each contender, one behind the other (``training, compiled``). For ``generate()`` the
prompts are padded on the left, all was run once before, and ``prefill_ms`` is that of one token. ``step, host`` is the time
until a step of decoding is launched, and ``step, device`` what its kernels take together (GPUs only).
"""

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from clocks import MIB, once_host_ms, once_ms
from rows import append
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import maskloom.integrations.transformers as hf

CONTENDERS = ("maskloom", "sdpa", "flex_attention", "eager")


def model_of(width: int, layers: int, device: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=16384, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device, torch.bfloat16)


def batch_of(rows: int, length: int, share: float, form: str, device: str) -> dict[str, Tensor]:
    """Rows whose lengths spread evenly around the share that is real."""
    spread = torch.linspace(-1, 1, rows) * min(share, 1 - share)
    lengths = ((share + spread) * length).long().clamp(1, length)
    if form == "packed":
        ids = torch.randint(1, 8192, (1, int(lengths.sum())), device=device)
        positions = torch.cat([torch.arange(int(one)) for one in lengths])[None].to(device)
        return {"input_ids": ids, "position_ids": positions, "labels": ids}
    real = (torch.arange(length) < lengths[:, None]).long().to(device)
    ids = torch.randint(1, 8192, (rows, length), device=device) * real
    return {"input_ids": ids, "attention_mask": real, "labels": ids.masked_fill(real == 0, -100)}


def step(model: Any, batch: dict[str, Tensor]) -> None:
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()


Clock = Callable[..., float]
"""Milliseconds of ``(run, device=device)``."""


def by_turns(
    model: Any, run: Callable[[], object], repeats: int, device: str, clock: Clock = once_ms
) -> dict[str, float | str]:
    """Median milliseconds of each contender; what it raised, in one word, if it did."""
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    failed: dict[str, str] = {}
    for _ in range(repeats + 1):
        for name in CONTENDERS:
            model.set_attn_implementation(name)
            try:
                times[name].append(clock(run, device=device))
            except Exception as error:
                failed[name] = type(error).__name__
    return {name: failed.get(name) or statistics.median(each[1:]) for name, each in times.items()}


def kernels_ms(run: Callable[[], object], *, device: str) -> float:
    """What all kernels of a call take together, in milliseconds."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    return sum(each.self_device_time_total for each in profiled.key_averages()) / 1e3


def compiled_step(model: Any, batch: dict[str, Tensor], name: str, repeats: int) -> tuple[float | str, float | str]:
    """Median milliseconds and memory of a step of training with compiled layers; what it raised, in one word, if it did."""
    torch._dynamo.reset()  # so that no contender's graphs count for another
    own, device = copy.deepcopy(model), batch["input_ids"].device.type
    own.set_attn_implementation(name)
    for layer in own.model.layers:
        layer.compile()
    try:
        times = [once_ms(lambda: step(own, batch), device=device) for _ in range(repeats + 3)]
        return statistics.median(times[3:]), memory_mib(own, lambda: step(own, batch), name, device)
    except Exception as error:
        return type(error).__name__, ""


def memory_mib(model: Any, run: Callable[[], object], name: str, device: str) -> float | str:
    if device == "cpu":
        return ""
    model.set_attn_implementation(name)
    torch.cuda.reset_peak_memory_stats()
    run()
    return round(torch.cuda.max_memory_allocated() / MIB)


def generate(model: Any, batch: dict[str, Tensor], count: int) -> None:
    given = {"do_sample": False, "eos_token_id": None, "max_new_tokens": count, "min_new_tokens": count}
    model.generate(batch["input_ids"].flip(1), attention_mask=batch["attention_mask"].flip(1), **given)


def decoding(model: Any, batch: dict[str, Tensor]) -> Callable[[], None]:
    """A step of decoding behind the prompts; each is the same, with one key more."""
    real, cache = batch["attention_mask"].flip(1), DynamicCache(config=model.config)
    ids = batch["input_ids"].flip(1)
    with torch.no_grad():
        model(ids, attention_mask=real, past_key_values=cache, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def one() -> None:
        nonlocal real
        real = torch.cat([real, real.new_ones(len(real), 1)], 1)
        places = real.sum(1, keepdim=True) - 1
        model(ids[:, -1:], attention_mask=real, position_ids=places, past_key_values=cache, use_cache=True)

    return one


BATCHES = (("padded", 0.5), ("padded", 0.75), ("padded", 1.0), ("packed", 0.5), ("packed", 0.75))


def measure(given: argparse.Namespace) -> None:
    out, device, small, cases, compiled = given.out, given.device, given.small, given.cases, given.compile
    sizes, layers = (((4, 4096), (8, 8192)), 8) if not small else (((2, 64),), 2)
    for width in given.widths if not small else [64]:
        model = model_of(width, layers, device)
        for (rows, length), (form, share) in itertools.product(sizes, BATCHES):
            if (not cases or f"{length} {form}" in cases) and share in (given.real or [share]):
                batch = batch_of(rows, length, share, form, device)
                what = {"width": width, "rows": rows, "length": length, "form": form, "real": share}
                if compiled:
                    _compiled_training(out, model.train(), batch, what, given.contenders)
                else:
                    _training(out, model.train(), batch, what)
        if not compiled and (not cases or "generate" in cases):
            prompts = batch_of(8, 1024 if not small else 32, 0.75, "padded", device)
            _generation(out, model.eval(), prompts, width, 64 if not small else 3)


def _training(out: Path, model: Any, batch: dict[str, Tensor], what: dict[str, Any]) -> None:
    device = batch["input_ids"].device.type
    for name, ms in by_turns(model, lambda: step(model, batch), 5, device).items():
        memory = "" if isinstance(ms, str) else memory_mib(model, lambda: step(model, batch), name, device)
        _row(out, "training", what, name, ms, memory=memory)


def _compiled_training(
    out: Path, model: Any, batch: dict[str, Tensor], what: dict[str, Any], contenders: Sequence[str]
) -> None:
    for name in contenders:
        ms, memory = compiled_step(model, batch, name, 5)
        _row(out, "training, compiled", what, name, ms, memory=memory)


def _generation(out: Path, model: Any, prompts: dict[str, Tensor], width: int, count: int) -> None:
    rows, length = prompts["input_ids"].shape
    device = prompts["input_ids"].device.type
    what = {"width": width, "rows": rows, "length": length, "form": "padded left", "real": 0.75}
    first = by_turns(model, lambda: generate(model, prompts, 1), 5, device)
    for name, ms in by_turns(model, lambda: generate(model, prompts, count), 5, device).items():
        _row(out, f"generate {count}", what, name, ms, prefill=first[name])
    clocks: dict[str, Clock] = {"step, host": once_host_ms}
    if device == "cuda":
        clocks["step, device"] = kernels_ms
    for case, clock in clocks.items():
        model.set_attn_implementation("sdpa")
        for name, ms in by_turns(model, decoding(model, prompts), 7, device, clock).items():
            _row(out, case, what, name, ms)


def _row(
    out: Path,
    case: str,
    what: dict[str, Any],
    name: str,
    ms: float | str,
    *,
    prefill: float | str = "",
    memory: float | str = "",
) -> None:
    append(out, {"case": case, **what, "contender": name, "ms": ms, "prefill_ms": prefill, "peak_mib": memory})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument(
        "--cases", nargs="+", default=[], help='some of "4096 padded", "8192 packed", and so on, and "generate"'
    )
    parser.add_argument("--real", type=float, nargs="+", default=[], help="some of the shares that are real")
    parser.add_argument("--compile", action="store_true", help="training alone, with compiled layers")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, help="with --compile")
    hf.register()
    measure(parser.parse_args())
