"""What of CUDA graphs can be told without a GPU; tests/gpu/test_replay.py has the rest."""

import pytest
import torch

import maskloom as loom
from maskloom.blocks.replay import captured


def test_it_is_off_until_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(captured, "_allowed", False)
    assert not captured.are_allowed()
    loom.blocks.cuda_graphs(True)
    assert captured.are_allowed()
    loom.blocks.cuda_graphs(False)
    assert not captured.are_allowed()
    with pytest.raises(TypeError, match="allowed is True or False; got 1"):
        loom.blocks.cuda_graphs(1)


def test_without_it_nothing_is_captured(monkeypatch):
    monkeypatch.setattr(captured, "_allowed", False)
    run = captured.CapturedCalls(lambda tensor: (tensor + 1,), [None])
    for _ in range(5):
        assert run([torch.tensor([1, 2])])[0].tolist() == [2, 3]
    assert run._graph is None


def test_what_lies_far_from_its_beginning_is_not_copied():
    run = captured.CapturedCalls(lambda tensor: (tensor + 1,), [None])
    assert run._may_capture([torch.arange(8)])
    assert not run._may_capture([torch.zeros(1 << 21)[-8:]])
    assert not run._may_capture([torch.arange(8).expand(3, 8)])


def test_copies_lie_as_the_inputs_do():
    table = torch.arange(24).view(2, 3, 4)
    for tensor in (table, table.mT, table[:, 1:, ::2], table[1]):
        copy = captured._like(tensor)
        assert (copy.stride(), copy.storage_offset()) == (tensor.stride(), tensor.storage_offset())
        assert torch.equal(copy, tensor)


def test_results_lie_one_behind_the_other():
    results = [torch.arange(5), torch.ones(2, 1, 3, dtype=torch.int8).expand(2, 4, 3), torch.tensor(True)]
    places, nbytes = captured._places(results)
    buffer = torch.zeros(nbytes, dtype=torch.uint8)
    for result, place in zip(results, places, strict=True):
        captured._into(buffer, place).copy_(captured._once(result))
    for result, place in zip(results, places, strict=True):
        found = torch.as_strided(buffer.view(place.dtype), *place[1:])
        assert torch.equal(found, result)
