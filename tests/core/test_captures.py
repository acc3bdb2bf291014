"""What mask_mods hold, whatever they are made of."""

import copy
import dataclasses
import functools
import gc
import operator
import pickle
import weakref
from collections import UserDict
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import maskloom as loom
from maskloom.core import captures
from tests.all_masks import ALL_MASKS

LENS = torch.tensor([2, 3, 5])


def closure(lens, offset=0):
    def mask_mod(b, h, q_idx, kv_idx):
        return kv_idx + offset < lens[b]

    return mask_mod


def nested():
    return functools.partial(lambda inner, b, h, q, k: inner(b, h, q, k), closure(LENS))


def recursive():
    def mask_mod(b, h, q_idx, kv_idx, *, again=None):
        return mask_mod(b, h, q_idx, kv_idx) if again else kv_idx < LENS_IN_CELL[b]

    LENS_IN_CELL = LENS
    return mask_mod


class Object:
    def __init__(self):
        self.tables = {"lens": [LENS]}

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < self.tables["lens"][0][b]


HOLDERS = [closure(LENS), nested(), recursive(), Object(), Object().__call__, loom.causal & closure(LENS)]


def test_tensors_are_found_once_each():
    for holder in HOLDERS:
        found = captures.tensors(holder)
        assert len(found) == 1
        assert found[0] is LENS
    assert len(captures.tensors(loom.lengths(LENS) & loom.prefix(LENS))) == 1


def test_moving_replaces_tensors_everywhere_and_nowhere_else():
    for holder in HOLDERS:
        moved = captures.moved(holder, lambda tensor: tensor + 1)
        assert captures.tensors(moved)[0].tolist() == [3, 4, 6]
        assert captures.tensors(holder)[0] is LENS
        scalars = [torch.tensor(value) for value in (0, 0, 5, 2)]
        assert moved(*scalars)
        assert not holder(*scalars)
        assert captures.moved(holder, lambda tensor: tensor) is holder


def test_a_tensor_held_twice_stays_one_tensor():
    mask = loom.lengths(LENS)
    moved = mask.to("meta")
    assert moved.q_lens is moved.kv_lens


def test_structure_ignores_values_and_tells_kinds_apart():
    def key(holder, numbers=False):
        return captures.structure(holder, numbers=numbers)

    assert key(closure(LENS)) == key(closure(torch.tensor([1, 1])))
    assert key(closure(LENS)) != key(closure(torch.tensor([1])))  # torch.compile specialises sizes of 1
    assert key(closure(LENS)) != key(closure(LENS.int()))
    assert key(loom.window(back=2)) == key(loom.window(back=3))
    assert key(loom.window(back=2), numbers=True) != key(loom.window(back=3), numbers=True)
    assert key(loom.lengths(LENS)) != key(loom.lengths(LENS, LENS.clone()))
    assert key(loom.causal & loom.lengths(LENS)) != key(loom.lengths(LENS) & loom.causal)
    assert key(recursive())


def test_numbers_and_devices():
    assert captures.has_numbers(loom.window(back=2))
    assert captures.has_numbers(closure(LENS, offset=3))
    assert not captures.has_numbers(loom.causal & loom.lengths(LENS))
    assert captures.device_of(loom.causal) is None
    assert captures.device_of(nested()) == LENS.device


def test_score_mods_are_opened_like_masks():
    def key(score_mod):
        return captures.structure(score_mod, numbers=False)

    table = torch.nn.Parameter(torch.zeros(3, 5))
    bias = loom.scores.relative_bias(table)
    composed = loom.scores.shifted_score(
        loom.scores.compose(bias, lambda score, b, h, q, k: score + LENS[b], loom.scores.alibi(3)), q_offset=1
    )
    assert [tensor.shape for tensor in captures.tensors(composed)] == [(3, 5), (3,)]  # a global is not captured
    assert captures.tensors(composed)[0] is table
    moved = captures.moved(composed, lambda tensor: tensor + 1)
    assert captures.tensors(moved)[1].equal(loom.scores.alibi(3).slopes + 1)
    assert (
        key(loom.scores.alibi(3))
        == key(loom.scores.alibi(8))
        == key(loom.scores.alibi(3).to("cpu"))
        != key(loom.scores.alibi(1))
    )
    assert key(bias) == key(loom.scores.relative_bias(torch.nn.Parameter(torch.ones(7, 3))))
    assert key(bias) != key(loom.scores.relative_bias(table.detach()))
    assert key(bias) != key(loom.scores.relative_bias(table, buckets=[0, 1, 2]))
    assert key(loom.scores.softcap(2)) != key(loom.scores.softcap(3))
    assert key(loom.scores.shifted_score(bias, q_offset=2)) == key(loom.scores.shifted_score(bias, q_offset=3))
    assert key(loom.scores.shifted_score(bias, q_offset=2)) != key(loom.scores.shifted_score(bias, q_offset=LENS))


# -- what is kept of a walk --------------------------------------------------------------------------------------------


@pytest.fixture
def flatten(monkeypatch):
    """The objects that a walk opens, as they come."""
    found, open_one = [], captures.flatten
    monkeypatch.setattr(captures, "flatten", lambda held: found.append(held) or open_one(held))
    return found


def ask_all(held):
    return (
        captures.tensors(held), captures.device_of(held), captures.has_numbers(held), captures.has_floats(held),
        captures.holds_code(held), captures.is_plain(held), captures.may_change(held),
        captures.structure(held, numbers=False), captures.structure(held, numbers=True),
    )  # fmt: skip


