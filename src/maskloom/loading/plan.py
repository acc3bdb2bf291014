"""The batches of an epoch, and which rank has which: what `TokenBudgetSampler` draws."""

import heapq

import numpy as np
import torch

from maskloom.batches.bins import Ints, pack_lengths

Steps = list[list[list[int]]]
"""For each step the batch of each rank: the numbers of its sequences."""

_OPEN_ROWS = 64


def steps_of(
    lens: Ints,
    budget: int,
    world_size: int,
    random: np.random.Generator | None,
    *,
    packed: bool,
    buckets: int,
    drop_last: bool,
) -> Steps:
    """All steps of an epoch, for sequences of these lengths; in a random order if there is a generator."""
    order = np.arange(len(lens)) if random is None else random.permutation(len(lens))
    batches = _packed(order, lens, budget) if packed else _padded(_by_bucket(order, lens, buckets), lens, budget)
    costs = (lens.astype(float) ** 2).tolist()
    if drop_last and not packed and random is not None and len(batches) % world_size:
        # padded batches are sorted by length: those at the end are always of the longest
        batches = [batches[at] for at in random.permutation(len(batches))]
    return _grouped(_even(batches, costs, world_size, drop_last), costs, world_size, random)


def _packed(order: Ints, lens: Ints, budget: int) -> list[list[int]]:
    """Batches whose lengths add up to at most the budget: best fit in a random order."""
    rows = pack_lengths(torch.from_numpy(lens[order]), budget, open_rows=_OPEN_ROWS)
    return [order[row].tolist() for row in rows]


def _by_bucket(order: Ints, lens: Ints, buckets: int) -> Ints:
    """The order, sorted by the bucket of each sequence."""
    by_length = np.argsort(lens, kind="stable")
    tokens = lens[by_length].cumsum()
    bucket = np.empty(len(lens), np.int64)
    bucket[by_length] = (tokens * buckets - 1) // max(int(tokens[-1]), 1)
    return order[np.argsort(bucket[order], kind="stable")]


def _padded(order: Ints, lens: Ints, budget: int) -> list[list[int]]:
    """Batches of consecutive sequences that need at most the budget when they are padded to their longest."""
    batches: list[list[int]] = [[]]
    longest = 1
    for at, length in zip(order.tolist(), lens[order].tolist(), strict=True):
        longest = max(longest, length)
        if longest * (len(batches[-1]) + 1) > budget and batches[-1]:
            batches.append([])
            longest = max(length, 1)
        batches[-1].append(at)
    return batches


def _even(batches: list[list[int]], costs: list[float], world_size: int, drop_last: bool) -> list[list[int]]:
    """As many batches as a multiple of the world size; the costliest are split."""
    missing = -len(batches) % world_size
    if drop_last and len(batches) >= world_size:
        return batches[: len(batches) - len(batches) % world_size]
    heap = [(-_cost(batch, costs), number, batch) for number, batch in enumerate(batches) if len(batch) > 1]
    heapq.heapify(heap)
    whole = [batch for batch in batches if len(batch) == 1]
    while missing and heap:
        _, number, batch = heapq.heappop(heap)
        ordered = sorted(batch, key=lambda at: -costs[at])
        for half in (ordered[::2], ordered[1::2]):
            if len(half) > 1:
                heapq.heappush(heap, (-_cost(half, costs), len(batches) + number, half))
            else:
                whole.append(half)
        missing -= 1
    even = [batch for _, _, batch in sorted(heap)] + whole
    return even + even[:missing]


def _grouped(
    batches: list[list[int]], costs: list[float], world_size: int, random: np.random.Generator | None
) -> list[list[list[int]]]:
    """Steps of one batch for each rank: batches of similar cost are done together."""
    by_cost = sorted(batches, key=lambda batch: -_cost(batch, costs))
    steps = [by_cost[first : first + world_size] for first in range(0, len(by_cost), world_size)]
    if random is None:
        return steps
    return [[steps[at][rank] for rank in random.permutation(world_size)] for at in random.permutation(len(steps))]


def _cost(batch: list[int], costs: list[float]) -> float:
    return sum([costs[at] for at in batch])
