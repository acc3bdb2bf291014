"""Tables of block masks inside somebody's graph."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import maskloom as loom
from maskloom.core import block_masks
from maskloom.core.block_masks import TABLES, laid_out


@pytest.mark.parametrize(
    ("shape", "may_be"),
    [
        ((2, 4, 26, 26), True),  # 2,704 entries of a batch row, and Inductor would take 2,720
        ((2, 41, 26), True),
        ((2, 1, 33, 33), True),
        ((1, 4, 26, 26), False),  # nothing comes behind
        ((2, 1, 32, 32), False),
        ((2, 8, 32, 32), False),
        ((2, 4, 26), False),  # few
        ((2, 64, 26), False),
    ],
)
def test_what_a_compiler_may_pad(shape, may_be):
    assert block_masks._may_be_padded(torch.empty(shape, dtype=torch.int32, device="meta")) == may_be
    assert not block_masks._may_be_padded(torch.empty(shape, dtype=torch.int32))  # on the CPU no such kernel reads it


def test_copies_are_made_of_block_masks_of_others(monkeypatch):
    monkeypatch.setattr(block_masks, "_may_be_padded", lambda table: True)
    of_torch = create_block_mask(lambda b, h, q, k: q >= k, 2, 3, 70, 90, device="cpu", BLOCK_SIZE=32)
    found = laid_out(of_torch)
    for name in TABLES:
        ours, theirs = getattr(found, name), getattr(of_torch, name)
        assert torch.equal(ours, theirs) and ours.is_contiguous() and ours.data_ptr() != theirs.data_ptr()
    assert found.mask_mod is of_torch.mask_mod and found.seq_lengths == (70, 90)
    own = loom.block_mask(loom.causal, 70, 90, block_size=32)
    assert laid_out(own) is own
    torch.library.opcheck(torch.ops.maskloom.copies, ([of_torch.kv_indices, of_torch.q_num_blocks],))


def test_a_graph_holds_the_copies(monkeypatch):
    monkeypatch.setattr(block_masks, "_may_be_padded", lambda table: True)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def build(x):
        blocks = create_block_mask(lambda b, h, q, k: q >= k, 2, 3, 70, 90, device="cpu", BLOCK_SIZE=32)
        return laid_out(blocks).q_indices + x

    torch._dynamo.reset()
    torch.compile(build, backend=keep, fullgraph=True)(torch.zeros(()))
    assert any(node.target is torch.ops.maskloom.copies.default for node in graphs[0].graph.nodes)
