"""torch.vmap over what a mask holds: every example has the answer that it has alone."""

import pytest
import torch

import maskloom as loom
from maskloom.core import captures
from maskloom.program.vmapped import is_mapped, one_example
from tests.catalog import EVERY


def with_tensors(mask, tensors):
    """The mask with other tensors, in the order of `captured.tensors`."""
    others = dict(zip(map(id, captures.tensors(mask)), tensors, strict=True))
    return captures.moved(mask, lambda tensor: others[id(tensor)])


def examples(mask):
    """Two examples of each tensor of a mask: itself, and itself turned around."""
    return [torch.stack([tensor, tensor.flip(-1) if tensor.ndim else tensor]) for tensor in captures.tensors(mask)]


@pytest.mark.parametrize("name", [name for name, (make, _, _) in EVERY.items() if captures.tensors(make())])
def test_every_mask(name):
    make, q_len, kv_len = EVERY[name]
    mask = make()
    stacked = examples(mask)

    def table(*tensors):
        return with_tensors(mask, tensors).dense(q_len, kv_len, batch=3, heads=heads)

    heads = mask.dense(q_len, kv_len, batch=3).shape[1]
    expected = torch.stack([table(*(tensor[place] for tensor in stacked)) for place in range(2)])
    assert torch.equal(torch.vmap(table)(*stacked), expected)


def test_nested_and_other_axes():
    lens = torch.tensor([[[5, 3], [2, 4]], [[1, 0], [5, 5]], [[3, 3], [0, 2]]])  # (3, 2, B)

    def table(lens):
        return (loom.causal & loom.lengths(lens)).dense(5, 7)

    expected = torch.stack([torch.stack([table(inner) for inner in outer]) for outer in lens])
    assert torch.equal(torch.vmap(torch.vmap(table))(lens), expected)
    assert torch.equal(torch.vmap(table, in_dims=1)(lens[:, 0].T), torch.stack([table(row) for row in lens[:, 0]]))


def test_what_is_mapped():
    mask, found = loom.lengths([5, 3]), []

    def look(lens, x):
        found.append((is_mapped(loom.lengths(lens)), is_mapped(mask), one_example(loom.lengths(lens)) == mask))
        return x

    torch.vmap(look)(torch.tensor([[5, 3], [1, 2]]), torch.ones(2))
    torch.func.grad(lambda x: look(torch.tensor([5, 3]), x))(torch.ones(()))
    assert found == [(True, False, True), (False, False, True)]
    assert one_example(mask) is mask


def test_words():
    lens, offsets = torch.tensor([[5, 3], [1, 2]]), torch.tensor([[0, 2, 5], [0, 1, 5]])
    for build in (
        lambda lens: loom.block_mask(loom.lengths(lens), 5, 5),
        lambda lens: loom.create_block_mask(loom.lengths(lens), 2, None, 5, 5),
        lambda lens: loom.block_mask(loom.causal, 5, 5, q_offset=lens[0], device="cpu"),
    ):
        with pytest.raises(ValueError, match=r"vmap maps over tensors of this mask, .*: give attend the mask itself"):
            torch.vmap(lambda lens, build=build: build(lens).kv_indices)(lens)
    with pytest.raises(ValueError, match=r"vmap maps over this table, .*: give length="):
        torch.vmap(lambda offsets: loom.documents(offsets=offsets).dense(5, 5))(offsets)
    with pytest.raises(ValueError, match="give key_blocks="):
        torch.vmap(lambda indices: loom.masks.top_k_blocks(indices[:, None], 2).dense(5, 5))(lens)
    found = torch.vmap(lambda offsets: loom.documents(offsets=offsets, length=5).dense(5, 5))(offsets)
    assert torch.equal(found, torch.stack([loom.documents(offsets=row).dense(5, 5) for row in offsets]))
