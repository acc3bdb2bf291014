import pickle

import pytest
import torch

import maskloom as loom
from maskloom.masks.patterns.shift import shifted

PADS = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) < 0.4


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("mask", [loom.causal, loom.window(back=5), loom.padding(PADS)])
def test_shifted_is_a_part_of_the_whole(mask, as_tensor):
    make = torch.tensor if as_tensor else int
    part = shifted(mask, q_offset=make(11), kv_offset=make(7))
    assert torch.equal(part.dense(13, 17), mask.dense(50, 50)[..., 11:24, 7:24])


def test_shifted_by_nothing_is_the_mask_itself():
    assert shifted(loom.causal) is loom.causal


def test_it_is_a_value():
    mask = shifted(loom.causal & loom.padding(PADS), q_offset=3)
    assert repr(mask) == "shifted(causal & padding(bool[3, 50]), q_offset=3, kv_offset=0)"
    assert mask == shifted(loom.causal & loom.padding(PADS), q_offset=3) != shifted(loom.causal, q_offset=3)
    assert pickle.loads(pickle.dumps(mask)) == mask and hash(mask) == hash(pickle.loads(pickle.dumps(mask)))


def test_a_function_can_be_shifted():
    assert torch.equal(
        shifted(lambda b, h, q, kv: q >= kv, q_offset=2).dense(3, 5), loom.causal.dense(5, 5)[..., 2:, :]
    )


@pytest.mark.parametrize("offset", [1.5, True, torch.tensor(1.0)])
def test_an_offset_is_a_position(offset):
    with pytest.raises(TypeError, match="kv_offset is a position, an int or int32 or int64 tensor; got"):
        shifted(loom.causal, kv_offset=offset)
