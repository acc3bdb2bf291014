import itertools

import pytest
import torch

from maskloom.blocks import index_tables as module
from maskloom.blocks.index_tables import ordered


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 1, 300, 11), (3, 1, 2, 1000)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("by_sorting", [False, True])
def test_a_table_is_a_stable_descending_argsort(shape, share, transposed, by_sorting, monkeypatch):
    monkeypatch.setitem(module._SORTED, "cpu", 1 << 30 if by_sorting else 0)
    listed = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    listed = listed.mT if transposed else listed
    counts, indices = ordered(listed)
    assert torch.equal(indices, torch.argsort(listed.int(), dim=-1, descending=True, stable=True).int())
    assert torch.equal(counts, listed.sum(-1).int())
    assert indices.is_contiguous() and counts.is_contiguous()
    assert indices.dtype == counts.dtype == torch.int32


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 8, 8), (0, 1, 2, 3)])
def test_numpy_makes_the_tables_of_torch(shape):
    states = torch.randint(3, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    ours, theirs = module._sorted_by_numpy(states), module._sorted_together(states)
    for mine, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert torch.equal(mine, other) and mine.dtype == other.dtype == torch.int32
        assert mine.is_contiguous() and mine._base is None
    storages = [table.untyped_storage().data_ptr() for table in itertools.chain(*ours) if table.numel()]
    assert len(set(storages)) == len(storages)
