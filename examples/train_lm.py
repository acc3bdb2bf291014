"""Train a small language model on the functions of Python's own standard library, on one process or many.

    python examples/train_lm.py --out runs/one
    python examples/train_lm.py --out runs/one --resume --steps 400
    python examples/train_lm.py --out runs/one --generate "def " "class "
    torchrun --nproc-per-node 2 examples/train_lm.py --out runs/two --parallel fsdp

Sequences are of very unequal length: half are below 250 bytes, some above 10,000. ``--layout packed`` puts them one behind the
other into rows of ``--capacity`` tokens; ``padded`` and ``sdpa-dense`` pad them. A step has the same sequences in each layout,
so the curves are the same, and the speed is not.
"""

import argparse
import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lm import checkpoints
from lm.corpus import STANDARD_LIBRARY, BytePairs, Bytes, Corpus, Sequences, tokenizer_from
from lm.layouts import IGNORED, MicroBatches, mask_of
from lm.metrics import Metrics, Sums, mean
from lm.model import Decoder, ModelConfig, generate, parameter_groups
from lm.options import backend, count, finite
from lm.parallel import Ranks, clipped, processes, shared_out, synchronised
from lm.steps import Inputs, Step, lr_at, sampler_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

import maskloom as loom
from maskloom.batches import Batch, TokenBudgetSampler, pack_lengths


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="a folder for checkpoints and metrics.csv")
    add("--data", type=Path, default=STANDARD_LIBRARY, help="a folder of Python files")
    add("--bpe", type=count, metavar="SIZE", help="a vocabulary of so many byte pairs, in place of bytes")
    add("--layout", choices=("packed", "padded", "sdpa-dense"), default="packed")
    add("--capacity", type=count, default=1024, help="positions in a batch of one process, and in the longest sequence")
    add("--over", choices=("truncate", "split", "drop"), default="split", help="what becomes of longer functions")
    add("--rows", type=count, default=8, help="packed rows in a step, of all processes together")
    add("--steps", type=count, default=200)
    add("--lr", type=partial(finite, above=0), default=2e-3)
    add("--d-model", type=count, default=128)
    add("--layers", type=count, default=4)
    add("--heads", type=count, default=4)
    add("--kv-heads", type=count, default=2)
    add("--dropout", type=float, default=0.0)
    add("--parallel", choices=("ddp", "fsdp"), default="ddp", help="how processes under torchrun share the model")
    add("--cp", type=count, default=1, help="processes that share each row of tokens (context parallel)")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--compile", nargs="?", type=backend, const="inductor", metavar="BACKEND", help="torch.compile of each block")
    add("--recompute", action="store_true", help="activation checkpointing of each block")
    add("--workers", type=partial(count, least=0), default=0, help="processes of the loader")
    add("--seed", type=partial(count, least=0), default=0)
    add("--report-every", type=count, default=10, help="steps")
    add("--validate-every", type=count, default=50, help="steps")
    add("--validation-rows", type=count, default=64, help="packed rows of the validation split that are read")
    add("--save-every", type=count, default=100, help="steps")
    add("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    add("--generate", nargs="+", metavar="PROMPT", help="continue prompts by the newest checkpoint; no training")
    add("--length", type=count, default=200, help="tokens to generate, at most")
    add("--temperature", type=partial(finite, least=0), default=0.0, help="of sampling; 0 takes the likeliest token")
    return parser.parse_args(words)


class Trainer:
    """The data, the model and its optimiser, as this process has them."""

    def __init__(self, given: argparse.Namespace, ranks: Ranks) -> None:
        self.given, self.ranks = given, ranks
        sizes = (given.d_model, given.layers, given.heads, given.kv_heads, given.dropout)
        ModelConfig(0, *sizes)  # what cannot be is said before the corpus is read
        corpus = Corpus.read(given.data)
        self.tokenizer = BytePairs.trained(corpus.training, given.bpe) if given.bpe else Bytes()
        self.training = Sequences.of(corpus.training, self.tokenizer, given.capacity, given.over)
        self.validation = Sequences.of(corpus.validation, self.tokenizer, given.capacity, given.over)
        self.validation = self.validation.some(given.capacity * given.validation_rows)
        self.collate = MicroBatches(given.layout, given.capacity)
        self.sampler, self.loader = self.sampled()
        self.rows = self.batches()
        self.ahead: Step | None = None  # the next one, if it was prepared
        self.config = ModelConfig(self.tokenizer.vocab_size, *sizes)
        self.model = self.built()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), betas=(0.9, 0.95), fused=True)
        self.identity = {
            "model": vars(self.config), "corpus": corpus.digest(), "tokenizer": self.tokenizer.state(),
            "layout": given.layout, "over": given.over, "processes": ranks.size, "cp": given.cp,
        }  # fmt: skip

    def sampled(self) -> tuple[TokenBudgetSampler, DataLoader[Any]]:
        """The sampler, and its loader."""
        sampler = sampler_of(self.training.lengths(), self.given, self.ranks.data)
        loader: DataLoader[Any] = DataLoader(
            self.training, batch_sampler=sampler, collate_fn=self.collate, num_workers=self.given.workers,
            pin_memory=self.ranks.device.type == "cuda", generator=torch.Generator(),
        )  # fmt: skip
        return sampler, loader

    def built(self) -> nn.Module:
        """The model, the same on every process at first."""
        torch.manual_seed(self.given.seed)
        model = Decoder(self.config, recompute=self.given.recompute).to(self.ranks.device)
        for block in model.blocks if self.given.compile else ():
            block.compile(backend=self.given.compile)
        torch.manual_seed(self.given.seed + self.ranks.data[0])  # of dropout
        return shared_out(model, self.ranks, self.given.parallel, bf16=self.given.bf16)

    def batches(self) -> Iterator[list[Batch]]:
        """Those of each step, epoch after epoch."""
        while True:
            rows = self.sampler.consume(self.loader)
            for first in rows:
                others = islice(rows, self.given.rows // self.ranks.data[1] - 1)
                yield list(chain(first, *others))

    def inputs(self, batch: Batch) -> Inputs:
        """A batch, or this process's share of each row, on the device."""
        given, on_host = self.given, batch.mask
        batch = batch.to(self.ranks.device, non_blocking=True)
        tokens, positions = batch.inputs, batch.positions
        targets: Any = batch.targets
        if given.cp == 1:
            mask: Any = mask_of(given.layout, batch)
        else:  # planned by what lies on the host: that waits for no GPU
            mask = loom.distributed.plan(on_host, tokens.shape[1], self.ranks.cp, heads=(given.heads, given.kv_heads))
            tokens, positions = mask.shard(tokens, dim=1), mask.shard(positions, dim=1)
            targets = mask.shard(targets, dim=1, fill=IGNORED)
        options = {"positions": positions} | ({"backend": "sdpa"} if given.layout == "sdpa-dense" else {})
        return Inputs(tokens, targets, mask, options, batch.fields["place"])

    def prepared(self, batches: list[Batch]) -> Step:
        """A step of these batches. All processes prepare it together."""
        runs = self.ranks.most(len(batches))
        return Step(batches, runs, self.counts(batches, runs), self.inputs(batches[0]), self.sampler.state_dict())

    def inputs_of(self, step: Step) -> Iterator[Inputs]:
        """Those of each run, made in its turn, while the device still works. Who has too few batches runs the last again, idly."""
        yield (inputs := step.first)
        for batch in step.batches[1:]:
            yield (inputs := self.inputs(batch))
        idle = inputs._replace(targets=torch.full_like(inputs.targets, IGNORED))
        yield from [idle] * (step.runs - len(step.batches))

    def counts(self, batches: list[Batch], runs: int) -> list[float]:
        """`Step.counts`."""
        real = sum(int(batch.lengths.sum()) for batch in batches)
        targets = real - sum(len(batch.lengths) for batch in batches)
        positions = sum(batch.ids.numel() for batch in batches + batches[-1:] * (runs - len(batches)))
        return self.ranks.sum(*(number / self.given.cp for number in (targets, real, positions)))

    def loss(self, inputs: Inputs) -> Tensor:
        """The sum over the targets of this process."""
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.given.bf16):
            logits = self.model(inputs.tokens, inputs.mask, **inputs.options)
        return F.cross_entropy(logits.flatten(0, 1).float(), inputs.targets.flatten(), reduction="sum")

    def step(self, lr: float, *, is_last: bool = False) -> tuple[Sums, dict[str, int]]:
        """Gradients of all batches of all processes, each target counted once; then one step of the optimiser.

        Returns:
            The step's sums, and the state of the sampler after it.
        """
        now = self.ahead or self.prepared(next(self.rows))
        factor = self.ranks.size / max(now.counts[0], 1)  # gradients are averaged over processes
        losses, places = [], []
        for inputs in self.inputs_of(now):
            losses.append(self.loss(inputs))
            places.append(inputs.places)
            with synchronised(self.model, len(losses) == now.runs):
                (losses[-1] * factor).backward()
            losses[-1].detach_()
        self.ahead = None if is_last else self.prepared(next(self.rows))  # before the device is waited for
        norm, (total,) = clipped(self.model, 1.0), self.ranks.sum(float(sum(losses)))
        if not math.isfinite(total + norm):
            wrong = [place for place, loss in zip(places, losses, strict=True) if not loss.isfinite()]
            where = f", first in a batch of {', '.join(wrong[0])}" if wrong else ""
            raise FloatingPointError(f"the loss is {total} and the norm of its gradient {norm}{where}")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Sums(total, *now.counts), now.sampler

    @torch.no_grad()
    def validate(self) -> float | None:
        """The mean loss of a target of the validation split; None without any target."""
        rank, size = self.ranks.data
        rows = pack_lengths(self.validation.lengths(), self.given.capacity)
        if len(rows) < size:
            raise SystemExit(f"validation has {len(rows)} rows for {size} processes; --validation-rows takes more")
        batches = [batch for row in rows[rank::size] for batch in self.collate([self.validation[at] for at in row])]
        self.model.eval()
        whole = self.prepared(batches)
        (loss,) = self.ranks.sum(sum(float(self.loss(inputs)) for inputs in self.inputs_of(whole)))
        self.model.train()
        return mean(loss, whole.counts[0])

    def save(self, step: int, sampler: dict[str, int]) -> None:
        meta = {**self.identity, "sampler": sampler}
        checkpoints.save(self.given.out, step, self.model, self.optimizer, meta)

    def resume(self) -> int:
        """Go on from the newest checkpoint; the number of steps that were done."""
        newest = checkpoints.latest(self.given.out)
        if newest is None:
            return 0
        meta = checkpoints.read_meta(newest, sampler=dict)
        checkpoints.refuse_other(newest, meta, self.identity)
        with checkpoints.reading(newest, "meta.json"):
            try:
                self.sampler.load_state_dict(meta["sampler"])
            except ValueError as error:
                raise SystemExit(f"{newest} is of another run: {error}") from None
        checkpoints.load(newest, self.model, self.optimizer)
        return meta["step"]


