"""Which sequences make a batch: as many as fit a budget of tokens, of similar lengths, with equal work for all ranks."""

import operator
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from maskloom.batches.bins import Ints, lengths_on_host
from maskloom.core.checks import check_flags, count, is_number, positive
from maskloom.core.words import brief
from maskloom.loading.plan import Steps, steps_of

T = TypeVar("T")
Over = Literal["raise", "truncate", "drop"]


class TokenBudgetSampler(Sampler[list[int]]):
    """Batches of at most ``budget`` tokens: ``batch_sampler`` of a DataLoader.

    ::

        sampler = loom.batches.TokenBudgetSampler(lengths, budget=8192, packed=True, seed=0)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=4)
        for epoch in range(sampler.epoch, epochs):
            for batch in sampler.consume(loader):
                ...
                save(sampler.state_dict())  # at any step: the next run goes on behind this batch

    In an epoch each sequence is in one batch of one rank, and all ranks have the same number of steps. The batches of
    one step cost about the same: the cost is that of attention, the sum of squared lengths. The order follows from
    lengths, seed and epoch alone, so ranks need not talk to each other; give all of them the same lengths.

    To make steps equal some batches are split. If there is nothing to split, because every batch has one sequence,
    the last step repeats sequences; ``drop_last=True`` leaves out what is over instead, and splits nothing (unless
    there are fewer batches than ranks).

    Args:
        lengths: integers (n,), the number of tokens of each sequence of the data set.
        budget: positions in a batch: of packed rows the sum of lengths, of a padded batch rows times the longest.
        packed: whether the batch will be packed.
        buckets: for padded batches: sequences are sorted by length into so many buckets with equally many tokens, and
            batches are drawn from one bucket. More buckets pad less, and mix lengths less.
        shuffle: whether sequences and steps are drawn anew in each epoch.
        seed: an int, at least 0.
        rank, world_size: by default those of torch.distributed if it is initialised, else 0 and 1.
        accumulate: batches of each rank in a step of the optimiser; they are drawn one after the other. Which sequences
            are in a step follows from ``world_size * accumulate`` alone: two ranks that accumulate 4 batches and eight
            ranks that accumulate none take the same steps.
        over: what becomes of a sequence longer than the budget: a ValueError, or it counts as one of ``budget`` tokens
            ("truncate", for a collator that truncates), or it is left out ("drop").
        drop_last: see above.

    Attributes:
        epoch: the number of the epoch, from 0. It rises when `consume` ends.

    Raises:
        TypeError, ValueError: not integers (n,), no sequences, flags that are none, sizes below 1, a length above the budget, a rank that is
            not in the world, fewer sequences than a step has batches.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        budget: int,
        *,
        packed: bool = False,
        buckets: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        accumulate: int = 1,
        over: Over = "raise",
        drop_last: bool = False,
    ) -> None:
        self._budget, self._buckets = positive("budget", budget), count("buckets", buckets, least=1, of="buckets")
        check_flags(packed=packed, shuffle=shuffle, drop_last=drop_last)
        self._packed, self._shuffle, self._drop_last = packed, shuffle, drop_last
        self._seed = _checked_seed(seed)
        self.rank, self.world_size = _place(rank, world_size)
        self._accumulate = count("accumulate", accumulate, least=1, of="batches of a rank in a step")
        if over not in get_args(Over):
            raise ValueError(f"over is one of {', '.join(get_args(Over))}; got {brief(over)}")
        lens = lengths_on_host(lengths)
        self._chosen, self._lengths = _within_budget(lens, self._budget, over)
        if len(self._chosen) < self.world_size * self._accumulate:
            whose = "rank" if self._accumulate == 1 else f"of {self._accumulate} batches of a rank"
            raise ValueError(f"each {whose} needs a sequence; got {len(self._chosen)} for {self.world_size} ranks")
        self.epoch = self._consumed = self._drawn = 0
        self._counts = self._is_counted = False  # whether `consume` counts now, and whether it counts what was drawn
        self._planned: tuple[int, Steps] = (-1, [])

    def __iter__(self) -> Iterator[list[int]]:
        """The indices of this rank's batches, from the first that was not consumed."""
        self._drawn, self._is_counted = 0, self._counts
        return self._batches(self._steps(), self._consumed)

    def __len__(self) -> int:
        """The number of this rank's batches in the epoch, the same for all ranks: steps × ``accumulate``."""
        return len(self._steps()) * self._accumulate

    def consume(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader that has this sampler, counted as they are handed out, until the epoch ends.

        What workers have prefetched is not counted. After a break, and after `load_state_dict`, it goes on behind the
        last batch that was handed out.

        Raises:
            RuntimeError: the loader ends before the sampler, so it has another one.
        """
        self._counts = True
        try:
            for batch in loader:
                self._consumed += 1
                yield batch
        finally:
            self._counts = False
        if self._consumed != len(self):
            raise RuntimeError(
                f"the loader gave {self._consumed} batches, and this sampler has {len(self)}: is it the "
                "batch_sampler of the loader?"
            )
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch; for the present one nothing changes, so that a resumed epoch goes on where it was."""
        if count("epoch", epoch, of="the epoch") != self.epoch:
            self.epoch, self._consumed, self._drawn = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Which batches were consumed: the same on all ranks. It holds ints and bools.

        Raises:
            RuntimeError: batches were drawn, and nothing counts which of them were consumed: see `consume`.
        """
        if self._drawn and not self._is_counted:
            raise RuntimeError(
                f"{self._drawn} batches were drawn, perhaps ahead by workers, and nothing counts which were consumed: "
                "iterate over sampler.consume(loader)"
            )
        return {"epoch": self.epoch, "consumed": self._consumed, **self._settings(), "order": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on behind the last batch that was consumed.

        Raises:
            TypeError: no dict, or numbers in it that are no ints. ValueError: the state is of another world size, accumulation, seed, budget or data set, or its epoch had another order (as
                another version of NumPy may draw one): the batches would be others. Nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the state is a dict, what state_dict() gave; got {brief(state)}")
        state = {"accumulate": 1, **state}  # what states had before there was one
        own: dict[str, int | None] = {"epoch": None, "consumed": None, **self._settings(), "order": None}
        for name, value in own.items():
            if name not in state:
                raise ValueError(f"it is no state of a TokenBudgetSampler: it has no {name!r}")
            if value is not None and state[name] != value:
                raise ValueError(
                    f"the state has {name}={brief(state[name])}, and this sampler {name}={brief(value)}: its batches "
                    "are others"
                )
        epoch, consumed = (
            count(f"{name} of the state", state[name], of="epochs" if name == "epoch" else "batches")
            for name in ("epoch", "consumed")
        )
        before, self.epoch = self.epoch, epoch
        try:
            if self._fingerprint() != state["order"]:
                raise ValueError(f"epoch {epoch} had another order where the state was saved: the batches are others")
            if consumed > len(self):
                raise ValueError(f"the state has consumed {consumed} batches of an epoch of {len(self)}")
        except ValueError:
            self.epoch = before
            raise
        self._consumed, self._drawn = consumed, 0

    def _fingerprint(self) -> int:
        """A number that tells orders of the epoch apart: of the first step alone, since all follows from one seed."""
        return zlib.crc32(repr(self._steps()[0]).encode())

    def _settings(self) -> dict[str, int]:
        """What the order of batches follows from, beside the epoch."""
        names = ("seed", "budget", "packed", "buckets", "shuffle", "drop_last", "accumulate")
        found = {"world_size": self.world_size} | {name: getattr(self, f"_{name}") for name in names}
        return found | {"sequences": len(self._chosen), "checksum": zlib.crc32(self._lengths.tobytes())}

    def _batches(self, steps: Steps, start: int) -> Iterator[list[int]]:
        own = [step[at] for step in steps for at in range(self.rank, len(step), self.world_size)]
        for batch in own[start:]:
            self._drawn += 1
            yield list(batch)

    def _steps(self) -> Steps:
        """For each step of the epoch the indices of each batch: those of all ranks, ``accumulate`` times."""
        if self._planned[0] != self.epoch:
            random = np.random.default_rng([self._seed, self.epoch]) if self._shuffle else None
            steps = steps_of(
                self._lengths,
                self._budget,
                self.world_size * self._accumulate,
                random,
                packed=self._packed,
                buckets=self._buckets,
                drop_last=self._drop_last,
            )
            chosen = self._chosen.tolist()
            named = [[[chosen[at] for at in batch] for batch in step] for step in steps]
            self._planned = (self.epoch, named)
        return self._planned[1]


def _checked_seed(seed: int) -> int:
    """A seed of any size, as torch.initial_seed() gives one."""
    if not is_number(seed) or operator.index(seed) < 0:
        raise (ValueError if is_number(seed) else TypeError)(f"seed is an int, at least 0; got {brief(seed)}")
    return operator.index(seed)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """The rank and the world size, as given or of torch.distributed."""
    is_there = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if is_there else 1
    if rank is None:
        rank = torch.distributed.get_rank() if is_there else 0
    world_size = count("world_size", world_size, least=1, of="ranks")
    if not 0 <= count("rank", rank, of="this rank") < world_size:
        raise ValueError(f"rank is one of 0 to {world_size - 1}, as world_size says; got {rank}")
    return rank, world_size


def _within_budget(lens: Ints, budget: int, over: Over) -> tuple[Ints, Ints]:
    """Which sequences are drawn, and the tokens that each counts."""
    is_over = lens > budget
    if over == "raise" and is_over.any():
        at = int(is_over.argmax())
        raise ValueError(
            f"{int(is_over.sum())} of {len(lens)} sequences are longer than the budget {budget}; the first is number "
            f"{at}, with {int(lens[at])}. over= takes truncate or drop"
        )
    chosen = np.flatnonzero(~is_over) if over == "drop" else np.arange(len(lens))
    return chosen, lens[chosen].clip(max=budget)
