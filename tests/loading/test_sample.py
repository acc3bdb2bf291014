"""Batches by a budget of tokens: what is drawn, by which rank, and after a resume."""

import json
from itertools import chain, islice

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.utils.data import DataLoader

from maskloom.batches import Collator, TokenBudgetSampler

LENGTHS = np.random.default_rng(0).lognormal(np.log(30), 1, 500).astype(int).clip(1, 300)

lens = st.lists(st.integers(0, 13), min_size=5, max_size=40)
forms = st.fixed_dictionaries({"packed": st.booleans(), "shuffle": st.booleans(), "buckets": st.integers(1, 7)})


def samplers(lengths, budget, world_size, **options):
    return [TokenBudgetSampler(lengths, budget, rank=r, world_size=world_size, **options) for r in range(world_size)]


def size(lengths, batch, packed):
    found = [lengths[i] for i in batch]
    return sum(found) if packed else max(found) * len(found)


@given(lens, st.integers(13, 40), st.sampled_from([1, 2, 3, 5]), forms)
def test_each_sequence_is_drawn_once_within_the_budget(lengths, budget, world_size, form):
    ranks = [list(sampler) for sampler in samplers(lengths, budget, world_size, **form)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = list(chain.from_iterable(ranks))
    assert all(batch and size(lengths, batch, form["packed"]) <= budget for batch in batches)
    drawn = sorted(chain.from_iterable(batches))
    repeated = len(drawn) - len(lengths)
    assert sorted(set(drawn)) == list(range(len(lengths)))
    if repeated:  # there was nothing left to split
        assert repeated < world_size and all(len(batch) == 1 for batch in batches)


@given(lens, st.sampled_from([2, 3, 5]), forms)
def test_what_is_over_is_left_out_when_asked(lengths, world_size, form):
    ranks = [list(sampler) for sampler in samplers(lengths, 13, world_size, drop_last=True, **form)]
    one = list(TokenBudgetSampler(lengths, 13, rank=0, world_size=1, **form))
    steps, drawn = len(one) // world_size, list(chain.from_iterable(chain.from_iterable(ranks)))
    assert {len(batches) for batches in ranks} == {max(steps, 1)} and len(set(drawn)) == len(drawn)
    if steps:
        assert {*map(tuple, chain.from_iterable(ranks))} <= {*map(tuple, one)}


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_left_out_is_left_out_by_chance(packed):
    """Padded batches are sorted by length; still no length is left out in all epochs."""
    lengths = np.random.default_rng(0).integers(1, 100, 301)
    drawn = []
    for epoch in range(50):
        for sampler in samplers(lengths, 400, 8, packed=packed, drop_last=True):
            sampler.set_epoch(epoch)
            drawn += chain.from_iterable(sampler)
    times = np.bincount(drawn, minlength=len(lengths))
    assert times.min() > 25  # each is left out with probability 0.1 or less


@pytest.mark.parametrize("packed", [True, False])
def test_ranks_do_equal_work_in_each_step(packed):
    lengths = np.random.default_rng(0).lognormal(np.log(300), 1, 8000).astype(int).clip(1, 4096)
    ranks = [list(sampler) for sampler in samplers(lengths, 8192, 8, packed=packed)]
    costs = np.array([[(lengths[batch].astype(float) ** 2).sum() for batch in batches] for batches in ranks])

    def waste(costs):
        return (costs.max(0) / costs.mean(0)).mean() - 1

    random = np.random.default_rng(0).permutation(costs.ravel()).reshape(costs.shape)
    assert waste(costs) < 0.05 < 0.5 < waste(random)


def test_batches_are_full():
    lengths = np.random.default_rng(0).lognormal(np.log(300), 1, 8000).astype(int).clip(1, 4096)
    packed = list(TokenBudgetSampler(lengths, 8192, packed=True))
    assert lengths.sum() / (8192 * len(packed)) > 0.97
    few, many = (list(TokenBudgetSampler(lengths, 8192, buckets=buckets)) for buckets in (1, 32))
    real = [lengths.sum() / sum(size(lengths, batch, False) for batch in batches) for batches in (few, many)]
    assert real[0] < 0.5 and real[1] > 0.9


@pytest.mark.parametrize("packed", [True, False])
def test_steps_follow_from_ranks_times_batches_that_each_accumulates(packed):
    def steps(world_size, accumulate):
        ranks = [list(sampler) for sampler in samplers(LENGTHS, 700, world_size, accumulate=accumulate, packed=packed)]
        assert {len(batches) % accumulate for batches in ranks} == {0}
        starts = range(0, len(ranks[0]), accumulate)
        return [sorted(batch for batches in ranks for batch in batches[at : at + accumulate]) for at in starts]

    found = [steps(*pair) for pair in ((1, 6), (2, 3), (3, 2), (6, 1))]
    assert found == found[:1] * 4 and len(found[0]) > 5


def test_a_state_among_accumulated_batches_goes_on_there():
    whole = list(TokenBudgetSampler(LENGTHS, 700, accumulate=3))
    sampler = TokenBudgetSampler(LENGTHS, 700, accumulate=3)
    first = list(islice(sampler.consume(sampler), 4))
    resumed = TokenBudgetSampler(LENGTHS, 700, accumulate=3)
    resumed.load_state_dict(sampler.state_dict())
    assert first + list(resumed.consume(resumed)) == whole and len(resumed) % 3 == 0


def test_a_state_from_before_there_was_accumulation_is_taken():
    state = TokenBudgetSampler(LENGTHS, 700).state_dict()
    del state["accumulate"]
    TokenBudgetSampler(LENGTHS, 700).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has accumulate=1, and this sampler accumulate=2"):
        TokenBudgetSampler(LENGTHS, 700, accumulate=2).load_state_dict(state)


def test_the_order_follows_from_seed_and_epoch():
    def drawn(seed, epoch, **options):
        sampler = TokenBudgetSampler(LENGTHS, 700, seed=seed, **options)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert drawn(3, 2) == drawn(3, 2)
    assert len({str(drawn(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4
    assert drawn(0, 0, shuffle=False) == drawn(5, 7, shuffle=False)


def test_a_resumed_run_draws_what_an_uninterrupted_one_would():
    whole = []
    sampler = TokenBudgetSampler(LENGTHS, 700, seed=3)
    for _ in range(3):
        whole += sampler.consume(sampler)
    found, state = [], None
    for stop in (7, 1, len(whole) // 2, 0, len(whole)):  # some of them in later epochs
        sampler = TokenBudgetSampler(LENGTHS, 700, seed=3)
        if state is not None:
            sampler.load_state_dict(json.loads(json.dumps(state)))
        while stop and sampler.epoch < 3:
            part = list(islice(sampler.consume(sampler), stop))
            found, stop = found + part, stop - len(part)
        state = sampler.state_dict()
    assert found == whole
    assert (state["epoch"], state["consumed"]) == (3, 0)


class Indices(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return [index] * int(LENGTHS[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_prefetched_is_not_consumed(workers):
    def loader_of(sampler):
        return DataLoader(
            Indices(), batch_sampler=sampler, collate_fn=Collator(packed=True, blocks=False), num_workers=workers,
            prefetch_factor=3 if workers else None, persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip

    def read(batch):
        return [batch.inputs[0, start].item() for start in batch.cu_seqlens[:-1].tolist()]

    def new():
        return TokenBudgetSampler(LENGTHS, 2000, packed=True, seed=3)

    whole = list(new())
    found, state = [], new().state_dict()
    for stop in (2, 3, len(whole)):
        sampler = new()
        sampler.load_state_dict(state)
        for number, batch in enumerate(sampler.consume(loader_of(sampler)), 1):
            found.append(read(batch))
            state = sampler.state_dict()
            if number == stop:
                assert sampler._drawn >= number + (2 * 3 - 1 if workers else 0)  # workers are ahead
                break
    assert found == whole and state["consumed"] == len(whole)
    sampler.load_state_dict(state)  # the end of an epoch, before the next begins
    assert list(sampler.consume(sampler)) == [] and sampler.epoch == 1


def test_with_a_collator_of_that_length_every_batch_is_one_row():
    sampler = TokenBudgetSampler(LENGTHS, 1000, packed=True)
    collate, rows = Collator(packed=True, length=1000, blocks=False), Indices()
    batches = [collate([rows[index] for index in indices]) for indices in sampler]
    assert {tuple(batch.inputs.shape) for batch in batches} == {(1, 1000)}
    assert {type(batch.mask) for batch in batches} == {type(batches[0].mask)}
    assert sum(int(batch.lengths.sum()) for batch in batches) == LENGTHS.sum() > 0.98 * 1000 * (len(batches) - 1)


def test_an_epoch_that_is_set_again_goes_on():
    sampler = TokenBudgetSampler(LENGTHS, 700)
    whole = list(sampler)
    first = list(islice(sampler.consume(sampler), 2))
    sampler.set_epoch(0)
    assert first + list(sampler.consume(sampler)) == whole
    assert sampler.epoch == 1
    sampler.set_epoch(0)
    assert list(sampler) == whole and len(sampler) == len(whole)


def test_ranks_of_torch_distributed_are_taken(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    sampler = TokenBudgetSampler(LENGTHS, 700)
    assert (sampler.rank, sampler.world_size) == (2, 3)
    assert sampler.state_dict() == samplers(LENGTHS, 700, 3)[0].state_dict()  # one file for all ranks
    assert list(sampler) == list(samplers(LENGTHS, 700, 3)[2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world_size": 2}, "the state has world_size=1, and this sampler world_size=2: its batches are others"),
        ({"seed": 4}, "the state has seed=3, and this sampler seed=4"),
        ({"budget": 900}, "the state has budget=700, and this sampler budget=900"),
        ({"packed": True}, "the state has packed=False, and this sampler packed=True"),
        ({"lengths": LENGTHS[:-1]}, "the state has sequences=500, and this sampler sequences=499"),
        ({"lengths": LENGTHS[::-1].copy()}, "the state has checksum="),
    ],
)
def test_a_state_of_other_batches_is_an_error(change, words):
    state = TokenBudgetSampler(LENGTHS, 700, seed=3).state_dict()
    other = TokenBudgetSampler(**{"lengths": LENGTHS, "budget": 700, "seed": 3, "rank": 0} | change)
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)


def test_another_order_of_the_epoch_is_an_error():
    sampler = TokenBudgetSampler(LENGTHS, 700)
    state = sampler.state_dict() | {"epoch": 5}
    with pytest.raises(ValueError, match="epoch 5 had another order where the state was saved"):
        sampler.load_state_dict(state)
    assert sampler.epoch == 0
    del state["order"]
    with pytest.raises(ValueError, match="no state of a TokenBudgetSampler: it has no 'order'"):
        sampler.load_state_dict(state)


def test_a_state_that_nobody_counted_is_an_error():
    sampler = TokenBudgetSampler(LENGTHS, 700)
    assert sampler.state_dict()["consumed"] == 0
    next(iter(DataLoader(Indices(), batch_sampler=sampler, collate_fn=list)))
    with pytest.raises(RuntimeError, match=r"1 batches were drawn.*iterate over sampler.consume\(loader\)"):
        sampler.state_dict()
    with pytest.raises(RuntimeError, match="the loader gave 3 batches, and this sampler has"):
        list(sampler.consume([1, 2, 3]))
    sampler = TokenBudgetSampler(LENGTHS, 700)
    list(islice(sampler.consume(sampler), 2))
    assert sampler.state_dict()["consumed"] == 2
    next(iter(sampler))  # beside `consume`
    with pytest.raises(RuntimeError, match="nothing counts which were consumed"):
        sampler.state_dict()


def test_long_sequences_count_or_go_as_asked():
    lengths = [5, 30, 7, 2]
    assert sorted(chain.from_iterable(TokenBudgetSampler(lengths, 8, over="truncate"))) == [0, 1, 2, 3]
    assert sorted(chain.from_iterable(TokenBudgetSampler(lengths, 8, over="drop"))) == [0, 2, 3]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TokenBudgetSampler([5, 9], 8), ValueError, "1 of 2 sequences are longer than the budget 8; the first is number 1, with 9. over= takes truncate or drop"),
        (lambda: TokenBudgetSampler([], 8), ValueError, "each rank needs a sequence; got 0 for 1 ranks"),
        (lambda: TokenBudgetSampler([5, 3], 8, accumulate=0), ValueError, "accumulate is"),
        (lambda: TokenBudgetSampler([5, 3], 8, accumulate=3), ValueError, "each of 3 batches of a rank needs a sequence; got 2 for 1 ranks"),
        (lambda: TokenBudgetSampler([5, 3], 8, rank=0, world_size=3), ValueError, "each rank needs a sequence; got 2 for 3 ranks"),
        (lambda: TokenBudgetSampler([5], 8, packed="no"), TypeError, "packed is True or False; got 'no'"),
        (lambda: TokenBudgetSampler([5], 8, shuffle=None), TypeError, "shuffle is True or False; got None"),
        (lambda: TokenBudgetSampler([5], 8, drop_last=0), TypeError, "drop_last is True or False; got 0"),
        (lambda: TokenBudgetSampler([5], 0), ValueError, "budget is a number of positions, at least 1; got 0"),
        (lambda: TokenBudgetSampler([0.5], 8), TypeError, "lengths are integers; got torch.float32"),
        (lambda: TokenBudgetSampler([5], 8, rank=2, world_size=2), ValueError, "rank is one of 0 to 1, as world_size says; got 2"),
        (lambda: TokenBudgetSampler([5], 8, seed=-1), ValueError, "seed is an int, at least 0; got -1"),
        (lambda: TokenBudgetSampler([5], 8, seed=0.5), TypeError, "seed is an int, at least 0; got 0.5"),
        (lambda: TokenBudgetSampler([5], 8).load_state_dict(None), TypeError, "the state is a dict, .*; got None"),
        (lambda: TokenBudgetSampler([5], 8, buckets=0), ValueError, "buckets is a number of buckets, at least 1; got 0"),
        (lambda: TokenBudgetSampler([5], 8, over="split"), ValueError, "over is one of raise, truncate, drop; got 'split'"),
        (lambda: TokenBudgetSampler([5], 8).set_epoch(-1), ValueError, "at least 0; got -1"),
    ],
)  # fmt: skip
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"consumed": -1}, ValueError, "consumed of the state is a number of batches, at least 0; got -1"),
        ({"consumed": "1"}, TypeError, "consumed of the state is a number of batches, an int; got str"),
        ({"consumed": 5}, ValueError, "the state has consumed 5 batches of an epoch of 3"),
        ({"epoch": -1}, ValueError, "epoch of the state is a number of epochs, at least 0; got -1"),
        ({"epoch": 1, "order": 0}, ValueError, "epoch 1 had another order"),
    ],
)
def test_a_state_that_cannot_be_changes_nothing(changed, error, words):
    sampler = TokenBudgetSampler([5, 5, 5], 8, seed=2**63)  # as large as torch.initial_seed() gives one
    before = sampler.state_dict()
    with pytest.raises(error, match=words):
        sampler.load_state_dict(before | changed)
    assert sampler.state_dict() == before
    assert len(list(sampler)) == 3
