"""A template makes an object anew with other tensors, and holds none."""

import dataclasses
import functools
import gc
import operator
import weakref

import torch

import maskloom as loom
from maskloom.core import captures
from maskloom.core.templates import template_of
from tests.all_masks import ALL_MASKS


def filled(held, tensors, others):
    template = template_of(held, tensors)
    assert template is not None
    return template.filled(others)


def test_a_mask_is_made_anew():
    lens, pads = torch.tensor([2, 3]), torch.ones(2, 5, dtype=torch.bool)
    mask = loom.causal & loom.lengths(lens) & (loom.padding(pads) | loom.window(back=3))
    others = [torch.tensor([4, 1]), torch.zeros(2, 5, dtype=torch.bool)]
    made = filled(mask, captures.tensors(mask), others)
    assert all(found is given for found, given in zip(captures.tensors(made), others, strict=True))
    assert made == loom.causal & loom.lengths(others[0]) & (loom.padding(others[1]) | loom.window(back=3))
    assert captures.tensors(mask)[0] is lens


def test_what_is_known_of_what_is_made_is_what_a_walk_finds():
    for name, make in ALL_MASKS.items():
        mask = make()
        facts = captures.facts_of(mask)
        template = template_of(mask, facts.tensors, facts.remarks)
        made = template.filled([tensor.clone() for tensor in facts.tensors], facts.remarks)
        known, walked = captures.facts_of(made), captures._found_in(made)
        assert made is mask or known.tensors is not facts.tensors, name
        for field in dataclasses.fields(captures.Facts):
            if field.name not in ("tensors", "remarks", "_skeletons"):
                assert getattr(known, field.name) == getattr(walked, field.name), (name, field.name)
        for ours, theirs in ((known.tensors, walked.tensors), (known.remarks, walked.remarks)):
            assert len(ours) == len(theirs) and all(map(operator.is_, ours, theirs)), name
        assert captures.is_as_known(made), name


def test_functions_partials_and_containers():
    one, two = torch.tensor(1), torch.tensor(2)

    def add(left, right):
        return left + right + one

    held = functools.partial(add, two)
    made = filled((held, [one, 5]), [one, two], [torch.tensor(10), torch.tensor(20)])
    assert int(made[0](7)) == 37
    assert made[1][1] == 5
    assert int(held(7)) == 10


def test_what_is_held_twice_stays_one_object():
    lens = torch.tensor([2, 3])
    part = loom.lengths(lens)
    made = filled((part, loom.causal & part), [lens], [torch.tensor([5, 7])])
    assert made[0] is made[1].parts[1]


def test_what_holds_no_tensor_is_itself():
    assert filled(loom.causal, [], []) is loom.causal


def test_another_tensor_has_no_slot():
    assert template_of(loom.lengths(torch.tensor([2, 3])), [torch.tensor([2, 3])]) is None


def test_no_tensor_is_kept():
    pads = torch.ones(2, 5, dtype=torch.bool)
    reference = weakref.ref(pads)
    template = template_of(loom.causal & loom.padding(pads), [pads])
    del pads
    gc.collect()
    assert reference() is None
    assert template is not None