def test_what_never_changes_is_walked_once(flatten):
    for held in (
        loom.window(back=2) & loom.lengths(LENS),
        loom.scores.compose(loom.scores.alibi(3), loom.scores.softcap(5)),
    ):
        first = ask_all(held)
        flatten.clear()
        assert ask_all(held) == first
        captures.structure(held, held, numbers=True)
        assert not flatten
        assert ask_all(copy.copy(held)) == first
        assert not flatten  # a copy is another object, of the same kind


def test_what_is_known_of_a_kind_is_what_a_walk_finds():
    """Each mask twice: what is known of the second follows from the first."""
    for name, make in ALL_MASKS.items():
        for held in (make(), make()):
            known, walked = captures.facts_of(held), captures._found_in(held)
            for field in dataclasses.fields(captures.Facts):
                if field.name not in ("tensors", "remarks", "_skeletons"):
                    assert getattr(known, field.name) == getattr(walked, field.name), (name, field.name)
            for ours, theirs in ((known.tensors, walked.tensors), (known.remarks, walked.remarks)):
                assert len(ours) == len(theirs) and all(map(operator.is_, ours, theirs)), name
            for numbers in (True, False):
                assert known.skeleton(held, numbers) == captures._structure(held, numbers, {}), name


def test_masks_that_differ_in_a_number_a_type_or_a_sharing_are_of_two_kinds():
    one, other = torch.tensor([3, 5]), torch.tensor([3, 5])
    masks = [
        loom.window(back=2), loom.window(back=3), loom.causal, loom.window(back=2) & loom.causal,
        loom.lengths(one) & loom.key_padding(one[:, None] > 4), loom.lengths(one, other), loom.lengths(one, one), ~loom.causal,
    ]  # fmt: skip
    assert len({captures.structure(mask, numbers=True) for mask in masks}) == len(masks)
    assert [len(captures.facts_of(mask).tensors) for mask in masks[4:7]] == [2, 2, 1]


def test_what_may_change_is_walked_every_time():
    lens = LENS

    def of_cell(b, h, q_idx, kv_idx):
        return kv_idx < lens[b]

    object_ = Object()
    holders = (of_cell, loom.causal & of_cell, loom.as_mask(object_), functools.partial(of_cell))
    for held in holders:
        ask_all(held)
    lens = LENS.clone()
    object_.tables["lens"][0] = lens
    for held in holders:
        assert captures.may_change(held)
        assert captures.tensors(held)[0] is lens


def test_the_state_of_tensors_is_looked_at_every_time():
    table, lens = torch.zeros(3, 5), LENS.clone()
    bias, mask = loom.scores.relative_bias(table), loom.lengths(lens)

    def key():
        return captures.structure(mask, bias, numbers=False)

    keys = [key()]
    table.requires_grad_()
    keys.append(key())
    lens.data = lens.int()
    keys.append(key())
    lens.data = torch.tensor([7])
    keys.append(key())
    assert len(set(keys)) == 4


def test_a_tensor_that_two_hold_is_told_from_two_equal_ones():
    table = torch.zeros(3, 5)
    first, same, other = (loom.scores.relative_bias(held) for held in (table, table, table.clone()))

    def key(*held):
        return captures.structure(*held, numbers=False)

    assert key(first, same) == key(same, first) != key(first, other)
    assert key(first) != key(first, other) != key(first, other, other)


def test_what_is_kept_goes_with_its_object():
    gc.collect()
    before = len(captures._all_facts)
    lens = LENS.clone()
    mask = loom.causal & loom.lengths(lens)
    ask_all(mask)
    assert len(captures._all_facts) == before + 1
    gone = weakref.ref(lens)
    del mask, lens
    gc.collect()
    assert gone() is None
    assert len(captures._all_facts) == before


def test_masks_themselves_are_left_as_they_were():
    mask = loom.causal & loom.lengths(LENS)
    fields, pickled = dict(vars(mask)), pickle.dumps(mask)
    ask_all(mask)
    assert vars(mask) == fields
    assert pickle.dumps(mask) == pickled
    for twin in (copy.copy(mask), copy.deepcopy(mask), pickle.loads(pickled)):
        assert twin == mask
        assert captures.tensors(twin)[0] is twin.parts[1].q_lens
        assert ask_all(twin)[1:] == ask_all(mask)[1:]


def test_threads_ask_at_once():
    gc.collect()
    before = len(captures._all_facts)

    def ask(number):
        for length in range(40):
            lens = torch.tensor([length, number])
            mask = loom.window(back=number) & loom.lengths(lens)
            assert ask_all(mask)[0][0] is lens
            assert ask_all(shared) == expected

    shared = loom.window(back=3) & loom.lengths(LENS)
    expected = ask_all(loom.window(back=3) & loom.lengths(LENS))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(16)))
    gc.collect()
    assert len(captures._all_facts) <= before + 1  # that of the shared one


class Shares(MutableMapping):
    """A mapping whose copies share its entries."""

    def __init__(self, entries):
        self.entries = entries

    def __getitem__(self, key):
        return self.entries[key]

    def __setitem__(self, key, value):
        self.entries[key] = value

    def __delitem__(self, key):
        del self.entries[key]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


def test_what_cannot_be_copied_is_not_changed_either():
    table = torch.ones(3)
    shares = Shares({"table": table})
    cached = functools.lru_cache(functools.partial(torch.add, table))
    for held, kind in ((shares, "Shares"), (cached, "_lru_cache_wrapper")):
        with pytest.raises(TypeError, match=kind):
            captures.moved(held, torch.neg)
    assert shares["table"] is table and cached.__wrapped__.args[0] is table
    assert torch.equal(captures.moved(UserDict(table=table), torch.neg)["table"], -table)