def train(given: argparse.Namespace, ranks: Ranks) -> None:
    """All steps that are left, with reports, validation and checkpoints."""
    newest = checkpoints.latest(given.out)
    if newest is not None and not given.resume:
        raise SystemExit(f"{newest} is there: --resume goes on from it, and another --out begins anew")
    trainer = Trainer(given, ranks)
    start = trainer.resume()
    if start >= given.steps:
        print(f"{newest} has all of --steps {given.steps}: there is nothing left to train")
        return
    given.out.mkdir(parents=True, exist_ok=True)
    labels = {"layout": given.layout, "corpus": trainer.identity["corpus"]}
    metrics = Metrics(given.out / "metrics.csv", labels, given.steps, start, quiet=ranks.rank > 0)
    metrics.say(described(trainer))
    with metrics.bar:
        for step in range(start + 1, given.steps + 1):
            is_last = step == given.steps
            try:
                sums, sampler = trainer.step(lr_at(step - 1, given), is_last=is_last)
            except FloatingPointError as error:
                raise SystemExit(f"step {step}: {error}. Checkpoints stay as they were") from None
            metrics.step(sums)
            is_saved = is_last or step % given.save_every == 0
            validation = trainer.validate() if is_last or step % given.validate_every == 0 else None
            if is_saved or validation is not None or step % given.report_every == 0:
                metrics.report(step, validation)
            if is_saved:
                trainer.save(step, sampler)
            metrics.mark()


