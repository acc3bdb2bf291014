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