def described(trainer: Trainer) -> str:
    """What is trained on what."""
    training, given = trainer.training, trainer.given
    return (
        f"corpus {trainer.identity['corpus']}: {len(training)} sequences to train on, {len(trainer.validation)} to validate\n"
        f"{training.over} were longer than {given.capacity} tokens (--over {given.over}), {training.lost:.1%} of tokens are lost\n"
        f"{sum(parameter.numel() for parameter in trainer.model.parameters()):,} parameters, {given.layout}; "
        f"unigram entropy {trainer.validation.unigram_entropy():.3f} nats a token, "
        f"{trainer.validation.bytes_per_token:.2f} bytes a token"
    )


def write(given: argparse.Namespace) -> list[str]:
    """Continue the prompts by the newest checkpoint, all in one batch."""
    newest = checkpoints.latest(given.out)
    if newest is None:
        raise SystemExit(f"there is no checkpoint in {given.out}")
    meta = checkpoints.read_meta(newest, model=dict, tokenizer=str)
    with checkpoints.reading(newest, "meta.json"):
        tokenizer, model = tokenizer_from(meta["tokenizer"]), Decoder(ModelConfig(**meta["model"]))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    checkpoints.load_model(newest, model)
    prompts = [torch.tensor([tokenizer.end, *tokenizer.encode(prompt)]) for prompt in given.generate]
    found = generate(model, prompts, given.length, end=tokenizer.end, temperature=given.temperature, seed=given.seed)
    return [prompt + tokenizer.decode(ids.tolist()) for prompt, ids in zip(given.generate, found, strict=True)]


def main(words: list[str] | None = None) -> None:
    given = arguments(words)
    try:
        if given.generate:
            print(*write(given), sep="\n\n")
        else:
            with processes(given.cp) as ranks:
                train(given, ranks)
    except OSError as error:  # a full disk, a folder that is not ours
        raise SystemExit(f"train_lm: {error}") from error


if __name__ == "__main__":
    main()
